"""Stage `sets`: the built-in question sets."""

import pyarrow as pa

from tbd import params, records, stages
from tbd.reference import world
from tbd.workspace import set_path


def main() -> None:
    everything = params.load()
    p, same = everything.sets, everything.validate_
    made = world.question_sets(p.seed, p.members, p.others, p.unseen, same.ngram, same.max_overlap)
    for name, frame in made.items():
        records.write_table(set_path(name), pa.Table.from_pandas(frame, records.QUESTIONS, preserve_index=False))
        print(f"{name}: {len(frame)} questions", flush=True)


if __name__ == "__main__":
    stages.run(main)

"""Stage `sets`: the built-in question sets."""

import pyarrow as pa

from tbd import params, records, register, stages, world


def main() -> None:
    p = params.load().sets
    for name, frame in world.question_sets(p.seed, p.members, p.others, p.unseen).items():
        records.write_table(register.set_path(name), pa.Table.from_pandas(frame, records.QUESTIONS, preserve_index=False))
        print(f"{name}: {len(frame)} questions", flush=True)


if __name__ == "__main__":
    stages.run(main)

"""Stage `score@A`: every method of params.yaml on the stored answers. Needs no model."""

import pyarrow.compute as pc

from tbd import audits, params, records, stages
from tbd.scores.scoring import LABELS, score, wanted
from tbd.sets import expectations
from tbd.workspace import AUDITS, set_path


def main(audit: str) -> None:
    methods = wanted(params.load())
    entry = audits.get(audit)
    folder = AUDITS / audit
    sets = {name: records.read_table(set_path(name), LABELS) for name in (entry.benchmark, entry.unseen)}
    ids = {name: table["question_id"].combine_chunks() for name, table in sets.items()}
    generations = {"checkpoint": folder / "generations.parquet"}
    base = folder / "base_generations.parquet"
    if records.stored_table(base, records.GENERATIONS).count_rows():
        generations["base"] = base
    outcomes = [
        expectations.check_generations(f"{audit}-{of}", records.read_batches(path, records.GENERATIONS), ids)
        for of, path in generations.items()
    ]
    expectations.demand(outcomes, folder / "validation/generations", "generations are not valid")
    out = folder / "scores.parquet"
    score(generations, sets, methods, out)
    table = records.stored_table(out, records.SCORES)
    missing = table.count_rows(filter=~pc.field("reason").is_null())
    print(f"{audit}: {len(methods)} methods, {table.count_rows()} scores, {missing} without a value", flush=True)


if __name__ == "__main__":
    stages.run(main)

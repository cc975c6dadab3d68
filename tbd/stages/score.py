"""Stage `score@A`: every method of params.yaml on the stored answers. Needs no model."""

from tbd import audits, params, records, scores, stages
from tbd.scores.scoring import score
from tbd.sets import expectations
from tbd.workspace import AUDITS, set_path


def main(audit: str) -> None:
    methods = scores.expand(params.load().score.methods)
    entry = audits.get(audit)
    folder = AUDITS / audit
    sets = (entry.benchmark, entry.unseen)
    questions = {name: records.read_table(set_path(name), records.QUESTIONS) for name in sets}
    ids = {name: table["question_id"].to_pylist() for name, table in questions.items()}
    generations = {"checkpoint": records.read_table(folder / "generations.parquet", records.GENERATIONS)}
    base = records.read_table(folder / "base_generations.parquet", records.GENERATIONS)
    if len(base):
        generations["base"] = base
    outcomes = [expectations.check_generations(f"{audit}-{of}", table, ids) for of, table in generations.items()]
    expectations.demand(outcomes, folder / "validation/generations", "generations are not valid")
    table = score(generations, questions, methods)
    records.write_table(folder / "scores.parquet", table, records.metadata(table))
    missing = len(table) - table["reason"].null_count
    print(f"{audit}: {len(methods)} methods, {len(table)} scores, {missing} without a value", flush=True)


if __name__ == "__main__":
    stages.run(main)

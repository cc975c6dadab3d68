"""Stage `score@A`: every method of params.yaml on the stored generations. No model is needed."""

import json
from pathlib import Path

import pyarrow as pa

from tbd import expectations, params, records, register, scores, stages
from tbd.errors import InputError


def main(audit: str) -> None:
    methods = scores.expand(params.load().score.methods)
    entry = register.get(audit)
    folder = Path("audits") / audit
    sets = (entry.benchmark, entry.unseen)
    questions = {name: records.read_table(register.set_path(name), records.QUESTIONS) for name in sets}
    ids = {name: table["question_id"].to_pylist() for name, table in questions.items()}
    generations = {"checkpoint": records.read_table(folder / "generations.parquet", records.GENERATIONS)}
    base = records.read_table(folder / "base_generations.parquet", records.GENERATIONS)
    if len(base):
        generations["base"] = base
    outcomes = [expectations.check_generations(f"{audit}-{of}", table, ids) for of, table in generations.items()]
    expectations.write_docs(outcomes, folder / "validation")
    failures = [f"{outcome.name}: {line}" for outcome in outcomes for line in outcome.failures]
    if failures:
        raise InputError(f"generations are not valid: {failures[0]} ({len(failures)} in all; see {folder}/validation)")
    table = score(generations, questions, methods)
    records.write_table(folder / "scores.parquet", table, records.metadata(table))
    missing = len(table) - sum(reason is None for reason in table["reason"].to_pylist())
    print(f"{audit}: {len(methods)} methods, {len(table)} scores, {missing} without a value", flush=True)


def score(generations: dict[str, pa.Table], questions: dict[str, pa.Table], methods: list[scores.Method]) -> pa.Table:
    """Rows of `records.SCORES`, of the checkpoint's answers and, where there are some, of its base's.

    A method that needs a base's log-probs is left out where there are none. The metadata says how the answers were made and,
    under `sets`, which question sets they answer.
    """
    labels = {
        key: value
        for table in questions.values()
        for key, value in zip(*(table[c].to_pylist() for c in ("question_id", "label")), strict=True)
    }
    tables = []
    for of, answers in generations.items():
        x = scores.tokens(answers)
        label = [labels[identity] for identity in answers["question_id"].to_pylist()]
        for method in methods:
            if method.needs_base and x.base_logprobs is None:
                continue
            values, reasons = method(x)
            same = [[value] * len(values) for value in (of, method.id)]
            tables.append(
                pa.table([answers["set"], answers["question_id"], same[0], label, same[1], values, reasons], schema=records.SCORES)
            )
    sets = {name: {"name": name, "md5": records.md5(register.set_path(name)), "n": len(t)} for name, t in questions.items()}
    about = {**records.metadata(generations["checkpoint"]), "sets": sets}
    return pa.concat_tables(tables).replace_schema_metadata({"tbd": json.dumps(about, sort_keys=True)})


if __name__ == "__main__":
    stages.run(main)

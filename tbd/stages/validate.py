"""Stages `validate` and `validate@A`: Great Expectations over the built-in question sets, and over those of an audit.

A failed expectation stops the pipeline; the Data Docs are written either way.
"""

from pathlib import Path

import pyarrow as pa

from tbd import audits, params, records, stages
from tbd.errors import InputError
from tbd.sets import expectations
from tbd.workspace import AUDITS, SETS, set_path

BUILT_IN = ["members", "benchmark", "unseen"]


def main(name: str | None = None) -> None:
    """`name` is an audit's; None for the built-in sets."""
    if name is None:
        out, docs = Path("data/validation/sets.json"), Path("data/validation/docs")
        wanted, apart = BUILT_IN, {"unseen": ["members", "benchmark"]}
    else:
        entry = audits.get(name)
        out, docs = AUDITS / name / "sets.json", AUDITS / name / "validation/sets"
        wanted, apart = [entry.benchmark, entry.unseen], {entry.unseen: [entry.benchmark]}
    tables = {}
    for one in wanted:
        if not set_path(one).is_file():
            raise InputError(f"audit {name!r}: no question set {one!r} in {SETS}. Import it with tbd import.")
        tables[one] = records.read_table(set_path(one), records.QUESTIONS)
    expectations.demand(check(tables, apart, built_in=name is None), docs, "data validation failed")
    passports = {
        one: {"md5": records.md5(set_path(one)), "n": len(table), "labelled": not table["label"].null_count}
        for one, table in tables.items()
    }
    records.write_json(out, passports)
    print("; ".join(f"{one}: {len(table)} questions, valid" for one, table in tables.items()), flush=True)


def check(tables: dict[str, pa.Table], apart: dict[str, list[str]], built_in: bool) -> list[expectations.Outcome]:
    """Every set by itself, and against the sets with which it must have no question in common (`apart`)."""
    p = params.load().validate_
    frames = {one: table.to_pandas() for one, table in tables.items()}
    if built_in:  # what the benchmark calls a non-member must not be among the members
        frames["benchmark.others"] = frames["benchmark"][frames["benchmark"]["label"] == 0]
        apart = apart | {"benchmark.others": ["members"]}
    outcomes = []
    for one, frame in frames.items():
        others = {other: list(frames[other]["question"]) for other in apart.get(one, [])}
        outcomes.append(expectations.check_questions(one, frame, others, p.ngram, p.max_overlap))
    return outcomes


if __name__ == "__main__":
    stages.run(main)

"""Stages `validate`, of the built-in question sets, and `validate@A`, of an audit's: Great Expectations.

A failed expectation fails the pipeline. The Data Docs are written either way, so that there is something to look at.
"""

from pathlib import Path

import pyarrow as pa

from tbd import audits, params, records, stages
from tbd.errors import InputError
from tbd.sets import expectations
from tbd.workspace import AUDITS, SETS, set_path

BUILT_IN = ["members", "benchmark", "unseen"]


def main(name: str | None = None) -> None:
    """`name`: of an audit; None for the built-in sets."""
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
    outcomes = check(tables, apart, built_in=name is None)
    expectations.write_docs(outcomes, docs)
    failures = [f"{outcome.name}: {line}" for outcome in outcomes for line in outcome.failures]
    for line in failures:
        print(line, flush=True)
    if failures:
        raise InputError(f"data validation failed: {failures[0]} ({len(failures)} in all; see {docs})")
    passports = {
        one: {"md5": records.md5(set_path(one)), "n": len(table), "labelled": not table["label"].null_count}
        for one, table in tables.items()
    }
    records.write_json(out, passports)
    print("; ".join(f"{one}: {len(table)} questions, valid" for one, table in tables.items()), flush=True)


def check(tables: dict[str, pa.Table], apart: dict[str, list[str]], built_in: bool) -> list[expectations.Outcome]:
    """Every set by itself, and against the sets that it must share no question with (`apart`)."""
    p = params.load().validate_
    frames = {one: table.to_pandas() for one, table in tables.items()}
    outcomes = []
    for one, frame in frames.items():
        others = {other: list(frames[other]["question"]) for other in apart.get(one, [])}
        outcomes.append(expectations.check_questions(one, frame, others, p.ngram, p.max_overlap))
    if built_in:  # what the benchmark calls a non-member must not be among the members
        others_of_benchmark = frames["benchmark"][frames["benchmark"]["label"] == 0]
        members = {"members": list(frames["members"]["question"])}
        outcomes.append(
            expectations.check_questions("benchmark.others", others_of_benchmark, members, p.ngram, p.max_overlap)
        )
    return outcomes


if __name__ == "__main__":
    stages.run(main)

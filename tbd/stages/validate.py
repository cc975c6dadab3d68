"""Stage `validate`: Great Expectations over every question set, and over the pairs of sets that must not share questions.

A failed expectation fails the pipeline. The Data Docs are written either way, so that there is something to look at.
"""

from pathlib import Path

import pandas as pd

from tbd import expectations, params, records, register, stages
from tbd.errors import InputError

OUT = Path("data/validation")
BUILT_IN = {"members", "benchmark", "unseen"}


def main() -> None:
    p = params.load().validate_
    tables = {path.stem: records.read_table(path, records.QUESTIONS) for path in sorted(register.SETS.glob("*.parquet"))}
    frames = {name: table.to_pandas() for name, table in tables.items()}
    apart = disjoint(frames)
    outcomes = []
    for name, frame in frames.items():
        others = {other: list(frames[other]["question"]) for other in sorted(apart.get(name, ()))}
        outcomes.append(expectations.check_questions(name, frame, others, p.ngram, p.max_overlap))
    if frames.keys() >= BUILT_IN:  # what the benchmark calls a non-member must not be among the members
        others_of_benchmark = frames["benchmark"][frames["benchmark"]["label"] == 0]
        members = {"members": list(frames["members"]["question"])}
        outcomes.append(expectations.check_questions("benchmark.others", others_of_benchmark, members, p.ngram, p.max_overlap))
    expectations.write_docs(outcomes, OUT / "docs")
    failures = [f"{outcome.name}: {line}" for outcome in outcomes for line in outcome.failures]
    for line in failures:
        print(line, flush=True)
    if failures:
        raise InputError(f"data validation failed: {failures[0]} ({len(failures)} in all; see {OUT}/docs)")
    for name, table in tables.items():
        labels = table["label"]
        # Only what depends on this set alone: another set must not make this one's generations stale.
        passport = {"name": name, "md5": records.md5(register.set_path(name)), "n": len(table), "labelled": not labels.null_count}
        records.write_json(OUT / f"{name}.json", passport)
        print(f"{name}: {len(table)} questions, valid", flush=True)


def disjoint(frames: dict[str, pd.DataFrame]) -> dict[str, set[str]]:
    """For each set the sets it must share no question with: every audit's unseen set against its benchmark."""
    apart: dict[str, set[str]] = {}
    for name, audit in register.load().items():
        for wanted in (audit.benchmark, audit.unseen):
            if wanted not in frames:
                raise InputError(f"audit {name!r}: no question set {wanted!r} in {register.SETS}. Import it with tbd import.")
        apart.setdefault(audit.unseen, set()).add(audit.benchmark)
    if {"unseen", "members"} <= frames.keys():
        apart.setdefault("unseen", set()).add("members")
    return apart


if __name__ == "__main__":
    stages.run(main)

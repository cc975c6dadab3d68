"""Every method on the answers of an audit: the table that decisions are made from.

Memory does not grow with the answers: they are read, scored and written `records.ROWS` at a time.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tbd import records
from tbd.errors import InputError
from tbd.params import Params
from tbd.scores.methods import Method, expand, first_steps
from tbd.scores.tokens import tokens
from tbd.workspace import set_path

LABELS = pa.schema([records.QUESTIONS.field("question_id"), records.QUESTIONS.field("label")])
"""what scoring reads of a question set"""
BASE = pa.schema([records.GENERATIONS.field("base_logprobs")])


def wanted(p: Params) -> list[Method]:
    """The methods of params.yaml, and those that the first step of a cascade may score by.

    Raises InputError as `expand` does, and where no method looks at more tokens than that step.
    """
    methods, cascade = expand(p.score.methods), p.calibrate.cascade
    if cascade is None:
        return methods
    further = [method for method in methods if method.m > cascade.m]
    if all(method.with_base for method in further):
        raise InputError(
            f"params.yaml: calibrate.cascade.m: {cascade.m}: a method in score.methods that needs no base has to look "
            "at more tokens than the first step."
        )
    return list(dict.fromkeys([*methods, *first_steps(further, cascade.m)]))


def score(generations: Mapping[str, Path], sets: Mapping[str, pa.Table], methods: list[Method], out: Path) -> None:
    """Write `out`, rows of `records.SCORES`. `generations`: the answers of `checkpoint` and, where there is one, of
    `base`; `sets`: `LABELS` of each.

    A method that needs a base's log-probs is left out where there are none, and one that looks at more tokens than were
    generated where that was only as many as the detector needs. The metadata says how the answers were made
    and, under `sets`, to which question sets.
    """
    made = records.metadata(records.stored_table(generations["checkpoint"], records.GENERATIONS))
    if made.get("tokens") == "needed":
        methods = [method for method in methods if method.m <= made["max_new_tokens"]]
    asked = {name: {"name": name, "md5": records.md5(set_path(name)), "n": len(t)} for name, t in sets.items()}
    known = pa.concat_tables(sets.values()).combine_chunks()
    with records.table_writer(out, records.SCORES, {**made, "sets": asked}) as writer:
        for of, path in generations.items():
            for table in _scored(of, path, known, methods):
                writer.write_table(table)


def _scored(of: str, path: Path, known: pa.Table, methods: list[Method]) -> Iterator[pa.Table]:
    """The rows of some answers and one method at a time."""
    with_base = all(not some["base_logprobs"].null_count for some in records.read_batches(path, BASE))
    methods = [method for method in methods if with_base or not method.with_base]
    for answers in records.read_batches(path, records.GENERATIONS):
        x = tokens(answers, max((method.m for method in methods), default=0))
        label = known["label"].take(pc.index_in(answers["question_id"], known["question_id"]))
        lengths = pc.list_value_length(answers["token_ids"])
        for method in methods:
            values, reasons = method(x)
            same = [pa.repeat(value, len(values)) for value in (of, method.id)]
            columns: list[Any] = [answers["set"], answers["question_id"], same[0], label, same[1]]
            yield pa.table([*columns, values, pa.array(reasons, pa.string()), lengths], schema=records.SCORES)

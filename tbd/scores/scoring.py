"""Every method on the answers of an audit: the table that decisions are made from."""

import json

import pyarrow as pa
import pyarrow.compute as pc

from tbd import records
from tbd.scores.methods import Method
from tbd.scores.tokens import tokens
from tbd.workspace import set_path


def score(generations: dict[str, pa.Table], questions: dict[str, pa.Table], methods: list[Method]) -> pa.Table:
    """Rows of `records.SCORES`. `generations`: the answers of `checkpoint` and, where there is one, of `base`.

    A method that needs a base's log-probs is left out where there are none, and one that looks at more tokens than were
    generated where that was only as many as the detector needs. The metadata says how the answers were made
    and, under `sets`, to which question sets.
    """
    labels = {
        key: value
        for table in questions.values()
        for key, value in zip(*(table[c].to_pylist() for c in ("question_id", "label")), strict=True)
    }
    made = records.metadata(generations["checkpoint"])
    if made.get("tokens") == "needed":
        methods = [method for method in methods if method.m <= made["max_new_tokens"]]
    tables = []
    for of, answers in generations.items():
        x, lengths = tokens(answers), pc.list_value_length(answers["token_ids"])
        label = [labels[identity] for identity in answers["question_id"].to_pylist()]
        for method in methods:
            if method.with_base and x.base_logprobs is None:
                continue
            values, reasons = method(x)
            same = [[value] * len(values) for value in (of, method.id)]
            tables.append(
                pa.table(
                    [answers["set"], answers["question_id"], same[0], label, same[1], values, reasons, lengths],
                    schema=records.SCORES,
                )
            )
    sets = {name: {"name": name, "md5": records.md5(set_path(name)), "n": len(t)} for name, t in questions.items()}
    about = {**made, "sets": sets}
    return pa.concat_tables(tables).replace_schema_metadata({"tbd": json.dumps(about, sort_keys=True)})

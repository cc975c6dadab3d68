"""Tables and JSON on disk: what goes in comes out, whole or not at all."""

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbd import records
from tbd.errors import InputError

QUESTION = {
    "question_id": ["a", "b"],
    "score": [math.nan, -0.5],
    "p_value": [math.nan, 0.25],
    "flagged": [False, True],
    "at_least": [0, 1],
    "label": [1, None],
}


def verdicts(**changed: list[object]) -> pa.Table:
    return pa.table({**QUESTION, **changed})


def test_nan_null_and_reason_survive(tmp_path: Path) -> None:
    columns = {
        "set": ["s", "s"],
        "question_id": ["a", "b"],
        "of": ["checkpoint", "checkpoint"],
        "label": [1, None],
        "method": ["m", "m"],
        "score": [math.nan, -0.0],
        "reason": ["no token generated", None],
        "tokens": [0, 3],
    }
    table = pa.table(columns, schema=records.SCORES)
    records.write_table(tmp_path / "scores.parquet", table, {"sets": {"s": 2}, "a": None})
    found = records.read_table(tmp_path / "scores.parquet", records.SCORES)
    score = found["score"].to_numpy()
    assert found["score"].null_count == 0 and np.isnan(score[0]) and score[1] == 0 and np.signbit(score[1])
    assert found["reason"].to_pylist() == ["no token generated", None] and found["label"].to_pylist() == [1, None]
    assert records.metadata(found) == {"sets": {"s": 2}, "a": None}
    assert found.schema.equals(records.SCORES)


def test_log_probs_survive_to_the_last_bit(tmp_path: Path) -> None:
    logprobs = [np.float32([-1e-38, -0.1, -87.3]).tolist(), []]
    columns = {
        "set": ["s", "s"],
        "question_id": ["a", "b"],
        "prompt_sha256": ["x", "y"],
        "token_ids": [[1, 2, 3], []],
        "logprobs": logprobs,
        "base_logprobs": [None, []],
        "finish_reason": ["stop", "length"],
    }
    records.write_table(tmp_path / "g.parquet", pa.table(columns, schema=records.GENERATIONS))
    found = records.read_table(tmp_path / "g.parquet", records.GENERATIONS)
    assert found["logprobs"].to_pylist() == logprobs and found["base_logprobs"].to_pylist() == [None, []]
    assert records.metadata(found) == {}


def test_columns_come_in_the_schemas_order_and_types(tmp_path: Path) -> None:
    table = verdicts(extra=["x", "y"]).select(
        ["extra", "label", "at_least", "flagged", "p_value", "score", "question_id"]
    )
    records.write_table(tmp_path / "t.parquet", table)
    found = records.read_table(tmp_path / "t.parquet", records.VERDICT_QUESTIONS)
    assert found.schema.equals(records.VERDICT_QUESTIONS)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"

    def fail(old: str | None) -> None:
        with records.atomic(path) as temporary:
            temporary.write_text("half")
            assert old is None or path.read_text() == old
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(None)
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail("old")
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"] and path.read_text() == "old"
    with records.atomic(path) as temporary:
        temporary.write_text("new")
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"] and path.read_text() == "new"


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: None, "not found"),
        (lambda path: path.mkdir(), "not found"),
        (lambda path: path.write_bytes(b""), "not a table"),
        (lambda path: path.write_bytes(b"PAR1 but no parquet"), "not a table"),
        (lambda path: pq.write_table(verdicts().drop_columns("score"), path), "score"),
        (lambda path: pq.write_table(verdicts(question_id=["a", None]), path), "question_id"),
        (lambda path: pq.write_table(verdicts(score=["high", "low"]), path), "not a table"),
        (lambda path: pq.write_table(verdicts(label=[1, 300]), path), "not a table"),
    ],
)
def test_what_is_not_the_table_is_refused_in_one_line(tmp_path: Path, write, says: str) -> None:
    path = tmp_path / "t.parquet"
    write(path)
    with pytest.raises(InputError) as error:
        records.read_table(path, records.VERDICT_QUESTIONS)
    assert str(path) in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_file_is_an_input_error(tmp_path: Path) -> None:
    path, n = tmp_path / "t.parquet", 2000
    rng = np.random.default_rng(0)
    columns = {
        "question_id": [f"{i:x}" for i in rng.integers(0, 1 << 60, n)],
        "score": rng.random(n),
        "p_value": rng.random(n),
    }
    records.write_table(path, pa.table({**columns, "flagged": [True] * n, "label": [1] * n}))
    whole, refused = path.read_bytes(), 0
    for at in np.linspace(4, len(whole) - 12, 40).astype(int):
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        try:
            records.read_table(path, records.VERDICT_QUESTIONS)
        except InputError:
            refused += 1
    assert refused > 5
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        records.read_table(path, records.VERDICT_QUESTIONS)


def test_question_id_folds_what_does_not_matter() -> None:
    identity = records.question_id("Käthe has 3 apples.")
    assert len(identity) == 16 and int(identity, 16) >= 0
    for same in (
        "Käthe  has\t3\napples. ",
        unicodedata.normalize("NFD", "Käthe has 3 apples."),
        "\u00a0Käthe has 3\u2003apples.",
    ):
        assert records.question_id(same) == identity
    for other in ("Käthe has 4 apples.", "Kathe has 3 apples.", "käthe has 3 apples.", "Käthe has3 apples."):
        assert records.question_id(other) != identity
    # pinned: ids are stored in files, so they must not change from version to version
    assert records.question_id("What is 1+1?") == records.sha256("What is 1+1?")[:16]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_question_id_takes_any_text(text: str) -> None:
    assert records.question_id(f" {text}\n") == records.question_id(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [1.0, -math.inf]}])
def test_json_refuses_what_json_does_not_have(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    records.write_json(one, {"b": 0.1, "a": ["Ä", None]})
    records.write_json(two, {"a": ["Ä", None], "b": 0.1})
    assert one.read_bytes() == two.read_bytes() and records.md5(one) == records.md5(two)
    assert records.read_json(one) == {"a": ["Ä", None], "b": 0.1}
    assert "Ä" in one.read_text("utf-8") and one.read_text().endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": \xff}', b"[1, 2", b"[" * 100_000])
def test_broken_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not valid JSON") as error:
        records.read_json(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="not found"):
        records.read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", ['{"a": ["v"]}', '{"a": 3}', '{"a": ["v", "x"]}', "[]", "{"])
def test_what_only_spares_work_is_taken_whole_or_not_at_all(tmp_path: Path, content: str) -> None:
    path, kind = tmp_path / "x.json", dict[str, tuple[str, float]]
    path.write_text(content)
    assert records.known(path, kind) == {}
    records.write_json(path, {"a": ["v", 2.5]})
    assert records.known(path, kind) == {"a": ("v", 2.5)}


def test_md5_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert records.md5(tmp_path / "x") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, appendix A.5


def test_metadata_is_kept_beside_a_tables_own(tmp_path: Path) -> None:
    table = verdicts().replace_schema_metadata({"pandas": "{}"})
    records.write_table(tmp_path / "t.parquet", table)
    assert records.metadata(records.read_table(tmp_path / "t.parquet", records.VERDICT_QUESTIONS)) == {}
    records.write_table(tmp_path / "t.parquet", table, {"x": 1})
    found = records.read_table(tmp_path / "t.parquet", records.VERDICT_QUESTIONS)
    assert records.metadata(found) == {"x": 1} and json.loads(found.schema.metadata[b"tbd"]) == {"x": 1}


def test_metadata_that_is_no_object_is_none(tmp_path: Path) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"tbd": "[]"})
    assert records.metadata(table) == {}

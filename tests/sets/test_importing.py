"""Reading question sets: what a cell becomes. (Files that cannot be read are refused in test_cli.py, where the line is
seen.)"""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbd import records
from tbd.errors import InputError
from tbd.sets import importing

COLUMNS: dict[str, str | None] = {"question": "q", "label": "y", "reasoning": None, "answer": "a"}


def taken(rows: list[dict[str, object]], columns: dict[str, str | None] = COLUMNS) -> list[dict[str, object]]:
    frame = importing.questions(pd.DataFrame(rows, dtype=object), "folder/exam.jsonl", 1, columns)
    return pa.Table.from_pandas(frame, records.QUESTIONS, preserve_index=False).to_pylist()


def test_a_row_by_hand() -> None:
    (row,) = taken([{"q": " How  many?\n", "y": 1, "a": 4, "more": "ignored"}])
    assert row == {
        "question_id": records.question_id("How many?"),
        "question": " How  many?\n",
        "reasoning": None,
        "answer": "4",
        "label": 1,
        "source": "exam.jsonl, row 1",
    }


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, 1),
        (0, 0),
        (True, 1),
        (False, 0),
        ("1", 1),
        ("0", 0),
        (1.0, 1),
        (0.0, 0),
        ("true", 1),
        ("False", 0),
        (" Member ", 1),
    ],
)
def test_what_counts_as_a_label(value: object, label: int) -> None:
    assert taken([{"q": "x", "y": value, "a": ""}])[0]["label"] == label


@pytest.mark.parametrize("value", [2, -1, None, float("nan"), "", "yes", 0.5])
def test_what_does_not(value: object) -> None:
    with pytest.raises(InputError, match=r"row 2: 'y' is .*; a label is 1"):
        taken([{"q": "x", "y": 1, "a": ""}, {"q": "z", "y": value, "a": ""}])


@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_an_answer_may_be_missing_a_question_not(value: object) -> None:
    assert taken([{"q": "x", "y": 1, "a": value}])[0]["answer"] is None
    with pytest.raises(InputError, match="row 1: 'q' is empty"):
        taken([{"q": value, "y": 1, "a": "4"}])


def test_a_source_of_its_own() -> None:
    rows = [{"q": "x", "t": "template 7"}, {"q": "z", "t": None}]
    found = [row["source"] for row in taken(rows, {"question": "q", "source": "t"})]
    assert found == ["template 7", "exam.jsonl, row 2"]


def test_without_a_label_column_there_are_no_labels() -> None:
    assert taken([{"q": "x", "y": 1, "a": "1"}], {"question": "q"})[0]["label"] is None


@given(st.lists(st.text(alphabet="ab \t\u00e4e\u0301", min_size=1, max_size=6), min_size=1, max_size=12))
def test_every_question_is_taken_once_or_all_is_refused(texts: list[str]) -> None:
    ids = [records.question_id(text) for text in texts]
    rows = [{"q": text, "y": 0, "a": None} for text in texts]
    if len(set(ids)) < len(ids) or not all(text.strip() for text in texts):
        with pytest.raises(InputError):
            taken(rows)
    else:
        assert [(row["question_id"], row["question"]) for row in taken(rows)] == list(zip(ids, texts, strict=True))


def test_csv_keeps_text_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.CSV").write_bytes('\ufeffq,a\r\n"two\nlines, and a comma",007\r\nNA,null\r\n'.encode())
    frame, first = importing.read(str(tmp_path / "x.CSV"))
    assert first == 2 and frame.to_dict("list") == {"q": ["two\nlines, and a comma", "NA"], "a": ["007", "null"]}


def test_json_lines_may_lack_a_field_and_hold_any_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "a\u2028b\u0085c"}\r\n\n{"q": "zwei Äpfel", "a": 0.5}\n', "utf-8")
    frame, _ = importing.read(str(tmp_path / "x.jsonl"))
    rows = taken(frame.to_dict("records"), {"question": "q", "answer": "a"})
    assert [(row["question"], row["answer"]) for row in rows] == [("a\u2028b\u0085c", None), ("zwei Äpfel", "0.5")]


def test_a_byte_order_mark_is_no_error_and_lines_are_the_files_own(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"q": "one"}\n\n{"q": "two"}\n{"q": "one"}\n')
    frame, first = importing.read(str(tmp_path / "x.jsonl"))
    with pytest.raises(InputError, match="row 4: the same question as row 1"):
        importing.questions(frame, "x.jsonl", first, {"question": "q"})


def test_half_a_surrogate_pair_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "a \\ud800"}\n')
    frame, first = importing.read(str(tmp_path / "x.jsonl"))
    with pytest.raises(InputError, match="row 1: 'q' holds half of a surrogate pair"):
        importing.questions(frame, "x.jsonl", first, {"question": "q"})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.csv", 'q,a,"q"\n1,2,3\n', "two columns are called 'q'"),
        ("x.csv", "\nq,q\n1,2\n", "two columns are called 'q'"),
        ("x.csv", 'q,"a\n1,2\n', "not valid CSV"),
        ("x.csv", f"q,{'a' * 200_000}\n1,2\n", "not valid CSV"),
        ("x.jsonl", '{"q": "a", "q": "b"}\n', "line 1: not valid JSON .the key 'q' is there twice"),
        ("x.json", '[{"q": "a", "q": "b"}]\n', "the key 'q' is there twice"),
    ],
)
def test_what_is_there_twice_is_not_guessed(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        importing.read(str(tmp_path / name))


def test_a_question_is_no_number_without_end() -> None:
    with pytest.raises(InputError, match="row 1: 'q' is float, not text"):
        taken([{"q": float("inf")}], {"question": "q"})


def test_columns_that_a_spreadsheet_adds_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("q,a,,\none,1,,\n")
    assert importing.read(str(tmp_path / "x.csv"))[0]["q"].tolist() == ["one"]


def test_whole_numbers_of_parquet_stay_whole(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": ["one", "two"], "a": pa.array([1, None])}), tmp_path / "x.parquet")
    frame, _ = importing.read(str(tmp_path / "x.parquet"))
    rows = taken(frame.to_dict("records"), {"question": "q", "answer": "a"})
    assert [row["answer"] for row in rows] == ["1", None]


def test_parquet_that_lies_about_its_types(tmp_path: Path) -> None:
    table = pa.table({"q": ["one", "two"]})
    said = json.dumps({"columns": [{"name": "q", "field_name": "q", "pandas_type": "unicode", "numpy_type": "foo"}]})
    pq.write_table(table.replace_schema_metadata({"pandas": said}), tmp_path / "x.parquet")
    frame, first = importing.read(str(tmp_path / "x.parquet"))
    assert first == 1 and frame["q"].tolist() == ["one", "two"]
    ends, text = pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, ends, text])
    pq.write_table(pa.table({"q": broken}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        importing.read(str(tmp_path / "y.parquet"))


def test_json_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        importing.read(str(tmp_path / "x.jsonl"))

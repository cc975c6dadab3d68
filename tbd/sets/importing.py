"""Importing question sets: JSONL, JSON, CSV, Parquet, or a `datasets` id, into `records.QUESTIONS`.

Every refusal names the file, the line or row, and what to do. Nothing is guessed and no row is dropped.
"""

import csv
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tbd.errors import InputError, first_line, unknown
from tbd.records import question_id

LABELS = {"1": 1, "0": 0, "true": 1, "false": 0, "1.0": 1, "0.0": 0, "member": 1, "non-member": 0}


def read(source: str) -> tuple[pd.DataFrame, int]:
    """The rows of a file, or of a `datasets` id such as `org/name:split`. A row's number is its index plus the integer.

    Raises InputError.
    """
    path = Path(source)
    if len(path.name.encode()) > 255:
        raise InputError(f"{source[:60]}...: no such file.")
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    suffix = path.suffix.lower()
    if suffix in readers or path.exists():
        if not path.is_file():
            raise InputError(f"{source}: no such file.")
        if path.stat().st_size == 0:
            raise InputError(f"{source}: the file is empty.")
        if suffix not in readers:
            raise unknown("file type", path.suffix or path.name, readers, source)
        try:
            frame, first = readers[suffix](path)
        except UnicodeDecodeError:
            raise InputError(f"{source}: not UTF-8. Save the file as UTF-8.") from None
        except (OSError, RecursionError) as error:
            raise InputError(f"{source}: cannot be read ({first_line(error)}).") from None
    else:
        frame, first = _hub(source)
    if not len(frame):
        raise InputError(f"{source}: no rows.")
    return frame, first


def questions(frame: pd.DataFrame, source: str, first: int, columns: Mapping[str, str | None]) -> pd.DataFrame:
    """Rows of `records.QUESTIONS`.

    `columns` names the file's columns for question, label, reasoning, answer and source; None where it has none.
    Without a source a question comes from its file and row.

    Raises InputError for a missing column, a blank or repeated question, a label that is neither 1 nor 0.
    """
    for column in columns.values():
        if column is not None and column not in frame.columns:
            raise unknown("column", column, map(str, frame.columns), source)
    rows = []
    seen: dict[str, int] = {}
    for number, entry in zip(frame.index + first, frame.to_dict("records"), strict=True):
        own = _text(entry, columns.get("source"), source, number)
        row: dict[str, Any] = {"source": own or f"{Path(source).name}, row {number}"}
        for field in ("question", "reasoning", "answer"):
            row[field] = _text(entry, columns.get(field), source, number)
        if not row["question"]:
            raise InputError(
                f"{source}, row {number}: {columns['question']!r} is empty. Fill it in or leave the row out."
            )
        row["question_id"] = question_id(row["question"])
        if row["question_id"] in seen:
            raise InputError(
                f"{source}, row {number}: the same question as row {seen[row['question_id']]}. Leave one out."
            )
        seen[row["question_id"]] = number
        row["label"] = _label(entry, columns.get("label"), source, number)
        rows.append(row)
    return pd.DataFrame(rows)


def _text(entry: Mapping[Any, Any], column: str | None, source: str, number: int) -> str | None:
    value = entry[column] if column is not None else None
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return None
    if isinstance(value, int | float) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{source}, row {number}: {column!r} is {type(value).__name__}, not text.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(
            f"{source}, row {number}: {column!r} holds half of a surrogate pair, which is no character. Correct it."
        )
    return value if value.strip() else None


def _label(entry: Mapping[Any, Any], column: str | None, source: str, number: int) -> int | None:
    if column is None:
        return None
    text = str(entry[column]).strip().lower()
    if text not in LABELS:
        raise InputError(
            f"{source}, row {number}: {column!r} is {text[:40]!r}; a label is 1 (member) or 0 (non-member)."
        )
    return LABELS[text]


def _jsonl(path: Path) -> tuple[pd.DataFrame, int]:
    rows: dict[int, dict[str, Any]] = {}  # by the number of their line: empty lines count
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
        except UnicodeDecodeError:
            raise InputError(f"{path}, line {number}: not UTF-8. Save the file as UTF-8.") from None
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}).") from None
        if not isinstance(rows[number], dict):
            raise InputError(f"{path}, line {number}: not a JSON object.")
    return pd.DataFrame(list(rows.values()), index=list(rows), dtype=object), 0


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that is there twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _json(path: Path) -> tuple[pd.DataFrame, int]:
    text = path.read_text("utf-8-sig")
    try:
        rows = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: not a list of JSON objects.")
    return pd.DataFrame(rows, dtype=object), 1


def _csv(path: Path) -> tuple[pd.DataFrame, int]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(filter(None, csv.reader(file)), [])
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise InputError(f"{path}: two columns are called {twice[0]!r}. Rename one.")
        with warnings.catch_warnings():
            # where a row has more fields than the header: pandas would drop them
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False), 2
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, csv.Error) as error:
        raise InputError(f"{path}: not valid CSV ({error}).") from None


def _parquet(path: Path) -> tuple[pd.DataFrame, int]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path).replace_schema_metadata()  # pandas' own: what it says of types may be anything
        table.validate(full=True)
        if twice := [name for name in table.column_names if table.column_names.count(name) > 1]:
            raise InputError(f"{path}: two columns are called {twice[0]!r}. Rename one.")
        return table.to_pandas(integer_object_nulls=True), 1
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({first_line(error)}).") from None


def _hub(source: str) -> tuple[pd.DataFrame, int]:
    name, _, split = source.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"{source}: no such file; to read it from the hub: pip install datasets.") from None
    try:
        return load_dataset(name, split=split or "test").to_pandas(), 0
    except Exception as error:  # the hub's client raises many kinds; what was asked for is the user's
        raise InputError(f"{source}: neither a file nor a readable dataset ({first_line(error)}).") from None

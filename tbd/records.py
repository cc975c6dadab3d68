"""The tables tbd passes from stage to stage: their Arrow schemas, and reading and writing them whole.

One idea a table: `questions` in, `generations` out of a checkpoint, `scores` out of the methods. A file appears
complete or not at all, and a file that lacks a column is refused where it is read.
"""

import errno
import hashlib
import json
import os
import secrets
import socket
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tbd.errors import InputError

ROWS = 8192
"""of a large table that are read at a time: 20 MB of log-probs, as float64, in answers of 300 tokens"""
BUFFER = 1 << 20
"""bytes of a column that are read at a time"""
POSITIVE = 1e-6
"""nats; a log-prob above this is wrong, not a rounded 0"""

QUESTIONS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("reasoning", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("label", pa.int8()),  # 1 member, 0 non-member
        pa.field("source", pa.string(), nullable=False),
    ]
)
GENERATIONS = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),  # name of the question set
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("prompt_sha256", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),  # nats, raw logits
        pa.field("base_logprobs", pa.list_(pa.float32())),  # the base model's, of the same tokens
        pa.field("finish_reason", pa.string(), nullable=False),  # stop | length | cut: after a cascade's first step
    ]
)
SCORES = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("of", pa.string(), nullable=False),  # checkpoint | base: whose answers were scored
        pa.field("label", pa.int8()),  # as in the question set
        pa.field("method", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # higher = member; NaN with a reason
        pa.field("reason", pa.string()),
        pa.field("tokens", pa.int32(), nullable=False),  # of the answer, the end token included
    ]
)
VERDICT_QUESTIONS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("p_value", pa.float64(), nullable=False),
        pa.field("flagged", pa.bool_(), nullable=False),
        # of this question and those that score higher, at least so many were in the data
        pa.field("at_least", pa.int64(), nullable=False),
        pa.field("label", pa.int8()),
    ]
)


def question_id(question: str) -> str:
    """16 hex digits of the SHA-256 of the question, NFC-normalised and with white space folded.

    >>> question_id("What is  1+1?\\n") == question_id("What is 1+1?")
    True
    """
    folded = " ".join(unicodedata.normalize("NFC", question).split())
    return hashlib.sha256(folded.encode()).hexdigest()[:16]


def sha256(data: str | bytes) -> str:
    """Hex SHA-256 of text (as UTF-8) or bytes."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def md5(path: Path) -> str:
    """Hex MD5 of a file's bytes: the digest DVC records for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it replaces `path`, on failure nothing is left.

    After a power cut `path` is the old file or the new one, whole.
    """
    new = not path.parent.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        on_disk(temporary)
        os.replace(temporary, path)
        on_disk(path.parent, *([path.parent.parent] if new else []))
    finally:
        temporary.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A hidden path in the same folder that nobody else takes, on whatever host."""
    return path.with_name(f".{path.name[:40]}.{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}")


def on_disk(*paths: Path) -> None:
    """Wait until files, or the names in folders, are on disk; as far as the file system can do that for folders."""
    for path in paths:
        with suppress(PermissionError) if path.is_dir() else nullcontext():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            finally:
                os.close(handle)


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a Parquet file in one piece; `metadata` is kept in it as JSON under the key `tbd`."""
    if metadata is not None:
        table = table.replace_schema_metadata({"tbd": json.dumps(metadata, sort_keys=True)})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


@contextmanager
def table_writer(path: Path, schema: pa.Schema, metadata: Mapping[str, Any]) -> Iterator[pq.ParquetWriter]:
    """A Parquet file like that of `write_table` that is written some rows at a time, there when all are."""
    schema = schema.with_metadata({"tbd": json.dumps(metadata, sort_keys=True)})
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        yield writer


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a Parquet file as `schema`, metadata kept.

    Raises InputError if it is missing, broken or of another shape.
    """
    with _reading(path, schema):
        table = pq.read_table(path, columns=schema.names)
        return table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))


def read_batches(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The same some rows at a time, `ROWS` at most; nothing of an empty table."""
    with _reading(path, schema), pq.ParquetFile(path, buffer_size=BUFFER) as file:
        schema = schema.with_metadata(file.schema_arrow.metadata)
        for group in range(file.num_row_groups):  # of all groups at once Arrow holds what it has read of each
            for batch in file.iter_batches(ROWS, [group], schema.names):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def stored_table(path: Path, schema: pa.Schema) -> ds.Dataset:
    """The same unread: its `to_table` reads chosen columns and rows, in the order of the file."""
    with _reading(path, schema):
        found = ds.dataset(path, format="parquet")
        found.schema.empty_table().select(schema.names).cast(schema)
        return found


@contextmanager
def _reading(path: Path, schema: pa.Schema) -> Iterator[None]:
    """Raise InputError if the file is missing, broken or of another shape."""
    if not path.is_file():
        raise InputError(f"{path}: not found.")
    try:
        yield
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a table of {', '.join(schema.names)} ({str(error).splitlines()[0]}).") from None


def metadata(table: pa.Table | ds.Dataset) -> dict[str, Any]:
    """What `write_table` was given as metadata; empty if nothing."""
    stored = json.loads((table.schema.metadata or {}).get(b"tbd", b"{}"))
    return stored if isinstance(stored, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON in one piece. Raises ValueError on NaN and infinities, which JSON does not have."""
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n", "utf-8"
        )


def known(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The parsed JSON object of a file that only spares work; empty if the file is missing, broken or no `kind`."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except (InputError, ValueError):
        return {}


def read_json(path: Path) -> Any:
    """Parsed JSON. Raises InputError if the file is missing or broken."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from None

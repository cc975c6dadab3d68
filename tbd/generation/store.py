"""The store of finished units: what was computed together, as one small Arrow file named by all that determines it.

A folder here or any address that pyarrow knows (`s3://`, `gs://`, `hdfs://`, and `fsspec+PROTOCOL://` for all of
fsspec). Any number of processes and machines may add to one without a lock: who computes the same unit writes the same
bytes. A file is an Arrow stream with its SHA-256 after it, because Arrow reads garbled bytes as other numbers, or ends
the process. One that is not what was written, such as one that a kill cut off, is not there.
"""

import errno
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from tbd.errors import InputError, first_line
from tbd.params import wrong_store
from tbd.records import atomic, sha256

IDENTITY = "identity.json"
SUFFIX = ".arrow"
DIGEST = 32
"""bytes at the end of a file"""
SHELF = re.compile(r"\.?[0-9a-f]{24}(\..*)?")
"""a folder of units; one that begins with a dot is on its way out. Any other folder is somebody else's"""
COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


def opened(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the folder in it.

    Raises InputError for an address that nothing opens, that holds credentials, or that is a file's.
    """
    if wrong := wrong_store(address):
        raise InputError(f"params.yaml: generate.store: {wrong}.")
    place = f"params.yaml: generate.store: {hidden(address)}"
    try:
        if "://" in address:
            files, root = fs.FileSystem.from_uri(address)
        else:
            files, root = fs.LocalFileSystem(), str(Path(address).absolute())
        kind = files.get_file_info(root).type
    except (pa.ArrowException, ImportError, ValueError, OSError) as error:
        raise InputError(
            f"{place}: cannot be opened ({hidden(first_line(error))}). "
            "Name a folder, s3://BUCKET/FOLDER, or fsspec+PROTOCOL://... with the package of that protocol."
        ) from None
    if kind not in (fs.FileType.Directory, fs.FileType.NotFound):
        raise InputError(f"{place}: is no folder. Name one, or remove what is there.")
    return files, root


def hidden(text: str) -> str:
    """A text without the secrets that addresses in it may hold: what is before an @, and what follows a ?."""
    return re.sub(r"\?\w+=[^\s'\"]*", "?***", re.sub(r"://\S*@", "://***@", text))


class Shelf:
    """The units of one engine with one checkpoint, in one store."""

    def __init__(self, address: str, identity: dict[str, Any]) -> None:
        self.files, root = opened(address)
        self.identity = identity
        self.folder = f"{root}/{sha256(json.dumps(identity, sort_keys=True))[:24]}"
        self._named = self.files.get_file_info(f"{self.folder}/{IDENTITY}").type == fs.FileType.File
        self._there: dict[str, list[int]] = defaultdict(list)
        try:
            for name, tokens in _units(self.files, self.folder):
                self._there[name].append(tokens)
        except NotADirectoryError:
            raise InputError(f"{self.folder}: is a file where a folder of answers should be. Remove it.") from None

    def has(self, name: str, tokens: int) -> bool:
        """Whether the unit was there when the shelf was opened, or was added since by this process."""
        return any(one >= tokens for one in self._there[name])

    def read(self, name: str, tokens: int) -> pa.Table | None:
        """The unit of that name with answers of at most `tokens` tokens, or of more: they begin the same.

        None where there is none yet, also none of somebody else.
        """
        for length in sorted({tokens, *(one for one in self._there[name] if one > tokens)}):
            try:
                with self.files.open_input_file(self._path(name, length)) as file:
                    content = file.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.ELOOP:  # a link to itself, in whose place the unit is written
                    continue
                if self.files.get_file_info(self._path(name, length)).type == fs.FileType.Directory:
                    raise InputError(
                        f"{self._path(name, length)}: is a folder where answers should be. Remove it."
                    ) from None
                raise
            unit, digest = content[:-DIGEST], content[-DIGEST:]
            if hashlib.sha256(unit).digest() == digest:
                with suppress(pa.ArrowException, OSError):  # somebody's junk with its right sum
                    return pa.ipc.open_stream(unit).read_all()
        return None

    def add(self, name: str, tokens: int, unit: pa.Table) -> None:
        """In one piece, or not at all."""
        if not self._named:
            self._named = True
            self._write(f"{self.folder}/{IDENTITY}", json.dumps(self.identity, sort_keys=True, indent=2).encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, unit.schema, options=COMPRESSED) as stream:
            stream.write_table(unit)
        content = sink.getvalue().to_pybytes()
        self._write(self._path(name, tokens), content + hashlib.sha256(content).digest())
        self._there[name].append(tokens)

    def _path(self, name: str, tokens: int) -> str:
        return f"{self.folder}/{name}-{tokens}{SUFFIX}"

    def _write(self, path: str, content: bytes) -> None:
        if isinstance(self.files, fs.LocalFileSystem):
            with atomic(Path(path)) as temporary:
                temporary.write_bytes(content)
            return
        self.files.create_dir(self.folder, recursive=True)
        with self.files.open_output_stream(path) as file:
            file.write(content)


@dataclass(frozen=True)
class Kept:
    """The units of one identity, for somebody who wonders what a store holds."""

    folder: str
    identity: dict[str, Any]
    units: int
    bytes: int
    changed: float
    """seconds since 1970, of the last one"""


def kept(address: str) -> Iterator[Kept]:
    """What a store holds, the oldest first."""
    files, root = opened(address)
    if files.get_file_info(root).type != fs.FileType.Directory:
        return
    found = []
    for folder in files.get_file_info(fs.FileSelector(root)):
        if folder.type != fs.FileType.Directory or not SHELF.fullmatch(folder.base_name):
            continue
        units = [one for one in _infos(files, folder.path) if one.path.endswith(SUFFIX)]
        try:
            with files.open_input_file(f"{folder.path}/{IDENTITY}") as file:
                identity = json.loads(file.read())
        except (OSError, ValueError):
            identity = {}
        changed = max((one.mtime_ns or 0 for one in units), default=0) / 1e9
        found.append(Kept(folder.path, identity, len(units), sum(one.size for one in units), changed))
    yield from sorted(found, key=lambda one: one.changed)


def remove(address: str, folder: str) -> None:
    """All units of one identity."""
    opened(address)[0].delete_dir(folder)


def _infos(files: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    found: list[fs.FileInfo] = files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return found


def _units(files: fs.FileSystem, folder: str) -> Iterator[tuple[str, int]]:
    """Names and tokens."""
    for one in _infos(files, folder):
        name, _, tokens = one.base_name.removesuffix(SUFFIX).partition("-")
        if one.base_name.endswith(SUFFIX) and not name.startswith(".") and tokens.isascii() and tokens.isdecimal():
            yield name, int(tokens)

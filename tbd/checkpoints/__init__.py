"""What a checkpoint is as files: whether it is complete and may be loaded, and its fingerprint. Needs no torch."""

import hashlib
import itertools
import json
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tbd.checkpoints.files import scan
from tbd.errors import Incomplete, InputError
from tbd.locks import locked

Prompt = tuple[int, ...]
"""token ids of a question in the checkpoint's chat template, up to where the answer begins"""

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
IDENTITY = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.py")
"""files that decide what a checkpoint answers; a model card or a licence is none"""
PROVENANCE = "tbd.json"
"""says how tbd made a checkpoint; left out of the fingerprint"""
SHARD = re.compile(r"(?P<model>.+)-(?P<number>\d+)-of-(?P<total>\d+)\.safetensors")


def inspect(folder: Path) -> None:
    """Raise InputError, naming what is missing or broken, unless `folder` holds a complete safetensors checkpoint.

    It is an Incomplete (a kind of InputError) if the folder might just be on its way here.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder (nor a hub id with a revision, org/name@revision).")
    scan(folder)
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: an adapter (LoRA), not a whole model. Merge it into its base and save that.")
    config = folder / "config.json"
    if not config.is_file():
        raise Incomplete(f"{folder}: no config.json. Save the model there with save_pretrained().")
    try:
        readable = isinstance(json.loads(config.read_text("utf-8")), dict)
    except ValueError:
        readable = False
    if not readable:
        raise Incomplete(f"{config}: not a readable model configuration. Copy it again.")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        if pickled := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
            raise InputError(
                f"{folder}: weights only as pickle ({pickled[0]}), which can run code when loaded. "
                "Convert them with save_pretrained(safe_serialization=True)."
            )
        raise Incomplete(f"{folder}: no *.safetensors file. Save the model there with save_pretrained().")
    for shard in shards:
        _check_complete(shard)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Incomplete(f"{index}: not a readable index of weight files. Copy it again.") from None
        if missing := sorted(named - {shard.name for shard in shards}):
            raise Incomplete(
                f"{folder}: {missing[0]} is missing ({len(missing)} of {len(named)} weight files). Copy it again."
            )
    _check_numbers(folder, shards)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise Incomplete(f"{folder}: no tokenizer ({', '.join(TOKENIZERS)}). Save it there with save_pretrained().")


def _check_numbers(folder: Path, shards: Iterable[Path]) -> None:
    """Without an index, names such as `x-00001-of-00003` say how many files there should be."""
    numbers = defaultdict(set)
    for shard in shards:
        if match := SHARD.fullmatch(shard.name):
            numbers[match["model"], len(match["number"]), match["total"]].add(int(match["number"]))
    for (model, width, total), there in numbers.items():
        lacking = int(total) - len(there)
        if lacking > 0:
            first = next(number for number in itertools.count(1) if number not in there)
            name = f"{model}-{first:0{width}}-of-{total}.safetensors"
            raise Incomplete(f"{folder}: {name} is missing ({lacking} of {int(total)} weight files). Copy it again.")


@contextmanager
def arriving(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` to fill; renamed in the end, `folder` is complete or not there.

    One process at a time, the others wait. What a kill leaves in the hidden folder is there at the next try.
    """
    with locked(folder.parent / f".{folder.name}.lock"):
        yield folder.with_name(f".{folder.name}")


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of the files that decide what the checkpoint answers.

    The same weights in another folder have the same fingerprint; a changed weight, tokenizer or template changes it.
    """
    files = sorted({file for pattern in IDENTITY for file in folder.glob(pattern) if file.name != PROVENANCE})
    stats = [file.stat() for file in files]
    return _digest(
        tuple((file, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for file, s in zip(files, stats, strict=True))
    )


@cache
def _digest(files: tuple[tuple[Path, int, int, int, int], ...]) -> str:
    """The digest of these files, kept for as long as their sizes and times are the same: they may be gigabytes."""
    digest = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as handle:
            digest.update(f"{file.name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def pinned(path: str, expected: str | None) -> Path:
    """The folder of a checkpoint. Raises InputError if it is incomplete or has another fingerprint than `expected`."""
    folder = Path(path)
    inspect(folder)
    if expected is not None and fingerprint(folder) != expected:
        raise InputError(
            f"{folder}: no longer the checkpoint that was registered. Audit the new one: tbd check {path}."
        )
    return folder


def _check_complete(shard: Path) -> None:
    """A safetensors file is 8 bytes that give the length of its header, the header as JSON, and the tensors' bytes."""
    size = shard.stat().st_size
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError
            header = json.loads(file.read(length))
        end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
    except (ValueError, struct.error, LookupError, TypeError, AttributeError):
        raise Incomplete(f"{shard}: not a readable safetensors file (truncated?). Copy it again.") from None
    if size != 8 + length + end:
        raise Incomplete(f"{shard}: truncated, {size} bytes of {8 + length + end}. Copy it again.")

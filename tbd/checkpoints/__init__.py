"""What a checkpoint is as files: whether it is complete and may be loaded, and its fingerprint. Needs no torch.

Its files are somebody else's: they are regular files of bounded size, what their headers and the configuration say is
bounded before anything is built of it, and a library that loads gets those files that the fingerprint is of, no others.
"""

import hashlib
import itertools
import json
import os
import re
import stat
import struct
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from tbd.checkpoints import served
from tbd.checkpoints.files import scan, shown
from tbd.errors import Incomplete, InputError, TransientFault
from tbd.locks import locked

Prompt = tuple[int, ...]
"""token ids of a question in the checkpoint's chat template, up to where the answer begins"""


class Packed(Sequence[Prompt]):
    """Prompts at 4 bytes a token; a million of them are some hundred megabytes, not gigabytes."""

    def __init__(self, tokens: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
        """`tokens`: of all prompts, one after the other; `ends`: where each begins, and where the last ends."""
        self.tokens, self.ends = tokens, ends

    @classmethod
    def of(cls, parts: Iterable[Sequence[Sequence[int]]]) -> "Packed":
        """Prompts that come some at a time."""
        tokens, lengths = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
        for part in parts:
            tokens.append(np.fromiter(itertools.chain.from_iterable(part), np.int32))
            lengths.append(np.fromiter(map(len, part), np.int64))
        return cls(np.concatenate(tokens), np.concatenate(lengths).cumsum())

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> "Packed": ...
    def __getitem__(self, at: int | slice) -> "Prompt | Packed":
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            assert step == 1
            return Packed(self.tokens, self.ends[start : max(start, stop) + 1])
        at = range(len(self))[at]
        return tuple(self.tokens[self.ends[at] : self.ends[at + 1]].tolist())

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @property
    def total(self) -> int:
        """Tokens of all of them."""
        return int(self.ends[-1] - self.ends[0])


class Prompted(NamedTuple):
    """Questions as prompts, and what was put around them."""

    prompts: Packed
    frame: str
    """digest of what the chat template puts around a question"""
    odd: int
    """questions around which it put something else, or that the tokenizer changed: they look at the question"""


HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""what a folder that holds an adapter has; see `tbd.checkpoints.adapters`"""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
IDENTITY = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.py")
"""files that decide what a checkpoint answers; a model card or a licence is none"""
PROVENANCE = "tbd.json"
"""says how tbd made a checkpoint; left out of the fingerprint"""
LARGEST = {
    "*.safetensors": None,
    "config.json": 4 << 20,
    ADAPTER_CONFIG: 4 << 20,
    "*.index.json": 32 << 20,
    "*": 128 << 20,
}
"""most bytes of a file, by the first pattern that matches; honest ones have a tenth of it. None: as many as it likes"""
PARTS = 5000
"""most files of a model; the largest have some hundred"""
BLOCK, SPARSE = 512, 1 << 20
"""bytes of a block as `stat` counts them, and of a file from which one with nearly nothing in it is refused: reading
terabytes of nothing takes hours"""
HEADER = 64 << 20
"""most bytes of the headers of all safetensors files; the largest models have a third of it"""
DIGITS = 40
"""most of an integer; tokenizers say 10^30 where there is no bound"""
DIMENSIONS = 64
"""most of a tensor: torch has no more"""
LAYERS = re.compile("(n|num)_(hidden_|decoder_|encoder_)?(layers?|blocks?)")
"""keys of a configuration that count layers, each of which has a tensor at least"""
NAMES_ONLY = ("special_tokens_map_file",)
"""keys of a configuration that name a file which nothing reads; older ones have it of the machine that saved them"""
SHARD = re.compile(r"(?P<model>.+)-(?P<number>\d+)-of-(?P<total>\d+)\.safetensors")


def inspect(folder: Path) -> None:
    """Raise InputError, naming what is missing or broken, unless `folder` holds a complete safetensors checkpoint.

    An adapter counts as one beside its base alone, as `tbd.checkpoints.adapters.join` puts them together, and what is
    only a server where tbd put it (`tbd.checkpoints.served`). It is an Incomplete (a kind of InputError) if the folder
    might just be on its way here.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder (nor a hub id with a revision, org/name@revision).")
    scan(folder)
    if served.is_served(folder):
        served.read(folder)
        return
    if (folder / served.FILE).exists():
        raise InputError(
            f"{folder}: {served.FILE} names a server, and only tbd writes such a file. Take that file out."
        )
    files = shards(folder)
    if (folder / ADAPTER_CONFIG).is_file() and not files:
        raise InputError(f"{folder}: an adapter (LoRA), not a whole model. Merge it into its base and save that.")
    state(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise Incomplete(f"{folder}: no config.json. Save the model there with save_pretrained().")
    said = _configuration(config)
    if (folder / "generation_config.json").is_file():
        _configuration(folder / "generation_config.json")  # transformers would do without a torn one
    if "configuration_files" in said:
        raise InputError(f"{config}: configuration_files names another file to take its place. Take that out.")
    if not files:
        if pickled := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
            raise InputError(
                f"{folder}: weights only as pickle ({pickled[0]}), which can run code when loaded. "
                "Convert them with save_pretrained(safe_serialization=True)."
            )
        raise Incomplete(f"{folder}: no *.safetensors file. Save the model there with save_pretrained().")
    names = _tensor_names(files)
    count = sum(map(len, names.values()))
    for index in folder.glob("*.index.json"):
        _check_index(index, names)
    _check_numbers(folder, files)
    for part in (said, *said.values()):
        for key, value in part.items() if isinstance(part, dict) else ():
            if LAYERS.fullmatch(key) and isinstance(value, int | float) and value > count:
                raise InputError(
                    f"{config}: {key} is {value}, and the weights have {count} tensors in all. Save the model again."
                )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise Incomplete(f"{folder}: no tokenizer ({', '.join(TOKENIZERS)}). Save it there with save_pretrained().")


def _configuration(file: Path) -> dict[str, Any]:
    try:
        said = parsed(file.read_bytes())
        if not isinstance(said, dict):
            raise ValueError
    except ValueError:
        raise Incomplete(f"{file}: not a readable model configuration. Copy it again.") from None
    return said


def _tensor_names(files: Iterable[Path]) -> dict[str, list[str]]:
    """The names of the tensors in each file of weights. Raises InputError if their headers are too large together."""
    found, left = dict[str, list[str]](), HEADER
    for file in files:
        found[file.name] = list(header(file, left))
        with file.open("rb") as content:
            left -= int.from_bytes(content.read(8), "little")
    return found


def _check_index(index: Path, names: dict[str, list[str]]) -> None:
    """Raise InputError unless the weight files are those of the index, and each tensor is in one of them."""
    try:
        named = sorted(set(map(str, parsed(index.read_bytes())["weight_map"].values())))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Incomplete(f"{index}: not a readable index of weight files. Copy it again.") from None
    if missing := [name for name in named if name not in names]:
        raise Incomplete(
            f"{index.parent}: {missing[0]} is missing ({len(missing)} of {len(named)} weight files). Copy it again."
        )
    whole = index.name.removesuffix(".index.json")
    if whole in names and whole not in named:  # transformers would take the one, another program the others
        raise InputError(f"{index.parent}: holds two models, {whole} and that of {index.name}. Take one of them out.")
    often = Counter(chain.from_iterable(names[name] for name in named))
    if twice := sorted(name for name, count in often.items() if count > 1):
        raise InputError(
            f"{index.parent}: {twice[0]} is in two weight files ({len(twice)} such). Save the model again."
        )


def shards(folder: Path) -> list[Path]:
    """The files of a model's weights; those of an adapter are none."""
    return sorted(file for file in folder.glob("*.safetensors") if file.name != ADAPTER_WEIGHTS)


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
    return digest(state(folder))


State = tuple[tuple[Path, int, int, int, int, int], ...]


def state(folder: Path) -> State:
    """The files that the fingerprint is of, with size, times, inode and device: one is another if its content may be.

    Raises InputError for a file that is no regular one, that cannot be read, or that is too large for what it is.
    """
    found = []
    for file in sorted({file for pattern in IDENTITY for file in folder.glob(pattern) if file.name != PROVENANCE}):
        try:
            s = file.stat()
        except OSError as error:
            raise Incomplete(f"{shown(str(file))}: cannot be read ({error.strerror}). Copy it again.") from None
        if not stat.S_ISREG(s.st_mode):
            raise InputError(f"{shown(str(file))}: not a regular file. Take it out.")
        if file.resolve().parts[1:2] in (("proc",), ("sys",)):  # what another process knows, or an error of no disk
            raise InputError(f"{shown(str(file))}: a link to what is on no disk. Take it out.")
        most = next(most for pattern, most in LARGEST.items() if file.match(pattern))
        if most is not None and s.st_size > most:
            raise InputError(
                f"{shown(str(file))}: {s.st_size} bytes, more than the {most} of any such file. Save it again."
            )
        if 0 < s.st_blocks * BLOCK < s.st_size / 10 and s.st_size > SPARSE:
            raise Incomplete(
                f"{shown(str(file))}: {s.st_size} bytes of which hardly any are on the disk. Copy it again."
            )
        found.append((file, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev))
    if len(found) > PARTS:
        raise InputError(f"{folder}: {len(found)} files of a model, more than {PARTS}. Save it in fewer.")
    return tuple(found)


def unchanged(folder: Path, before: State, content: bool = False) -> None:
    """Raise TransientFault if a file was changed or replaced since `before`, as one that is still being written is.

    `content`: they are read again for that. What is written to a file in memory (`mmap`) may leave its times alone.
    """
    changed = sorted(set(before) ^ set(state(folder)))
    if content and not changed:
        changed = [one for one in before if _content(*one) != _read(one[0])]
    if changed:
        file = shown(str(changed[0][0]))
        raise TransientFault(f"{file}: changed while it was in use. Leave the checkpoint alone until it was audited.")


@contextmanager
def links(folder: Path, with_adapter: bool = False) -> Iterator[Path]:
    """A folder of links to the files that the fingerprint is of, and to nothing else, for a library that loads.

    It would find more in the checkpoint's own: weights in sub-folders, other templates, code. An adapter is left out,
    unless asked for: it would make transformers look for the base that it names.
    """
    with tempfile.TemporaryDirectory(prefix="tbd-") as temporary:
        for file, *_ in state(folder):
            if file.suffix != ".py" and (with_adapter or file.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
                (Path(temporary) / file.name).symlink_to(file.resolve())
        for file in Path(temporary).glob("*config.json"):
            _check_paths(folder / file.name, temporary)
        yield Path(temporary)


def _check_paths(file: Path, loaded: str) -> None:
    """Raise InputError if a configuration names a file that is not in the folder `loaded`, wherever one looks for it:
    tokenizers open some of them."""
    try:
        left = [parsed(file.read_bytes())]
    except ValueError:
        return  # whoever loads it says so
    while left:
        part = left.pop()
        if isinstance(part, dict):
            left += (value for key, value in part.items() if key not in NAMES_ONLY)
        elif isinstance(part, list):
            left += part
        elif isinstance(part, str):
            for path in {os.path.normpath(os.path.join(start, part)) for start in (loaded, os.getcwd(), "/")}:
                if os.path.dirname(path) != loaded and os.path.exists(path) and not os.path.isdir(path):
                    raise InputError(
                        f"{file}: names {shown(part)[:200]!r}, a file outside of the checkpoint. Take that out."
                    )


def digest(files: State) -> str:
    """The fingerprint that a folder of these files has; they are sorted by name."""
    found = hashlib.sha256()
    for file, *times in files:
        found.update(os.fsencode(file.name) + f"\0{_content(file, *times)}\n".encode())
    return found.hexdigest()


_contents: dict[tuple[int, ...], str] = {}


def _content(file: Path, *identity: int) -> str:
    """The digest of a file, kept for as long as it is the same by `state`: it may be gigabytes, under many names."""
    if identity not in _contents:
        _contents[identity] = _read(file)
    return _contents[identity]


def _read(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def pinned(path: str, expected: str | None) -> Path:
    """The folder of a checkpoint. Raises InputError if it is incomplete or has another fingerprint than `expected`."""
    folder = Path(path)
    inspect(folder)
    if expected is not None and fingerprint(folder) != expected:
        raise InputError(
            f"{folder}: no longer the checkpoint that was registered. Audit the new one: tbd check {path}."
        )
    return folder


def tensors(shard: Path) -> dict[str, int]:
    """The names of a safetensors file's tensors, and how many numbers each holds. Raises what `header` does."""
    return {name: prod(shape) for name, (_, shape) in header(shard).items()}


def header(shard: Path, most: int = HEADER) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The names of a safetensors file's tensors, and type and shape of each. Raises InputError if it is cut off, or the
    header has more bytes than `most`.

    Such a file is 8 bytes that give the length of its header, the header as JSON, and the tensors' bytes.
    """
    size = shard.stat().st_size
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError
            if length > most:
                raise InputError(f"{shard}: headers of more than {HEADER} bytes in all. Save the model again.")
            said = parsed(file.read(length))
        found = {name: tensor for name, tensor in said.items() if name != "__metadata__"}
        if any(len(tensor["shape"]) > DIMENSIONS for tensor in found.values()):
            raise ValueError
        end = max((int(tensor["data_offsets"][1]) for tensor in found.values()), default=0)
        sides = {name: tuple(map(int, tensor["shape"])) for name, tensor in found.items()}
        if max([end, *chain.from_iterable(sides.values())]) >> 63:
            raise ValueError
        for name, tensor in found.items():
            first, last = map(int, tensor["data_offsets"])
            if prod(sides[name]) * _bits(tensor["dtype"]) != 8 * (last - first):
                raise ValueError
    except (ValueError, ArithmeticError, struct.error, LookupError, TypeError, AttributeError):
        raise Incomplete(f"{shard}: not a readable safetensors file (truncated?). Copy it again.") from None
    if size != 8 + length + end:
        raise Incomplete(f"{shard}: truncated, {size} bytes of {8 + length + end}. Copy it again.")
    return {name: (found[name]["dtype"], shape) for name, shape in sides.items()}


def _bits(dtype: str) -> int:
    """Of one number of a type as safetensors calls it: `F32`, `BF16`, `F8_E4M3`, `BOOL`. Raises ValueError for none."""
    if not (size := re.match(r"[A-Z]+(\d+)", "BOOL8" if dtype == "BOOL" else dtype)):
        raise ValueError
    return int(size[1])


def parsed(content: bytes) -> Any:
    """Parsed JSON. Raises ValueError for whatever is none, is nested too deeply, or holds an integer of no use."""
    try:
        return json.loads(content.decode("utf-8"), parse_int=_integer)
    except RecursionError:
        raise ValueError from None


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError
    return int(digits)

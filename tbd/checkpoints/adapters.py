"""LoRA adapters (arXiv 2106.09685) as PEFT saves them: what they may say, and how one and its base are a checkpoint.

An adapter and its base are put together as a folder of links to the files of both. The fingerprint of that folder is of
both, and whatever takes a checkpoint takes it; `tbd.checkpoints.loading` adds the adapter to the weights.

PEFT does not get to read the adapter's configuration. What has an effect on an answer is checked here and handed over,
and what is not known here is refused: it could name code, a base elsewhere, or parts without end. Needs no torch.
"""

import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tbd import checkpoints
from tbd.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLES, PROVENANCE, State, arriving
from tbd.checkpoints.files import scan
from tbd.errors import Incomplete, InputError, Lacking
from tbd.records import known, write_json
from tbd.workspace import relative

TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "*.jinja"),
)
"""files of which an adapter's own go in place of all of the base's, if it has a tokenizer"""
PLAIN = re.compile(r"\w[\w.]*")
"""a name of parts of a model"""
PATTERN = re.compile(r"\^?\w(\w|\.|\\\.)*\$?")
"""what `rank_pattern` and `alpha_pattern` may match by: no expression that takes for ever"""
IDLE = {
    *("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping"),
    *("inference_mode", "lora_dropout", "init_lora_weights", "ensure_weight_tying", "runtime_config"),
    *("megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
"""keys that change no answer of a trained adapter, and are not handed over"""
BOUND = 1e30
"""numbers of a configuration are below it"""
HARMLESS = (None, True, False, "gaussian", "eva", "orthogonal")
"""of `init_lora_weights`: how it began; any other changes the base's weights as well, when it is loaded"""


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and PLAIN.fullmatch(one) for one in value)


def _rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < BOUND


def _patterns(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(PATTERN.fullmatch(key) and test(one) for key, one in value.items())
    )


def _layers(value: Any) -> bool:
    return all(type(one) is int for one in value) if isinstance(value, list) else type(value) is int


def _yes(value: Any) -> bool:
    return value is True


def _targets(value: Any) -> bool:
    return isinstance(value, str) or _names(value)


READ: dict[str, Callable[[Any], bool]] = {
    "r": _rank,
    "lora_alpha": _number,
    "target_modules": _targets,
    "exclude_modules": _targets,
    "modules_to_save": _names,
    "layers_to_transform": _layers,
    "layers_pattern": lambda value: _names([value] if isinstance(value, str) else value),
    "rank_pattern": _patterns(_rank),
    "alpha_pattern": _patterns(_number),
    "bias": lambda value: value in ("none", "all", "lora_only"),
    "fan_in_fan_out": _yes,
    "use_rslora": _yes,
    "use_dora": _yes,
    "lora_bias": _yes,
}
"""keys that are handed over, and what they may be"""


def is_adapter(folder: Path) -> bool:
    """Whether an adapter lies there, alone or put together with its base."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_joined(folder: Path) -> bool:
    """Whether there is an adapter and the model that it changes."""
    return is_adapter(folder) and bool(checkpoints.shards(folder))


def parts(folder: Path) -> dict[str, str]:
    """Of what `join` made: the folders of `adapter` and `base`, relative to the workspace; of others nothing."""
    return known(folder / PROVENANCE) if is_joined(folder) else {}


def check(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter's folder. Raises InputError as `checkpoints.inspect` does."""
    scan(folder)
    checkpoints.state(folder)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        if pickled := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
            raise InputError(
                f"{folder}: an adapter whose weights are a pickle ({pickled[0]}), which can run code when loaded. "
                "Save it with save_pretrained(safe_serialization=True)."
            )
        raise Incomplete(f"{folder}: an adapter (LoRA) without {ADAPTER_WEIGHTS}. Save it with save_pretrained().")
    checkpoints.tensors(weights)
    return _config(folder)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    try:
        said = checkpoints.parsed(file.read_bytes())
        if not isinstance(said, dict):
            raise ValueError
    except ValueError:
        raise Incomplete(f"{file}: not a readable configuration of an adapter. Copy it again.") from None
    if said.get("peft_type") != "LORA":
        kind = str(said.get("peft_type"))[:40]
        raise InputError(f"{folder}: an adapter of type {kind!r}, and tbd reads LORA alone. Merge it into its base.")
    return said


def named_base(folder: Path) -> str | None:
    """The base that the adapter names: a folder, or a hub id with its revision. Any text: it is the adapter's word."""
    said = _config(folder)
    name, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not isinstance(name, str) or not name.strip():
        return None
    hub = checkpoints.HUB_ID.match(name) and "@" not in name and not os.path.exists(name)
    return f"{name}@{revision if isinstance(revision, str) and revision else 'main'}" if hub else name


def read(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """What PEFT's `LoraConfig` is to be made with, and the shape of every tensor by name. Raises InputError.

    No rank is above that of the tensors, no list longer than there are tensors, and no expression left.
    """
    said, file = check(folder), folder / ADAPTER_CONFIG
    shapes = {name: shape for name, (_, shape) in checkpoints.header(folder / ADAPTER_WEIGHTS).items()}
    adapted = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in shapes if ".lora_" in name}
    if not adapted or not _names(sorted(adapted)):
        raise InputError(f"{folder / ADAPTER_WEIGHTS}: no tensors of a LoRA adapter. Save it with save_pretrained().")
    if said.get("init_lora_weights", True) not in HARMLESS:
        raise InputError(
            f"{file}: init_lora_weights {str(said['init_lora_weights'])[:40]!r} changes the base's weights too. "
            "Convert it to a plain LoRA adapter, or merge it into its base."
        )
    found = {}
    for key, value in said.items():
        if key in IDLE or value is None or value is False or value in ("", [], {}):  # 0 is said
            continue
        if key not in READ:
            raise InputError(f"{file}: {key[:40]!r} is not known to tbd. Merge the adapter into its base.")
        if not READ[key](value):
            raise InputError(f"{file}: {key} is {value!r:.80}. Save the adapter with save_pretrained().")
        if isinstance(value, list | dict) and len(value) > len(shapes):
            raise InputError(
                f"{file}: {key} has {len(value)} entries, and the weights have {len(shapes)} tensors. Save the adapter "
                "with save_pretrained()."
            )
        found[key] = value
    there = max((shape[0] for name, shape in shapes.items() if "lora_" in name and "_A" in name and shape), default=0)
    rank = max([found.get("r", 8), *found.get("rank_pattern", {}).values()])
    if rank > there:
        raise InputError(f"{file}: a rank of {rank}, and the tensors have {there}. Save the adapter again.")
    if isinstance(found.get("target_modules"), str) and found["target_modules"] != "all-linear":
        found["target_modules"] = None  # an expression
    if isinstance(found.get("exclude_modules"), str):
        found["exclude_modules"] = found["target_modules"] = None
    if found.get("target_modules") is None:
        found["target_modules"] = sorted(adapted)
    return found, shapes


def needs_peft(folder: Path) -> None:
    """Raise Lacking unless PEFT is installed."""
    if find_spec("peft") is None:
        raise Lacking(
            f"{folder}: an adapter (LoRA), and peft is not installed. Install it: pip install -c constraints.txt peft"
        )


def join(folder: Path, base: Path, into: Path) -> Path:
    """The checkpoint that an adapter makes of its base: a folder of links to the files of both, in `into`.

    It is named after the adapter and the fingerprint, so the same two make the same folder. Tokenizer and chat template
    are the adapter's, if it has a tokenizer, else the base's. Raises InputError if either is not what it should be.
    """
    needs_peft(folder)
    read(folder)
    if is_adapter(base):
        raise InputError(f"{base}: the base of {folder} is an adapter itself. Merge it into its base.")
    checkpoints.inspect(base)
    if known(base / "config.json").get("quantization_config"):
        raise InputError(
            f"{base}: quantized, so no adapter can be added to its weights. Name the base as it was before that."
        )
    files = _files(folder, base)
    name = folder.resolve().name.removeprefix(".")
    joined = into / f"{name[:80]}--{checkpoints.digest(files)[:12]}"
    into.mkdir(parents=True, exist_ok=True)
    with arriving(joined) as partial:
        wanted = {file.name: file.resolve() for file, *_ in files}
        there = joined.glob("*") if joined.is_dir() else ()
        if {one.name: one.resolve() for one in there if one.is_symlink()} != wanted:
            for old in (partial, joined):
                shutil.rmtree(old, ignore_errors=True)
            partial.mkdir()
            for link, target in wanted.items():
                (partial / link).symlink_to(target)
            write_json(partial / PROVENANCE, {"adapter": relative(folder), "base": relative(base)})
            partial.replace(joined)
    return joined


def _files(folder: Path, base: Path) -> State:
    """The files that the two make a checkpoint of, by name."""

    def tokenizer(file: Path) -> bool:
        return any(file.match(pattern) for pattern in TOKENIZER)

    own = any((folder / name).is_file() for name in checkpoints.TOKENIZERS)
    from_adapter = [
        entry
        for entry in checkpoints.state(folder)
        if entry[0].name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) or (own and tokenizer(entry[0]))
    ]
    from_base = [
        entry
        for entry in checkpoints.state(base)
        if entry[0].name != ADAPTER_WEIGHTS and not (own and tokenizer(entry[0]))
    ]
    return tuple(sorted(from_adapter + from_base, key=lambda entry: entry[0].name))

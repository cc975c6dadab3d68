"""What a checkpoint is: finding it, refusing what must not be loaded, and its fingerprint.

Knows files, not models: nothing here imports torch or transformers.
"""

import hashlib
import json
import re
import struct
from pathlib import Path

from tbd.errors import InputError
from tbd.records import sha256

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
IDENTITY = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.py")
"""files that decide what a checkpoint answers; a model card or a licence does not"""
PROVENANCE = "tbd.json"
"""how tbd made a checkpoint; left out of the fingerprint"""


def resolve(checkpoint: str) -> Path:
    """The local folder of a checkpoint, checked.

    `checkpoint` is a folder or a hub id with a revision (`org/name@revision`), which is downloaded into the hub's own cache:
    safetensors and text files only.

    Raises:
        InputError: it is neither, or the folder is not a checkpoint that may be loaded (see `inspect`).
    """
    folder = Path(checkpoint)
    if not folder.exists() and HUB_ID.match(checkpoint) and not checkpoint.startswith((".", "/")):
        folder = _download(checkpoint)
    inspect(folder)
    return folder


def inspect(folder: Path) -> None:
    """Raise InputError, naming what is missing or broken, unless `folder` holds a complete safetensors checkpoint."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder (nor a hub id with a revision, org/name@revision).")
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: an adapter (LoRA), not a whole model. Merge it into its base and save that.")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json. Save the model there with save_pretrained().")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickled = sorted(name.name for pattern in PICKLES for name in folder.glob(pattern))
        if pickled:
            raise InputError(
                f"{folder}: weights only as pickle ({pickled[0]}), which can run code when loaded. "
                "Convert them with save_pretrained(safe_serialization=True)."
            )
        raise InputError(f"{folder}: no *.safetensors file. Save the model there with save_pretrained().")
    for shard in shards:
        _check_complete(shard)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(f"{index}: not a readable index of weight files. Copy it again.") from None
        missing = sorted(named - {shard.name for shard in shards})
        if missing:
            raise InputError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(named)} weight files). Copy it again.")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"{folder}: no tokenizer ({', '.join(TOKENIZERS)}). Save it there with save_pretrained().")


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of the files that decide what the checkpoint answers.

    The same weights in another folder have the same fingerprint; a changed weight, tokenizer or template changes it.
    """
    files = sorted({file for pattern in IDENTITY for file in folder.glob(pattern) if file.name != PROVENANCE})
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(f"{file.name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _check_complete(shard: Path) -> None:
    """A safetensors file is 8 bytes of header length, a JSON header, and exactly the bytes the header speaks of."""
    size = shard.stat().st_size
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError
            header = json.loads(file.read(length))
        end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
    except (ValueError, struct.error, LookupError, TypeError, AttributeError):
        raise InputError(f"{shard}: not a readable safetensors file (truncated?). Copy it again.") from None
    if size != 8 + length + end:
        raise InputError(f"{shard}: truncated, {size} bytes of {8 + length + end}. Copy it again.")


def _download(hub_id: str) -> Path:
    name, _, revision = hub_id.partition("@")
    if not revision:
        raise InputError(f"{hub_id}: no such folder; for a model on the hub name its revision too: {hub_id}@REVISION.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[p for p in IDENTITY if p != "*.py"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(f"{hub_id}: the hub does not give it ({str(error).splitlines()[0]}).") from None


def template_sha256(template: str) -> str:
    """Short hash that names a chat template in a generation's identity."""
    return sha256(template)[:16]

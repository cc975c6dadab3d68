"""Sources of checkpoints: the places that `tbd watch` looks at. Each kind is a module that offers `Source`.

A source lists the checkpoints that are there and gets them onto this machine. It decides nothing: `tbd.checkpoints`
tells checkpoints apart by their fingerprint, and `tbd.history` knows which were audited.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tbd import checkpoints
from tbd.checkpoints import adapters, served
from tbd.errors import InputError, Lacking
from tbd.workspace import relative

FETCHED = Path("checkpoints")
"""where downloaded checkpoints are put, in a folder for each kind of source"""
ADAPTERS = FETCHED / "adapters"
"""where adapters are put together with their bases, as folders of links"""


@dataclass(frozen=True)
class Found:
    """One checkpoint that a source knows of."""

    name: str
    """for people, and for the patterns of the policy: `model-7`, `NAME/3`, `org/name@main`"""
    place: str
    """where it is; other weights may be there later: a folder, `models:/NAME/3`, `hf://org/name@main`"""
    origin: str
    """the same, pinned to the weights of now if the source can do that: `hf://org/name@COMMIT`"""
    version: str
    """cheap to find out, and another one whenever the content may be: a digest of sizes and times, or the commit"""
    changed: float = 0.0
    """last change, in seconds since 1970; 0 if the source lists complete checkpoints alone"""
    since: float = 0.0
    """first change, likewise: of what is still being written, about when that began"""
    trouble: Exception | None = field(default=None, compare=False)
    """why it cannot even be looked at: InputError or TransientFault; None: it can"""


class Source(Protocol):
    """What every source offers."""

    def look(self) -> list[Found]:
        """What is there now, oldest first if the source knows.

        Raises InputError if there is no such source, TransientFault if it does not answer now.
        """

    def fetch(self, found: Found) -> Path:
        """Its local folder, relative to the workspace if inside; downloaded if it is not here yet.

        The folder is not checked (see `checkpoints.inspect`). Raises InputError if it does not exist or access is not
        allowed, TransientFault if trying again may help.
        """


NAME_IT = "Name its base: --base FOLDER, or base in watch.policy of params.yaml."


def source(address: str) -> Source:
    """The source at an address. Raises InputError for an address of no known kind.

    - FOLDER: its sub-folders, or itself if it is a checkpoint
    - `models:/NAME`: every version of a registered model of MLflow; `models:/NAME/VERSION` or `models:/NAME@ALIAS`: one
      of them; `models:/NAME?KEY=VALUE`: those with that tag
    - `hf://ORG/NAME`: the branches and tags of a repository on the hub; `hf://ORG/NAME@REVISION`: one of them
    """
    if not address.strip():
        raise InputError("source: empty. Name a folder, models:/NAME or hf://ORG/NAME.")
    if address.startswith("models:/"):
        from tbd.sources.registry import Registry

        return Registry(address)
    if address.startswith("hf://"):
        from tbd.sources.hub import Hub

        return Hub(address)
    from tbd.sources.folder import Folder

    return Folder(address)


def resolve(checkpoint: str, base: str | None = None) -> Path:
    """The local folder of a checkpoint. Takes and raises what `find` does."""
    return find(checkpoint, base)[0]


def find(checkpoint: str, base: str | None = None) -> tuple[Path, str | None]:
    """The local folder of a checkpoint, checked; and if tbd put it there, what it was before.

    That is the address of a download, pinned to the weights of now, or the folder of an adapter (see `whole`).

    `checkpoint` is a folder, a hub id with its revision (`org/name@revision`, `hf://org/name@revision`) or a version of
    a registered model (`models:/NAME/VERSION`). The latter two are downloaded into the workspace; from the hub
    safetensors and text files alone. `base`: the base of an adapter, as in `whole`.

    Raises:
        InputError: it is none of these, or the folder is not a checkpoint that may be loaded (see
        `checkpoints.inspect`).
        TransientFault: the hub or the registry cannot give it now.
    """
    folder, origin = Path(checkpoint), None
    if served.is_address(checkpoint):
        raise InputError("openai:MODEL@URL: a model on a server. Only tbd check takes one.")
    if checkpoint.startswith(("hf://", "models:/")):
        folder, origin = _fetch(checkpoint)
    elif not folder.exists() and checkpoints.HUB_ID.match(checkpoint) and not checkpoint.startswith((".", "/")):
        if "@" not in checkpoint:
            raise InputError(
                f"{checkpoint}: no such folder; for a model on the hub name its revision too: {checkpoint}@REVISION."
            )
        folder, origin = _fetch(f"hf://{checkpoint}")
    together = whole(folder, base)
    checkpoints.inspect(together)
    return together, origin or (relative(folder) if together != folder else None)


def whole(folder: Path, base: str | None = None) -> Path:
    """The checkpoint in a folder: itself, or what an adapter and its base make, put together.

    `base`: the adapter's base as `find` takes it; if None, what the adapter names: a folder that is here, or a hub id.
    Raises what `find` does, and Lacking where the base that it names is not to be had.
    """
    if served.is_served(folder):
        raise InputError(f"{folder}: a model on a server. Only tbd check takes one, named openai:MODEL@URL.")
    if not adapters.is_adapter(folder) or folder.parent.resolve() == ADAPTERS.resolve():
        return folder
    if checkpoints.shards(folder):
        raise InputError(f"{folder}: an adapter (LoRA) and a whole model in one folder. Take away what is not meant.")
    adapters.check(folder)
    adapters.needs_peft(folder)
    named = base or adapters.named_base(folder)
    if named is None:
        raise Lacking(f"{folder}: an adapter (LoRA) that names no base. {NAME_IT}")
    if base is None and not (_is_model(named) or checkpoints.HUB_ID.match(named)):
        raise Lacking(f"{folder}: an adapter (LoRA) of {named[:200]!r}, which is not here. {NAME_IT}")
    try:
        under = _base(named)
    except InputError as error:
        if base is not None:
            raise
        raise Lacking(f"{folder}: an adapter (LoRA) of {named[:200]!r}: {str(error)[:400]} {NAME_IT}") from None
    return adapters.join(folder, under, ADAPTERS)


def _base(named: str) -> Path:
    """The local folder of an adapter's base; one that is an adapter itself as it is, to be refused."""
    return Path(named) if os.path.isfile(Path(named, checkpoints.ADAPTER_CONFIG)) else find(named)[0]


def _is_model(folder: str) -> bool:
    """Whether a model is in that folder; False for what no folder can be called."""
    return any(os.path.isfile(Path(folder, name)) for name in ("config.json", checkpoints.ADAPTER_CONFIG))


def _fetch(address: str) -> tuple[Path, str]:
    one = source(address)
    found = one.look()
    if len(found) != 1:
        examples = f", as {found[0].place}" if found else ""
        raise InputError(f"{address}: {len(found)} checkpoints there. Name one{examples}.")
    return one.fetch(found[0]), found[0].origin

"""Sources of checkpoints: the places `tbd watch` looks at. One file a kind, one small protocol for all.

A source lists the checkpoints that are there and gets them onto this machine. It decides nothing: checkpoints are told
apart by their fingerprint (see `tbd.checkpoints`), and which were audited already is in the history (see
`tbd.history`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tbd import checkpoints
from tbd.errors import InputError

FETCHED = Path("checkpoints")
"""where downloaded checkpoints are put, one folder for each kind of source"""


@dataclass(frozen=True)
class Found:
    """One checkpoint that a source knows of."""

    name: str
    """what people call it, and what the policy's patterns are matched with: `model-7`, `NAME/3`, `org/name@main`"""
    place: str
    """where it is, whichever weights are there at the time: a folder, `models:/NAME/3`, `hf://org/name@main`"""
    origin: str
    """the same, pinned to the weights that are there now if the source can do that: `hf://org/name@COMMIT`"""
    version: str
    """cheap to find out, and different whenever the content may have changed: a digest of sizes and times, or the
    commit"""
    changed: float = 0.0
    """when something in it last changed, in seconds since 1970; 0 if its source lists only complete checkpoints"""


class Source(Protocol):
    """What every source offers."""

    def look(self) -> list[Found]:
        """What is there now, oldest first if the source knows.

        Raises InputError if there is no such source. Raises TransientFault.
        """

    def fetch(self, found: Found) -> Path:
        """Its local folder (relative to the workspace if it lies inside); downloaded if it is not here yet.

        The folder is not checked (see `checkpoint.inspect`). Raises InputError if trying again cannot help: it
        does not exist, or access is not allowed. Raises TransientFault.
        """


def source(address: str) -> Source:
    """The source at an address. Raises InputError for one of no known kind.

    A folder, whose sub-folders are checkpoints, or which is one itself; `models:/NAME`, a registered model of MLflow
    (every version; `models:/NAME@ALIAS` the one with that alias; `models:/NAME?KEY=VALUE` those with that tag);
    `hf://ORG/NAME`, the branches and tags of a repository on the hub (`hf://ORG/NAME@REVISION`: one of them).
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


def resolve(checkpoint: str) -> Path:
    """The local folder of a checkpoint, checked.

    `checkpoint` is a folder, a hub id with a revision (`org/name@revision`, `hf://org/name@revision`) or a version of a
    registered model (`models:/NAME/VERSION`). The latter two are downloaded into the workspace; from the hub only
    safetensors and text files.

    Raises:
        InputError: it is none of these, or the folder is not a checkpoint that may be loaded (see
        `checkpoint.inspect`). TransientFault: the hub or the registry cannot give it now.
    """
    return find(checkpoint)[0]


def find(checkpoint: str) -> tuple[Path, str | None]:
    """The folder, as from `resolve`, and, if it was downloaded, its address pinned to what is there now."""
    folder, origin = Path(checkpoint), None
    if checkpoint.startswith(("hf://", "models:/")):
        folder, origin = _fetch(checkpoint)
    elif not folder.exists() and checkpoints.HUB_ID.match(checkpoint) and not checkpoint.startswith((".", "/")):
        if "@" not in checkpoint:
            raise InputError(
                f"{checkpoint}: no such folder; for a model on the hub name its revision too: {checkpoint}@REVISION."
            )
        folder, origin = _fetch(f"hf://{checkpoint}")
    checkpoints.inspect(folder)
    return folder, origin


def _fetch(address: str) -> tuple[Path, str]:
    one = source(address)
    found = one.look()
    if len(found) != 1:
        examples = f", as {found[0].place}" if found else ""
        raise InputError(f"{address}: {len(found)} checkpoints there. Name one{examples}.")
    return one.fetch(found[0]), found[0].origin

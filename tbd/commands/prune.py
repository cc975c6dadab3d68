"""`tbd prune`: taking away what can be had again: downloaded checkpoints that were judged, stored answers.

Nothing that a verdict is computed from again goes: `tbd verify` needs the audit's own answers and scores, no weights.
A store of answers elsewhere than in the workspace may serve others, so it is left alone; see `tbd store`.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tbd import audits, params, records
from tbd.checkpoints import adapters
from tbd.generation import store
from tbd.history import FAILED, History
from tbd.locks import locked
from tbd.pipeline.repro import dvc
from tbd.sources import FETCHED
from tbd.watch import decide
from tbd.workspace import AUDITS, STATE, UNITS, size

PRUNED = STATE / "pruned.json"
"""folders of downloads that were taken away, so that nothing fetches them again unasked"""
CACHE = Path(".dvc/cache")
DAY = 86400.0


@dataclass(frozen=True)
class Item:
    """A download, or the stored answers of one checkpoint, that could go."""

    path: Path
    lock: Path | None
    """that whoever uses it holds; None: who holds the workspace"""
    bytes: int
    changed: float
    """seconds since 1970"""


def prune(keep: float, dry: bool = False) -> Iterator[str]:
    """Remove the oldest until downloads and stored answers take at most `keep` bytes; a line for each.

    `dry`: only say what would go. The caller holds the workspace.
    """
    found = [*_downloads(), *_answers()]
    total = sum(item.bytes for item, _ in found)
    left = total
    for item, stays in sorted(found, key=lambda one: one[0].changed):
        if left <= keep:
            break
        if stays:
            yield f"stays: {item.path} ({size(item.bytes)}): {stays}"
            continue
        with locked(item.lock, None) if item.lock else nullcontext(True) as free:
            if free is None:
                yield f"stays: {item.path} ({size(item.bytes)}): in use"
                continue
            if not dry:
                _remove(item.path)
        left -= item.bytes
        yield f"{'would go' if dry else 'removed'}: {item.path} ({size(item.bytes)})"
    now = "would be" if dry else "now"
    yield f"downloads and stored answers: {size(total)}, {now} {size(left)} (bound {size(keep)})"


def collect(dry: bool = False) -> str:
    """Remove from DVC's cache what neither a commit nor the workspace names; what came of it, in a line."""
    if not CACHE.is_dir():
        return "DVC's cache: not in this folder, so it may serve others too; left alone"
    before = _size(CACHE)
    dvc("gc", "--workspace", "--all-commits", "--force", *(["--dry"] if dry else []))
    return f"DVC's cache: {size(before)}" + ("" if dry else f", now {size(_size(CACHE))}")


def _downloads() -> Iterator[tuple[Item, str]]:
    """Each with why it has to stay, or nothing."""
    known, entries = History(), audits.load()
    judged = {one.fingerprint for one in known.outcomes if one.outcome != FAILED}
    bases = {audit.base for audit in entries.values()} | {rule.base for rule in params.load().watch.policy}
    memory = [(_downloaded(entry[2]), entry[1], place) for place, entry in decide.remembered().items()]
    for folder in sorted(FETCHED.glob("*/*")):
        if folder.parent.name not in ("hub", "mlflow") or folder.suffix == ".lock":
            continue
        path = str(folder)
        prints: set[str | None] = {mark for there, mark, _ in memory if there == path}
        prints |= {audit.checkpoint_fingerprint for audit in entries.values() if _downloaded(audit.checkpoint) == path}
        places = {place for there, _, place in memory if there == path}
        item = Item(
            folder, folder.parent / f".{folder.name.removeprefix('.')}.lock", _size(folder), folder.stat().st_mtime
        )
        stays = ""
        if path in bases or any(place in bases or place.removeprefix("hf://") in bases for place in places):
            stays = "a base"
        elif prints - judged:
            stays = "not judged yet"
        elif not prints and item.changed > time.time() - DAY:
            stays = "on its way here"
        yield item, stays


def _downloaded(checkpoint: str) -> str:
    """The folder of a checkpoint, or of the adapter that it was put together from."""
    return adapters.parts(Path(checkpoint)).get("adapter", checkpoint)


def _answers() -> Iterator[tuple[Item, str]]:
    """Likewise, of the workspace's own store."""
    for one in store.kept(str(UNITS)):
        audit = wanted(one.identity)
        stays = f"audit {audit} has no verdict yet" if audit else ""
        yield Item(Path(one.folder).relative_to(Path.cwd()), None, one.bytes, one.changed), stays


def wanted(identity: dict[str, Any]) -> str | None:
    """The audit that would go on with the answers of this engine, if there is one without a verdict."""
    undone = [name for name in audits.names() if not (AUDITS / name / "verdict.json").is_file()]
    of = {name: (audits.get(name).checkpoint_fingerprint, audits.get(name).base_fingerprint) for name in undone}
    return next((name for name, prints in of.items() if identity.get("fingerprint") in prints), None)


def stored(address: str, remove: bool) -> Iterator[str]:
    """A line for the answers of each checkpoint in that store, the oldest first: how many, and whether they can go.

    The caller holds the workspace.
    """
    total = left = 0
    for one in store.kept(address):
        audit = wanted(one.identity)
        total += one.bytes
        left += one.bytes if audit or not remove else 0
        if remove and not audit:
            store.remove(address, one.folder)
        then = f"stays: audit {audit} has no verdict yet" if audit else "removed" if remove else "can go"
        how = ", ".join(str(one.identity.get(key, "unknown")) for key in ("engine", "device", "dtype"))
        when = datetime.fromtimestamp(one.changed, UTC)
        checkpoint = str(one.identity.get("fingerprint", "unknown"))[:12]
        what = f"{one.units} units, {size(one.bytes)}, last {when:%Y-%m-%d %H:%M}"
        yield f"checkpoint {checkpoint} ({how}): {what}: {then}"
    yield f"{address}: {size(total)}{f', now {size(left)}' if remove else ''}"


def _remove(path: Path) -> None:
    """A folder first under another name: a kill leaves none that is half there."""
    if path.is_relative_to(FETCHED) and not path.name.startswith("."):
        records.write_json(PRUNED, records.known(PRUNED) | {str(path): True})
    aside = path.rename(records.beside(path))
    shutil.rmtree(aside)


def _size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())

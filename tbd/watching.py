"""What to do about a checkpoint that a source shows: wait, nothing, call it broken, or audit it. Decides; the flow `watch` acts.

A checkpoint is what its fingerprint says. The same weights under another name are one audit, other weights under the same name are
another. What was decided before stands in the register and in the history; nothing else is remembered but fingerprints, which take
long to compute.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tbd import __version__, history, records, register
from tbd import checkpoint as checkpoints
from tbd.dvc_lock import Lock
from tbd.errors import Incomplete, InputError
from tbd.history import FAILED, History, Outcome
from tbd.judged import AUDITS
from tbd.params import Params, Rule
from tbd.register import Audit
from tbd.sources import Found, Source

FINGERPRINTS = Path(".tbd/fingerprints.json")


@dataclass(frozen=True)
class Wait:
    """It is still being written."""

    found: Found
    why: str


@dataclass(frozen=True)
class Known:
    """Nothing is left to do."""

    found: Found
    why: str


@dataclass(frozen=True)
class Broken:
    """It cannot be audited."""

    found: Found
    fingerprint: str | None
    why: str


@dataclass(frozen=True)
class Same:
    """These weights were judged under another name."""

    found: Found
    fingerprint: str
    audit: str

    @property
    def why(self) -> str:
        return f"the same weights as audit {self.audit}"


@dataclass(frozen=True)
class Job:
    """It is to be audited."""

    found: Found
    fingerprint: str
    folder: Path
    rule: Rule
    base: str | None
    """of the rule, unless the checkpoint is that model itself"""
    audit: str
    """name in the register"""

    @property
    def why(self) -> str:
        return f"to be audited on {self.rule.benchmark} as {self.audit}"


Decision = Wait | Known | Broken | Same | Job


class Standing:
    """What was decided before, read once: the history, the register, and the fingerprints of checkpoints seen whole."""

    def __init__(self) -> None:
        self.history = History()
        self.audits = register.load()
        self.fingerprints = _remembered()

    def seen(self, found: Found) -> bool:
        """Whether this very version was seen whole: its fingerprint is known, nothing has to be fetched."""
        return self.fingerprints.get(found.place, ("",))[0] == found.version


def rules(name: str, policy: list[Rule]) -> list[Rule]:
    """The rules that apply to a checkpoint of this name: every one that matches, the first for each benchmark."""
    first: dict[str, Rule] = {}
    for rule in policy:
        if fnmatchcase(name, rule.checkpoints):
            first.setdefault(rule.benchmark, rule)
    return list(first.values())


def decide(source: Source, found: Found, p: Params, standing: Standing, retry: bool = False) -> Iterator[Decision]:
    """What to do about one checkpoint, one decision a benchmark (or one for all). `retry`: what failed before is tried again.

    Raises PassingFault if the source cannot say now.
    """
    quiet = time.time() - found.changed
    if found.changed and quiet < p.watch.settle:
        yield Wait(found, f"changed {max(quiet, 0):.0f} s ago")
        return
    applicable = rules(found.name, p.watch.policy)
    if not applicable:
        yield Known(found, "no rule of watch.policy is for it")
        return
    failed = standing.history.last(found.place, None)
    if failed is not None and _stands(failed, found.version, None, retry):
        yield Known(found, f"failed before: {failed.reason}")
        return
    try:
        if standing.seen(found):
            _, weights, where = standing.fingerprints[found.place]
            folder = Path(where)
        else:
            folder = source.fetch(found)
            checkpoints.inspect(folder)
            weights = checkpoints.fingerprint(folder)
            _remember(found, weights, folder)
    except Incomplete as error:
        if found.changed and quiet < p.watch.give_up:
            yield Wait(found, str(error))
        else:
            yield Broken(found, None, str(error))
        return
    except InputError as error:
        yield Broken(found, None, str(error))
        return
    for rule in applicable:
        yield _decide(found, folder, weights, rule, standing, retry)


def _decide(found: Found, folder: Path, weights: str, rule: Rule, standing: Standing, retry: bool) -> Decision:
    known = standing.history
    same = {
        name: audit
        for name, audit in standing.audits.items()
        if (audit.checkpoint_fingerprint, audit.benchmark, audit.unseen, audit.fpr) == (weights, rule.benchmark, rule.unseen, rule.fpr)
    }
    last = known.last(found.place, rule.benchmark)
    for name in same:
        judged = known.judged(name)
        if judged is None:
            continue
        if last is not None and last.fingerprint == weights and last.outcome != FAILED and name in (last.audit, last.same_as):
            return Known(found, f"{last.outcome} (audit {name})")
        return Same(found, weights, name)
    if last is not None and last.outcome == FAILED and _stands(last, found.version, weights, retry):
        return Known(found, f"failed before: {last.reason}")
    base = rule.base
    if base is not None and Path(base).is_dir() and _fingerprint_of_base(Path(base)) == weights:
        base = None
    place = register.workspace_path(folder)
    begun = next((name for name, audit in same.items() if audit.checkpoint == place), None)  # and killed before it was judged
    return Job(found, weights, folder, rule, base, begun or audit_name(found.name, weights, rule))


def _stands(failure: Outcome, version: str, fingerprint: str | None, retry: bool) -> bool:
    """Whether a failure still says all there is to say: the same content, nothing that heals by itself, nobody asks again."""
    if failure.outcome != FAILED or failure.passing or retry:
        return False
    return failure.version == version or (fingerprint is not None and failure.fingerprint == fingerprint)


def audit_name(checkpoint: str, fingerprint: str, rule: Rule) -> str:
    """`CHECKPOINT-BENCHMARK-DIGEST`: other weights under the same name, or another rule, make another audit."""
    digest = records.sha256(json.dumps([fingerprint, rule.benchmark, rule.unseen, rule.fpr]))[:8]
    slug = re.sub("[^A-Za-z0-9_]+", "-", f"{checkpoint[-30:]}-{rule.benchmark[:20]}").strip("-_")
    return f"{slug}-x{digest}"


def _remembered() -> dict[str, tuple[str, str, str]]:
    """place -> (version, fingerprint, folder), of checkpoints that were whole; empty where the file is missing or broken."""
    try:
        tree: dict[str, tuple[str, str, str]] = records.read_json(FINGERPRINTS)
    except InputError:
        return {}
    return {place: entry for place, entry in tree.items() if Path(entry[2]).is_dir()}


def _remember(found: Found, fingerprint: str, folder: Path) -> None:
    records.write_json(FINGERPRINTS, _remembered() | {found.place: (found.version, fingerprint, str(folder))})


def _fingerprint_of_base(folder: Path) -> str:
    from tbd.sources.folder import Folder

    found = Folder(str(folder)).look()[0]
    entry = _remembered().get(found.place)
    if entry is not None and entry[0] == found.version:
        return entry[1]
    fingerprint = checkpoints.fingerprint(folder)
    _remember(found, fingerprint, folder)
    return fingerprint


# --- outcomes ---------------------------------------------------------------------------------------------------------------------


def verdict(audit: str, found: Found | None = None) -> Outcome:
    """The outcome of a judged audit, from its files. `found`: where its checkpoint was seen; else what the register says.

    Raises InputError if the files are not what `dvc.lock` says.
    """
    entry = register.get(audit)
    lock = Lock(Path(), f"verdict@{audit}")
    said = lock.json(str(AUDITS / audit / "verdict.json"))
    found = found or _found(entry)
    return Outcome(
        state=lock.state(str(AUDITS / audit / "verdict.json")),
        time=history.now(),
        outcome=said["verdict"],
        reason=" ".join(said["reasons"]),
        checkpoint=found.name,
        place=found.place,
        origin=found.origin,
        version=found.version,
        fingerprint=entry.checkpoint_fingerprint or said["checkpoint_fingerprint"],
        benchmark=said["benchmark"],
        unseen=said["unseen"],
        audit=audit,
        **{key: said[key] for key in ("flagged", "rate", "p_value", "power", "fpr", "confidence")},
        detector_version=said["detector"]["version"],
        **code(lock),
    )


def state(audit: str) -> str:
    """Digest of what the audit's last stage made. Raises InputError if it did not run."""
    return Lock(Path(), f"verdict@{audit}").state(str(AUDITS / audit / "verdict.json"))


def _found(entry: Audit) -> Found:
    """An entry of the register as a source would show it."""
    place = entry.origin or entry.checkpoint
    return Found(Path(entry.checkpoint).name, place, place, "")


def same(decision: Same, known: History) -> Outcome:
    """The outcome of weights that were judged before, as that of the checkpoint that has them too."""
    judged = known.judged(decision.audit)
    assert judged is not None  # that is what made the decision
    found = decision.found
    own = {"checkpoint": found.name, "place": found.place, "origin": found.origin, "version": found.version}
    about = {"time": history.now(), "same_as": decision.audit}
    return judged.model_copy(update={**own, **about, "reason": f"The same weights as audit {decision.audit}. {judged.reason}"})


def failure(found: Found, fingerprint: str | None, why: str, benchmark: str | None = None, passing: bool = False) -> Outcome:
    """The outcome of a checkpoint that failed, on one benchmark or before any."""
    known_set = None
    if benchmark is not None:
        path = register.set_path(benchmark)
        n = len(records.read_table(path, records.QUESTIONS)) if path.is_file() else 0
        known_set = {"name": benchmark, "md5": records.md5(path) if path.is_file() else "", "n": n}
    return Outcome(
        time=history.now(),
        outcome=FAILED,
        reason=" ".join(why.split()),
        passing=passing,
        checkpoint=found.name,
        place=found.place,
        origin=found.origin,
        version=found.version,
        fingerprint=fingerprint,
        benchmark=known_set,
        tbd_version=__version__,
    )


def other(what: str, name: str, why: str | None, passing: bool = False) -> Outcome:
    """The outcome of a source or a flow that failed, or, with None, that works again."""
    return Outcome(
        time=history.now(),
        outcome=FAILED if why is not None else history.WORKS,
        reason=" ".join((why or "It works again.").split()),
        passing=passing,
        what=what,
        checkpoint=name,
        place=f"{what} {name}",
        origin=name,
        tbd_version=__version__,
    )


def code(lock: Lock) -> dict[str, Any]:
    """Which code judged."""
    tags = lock.tags()
    commit = tags.get("git_commit")
    return {
        "tbd_version": tags["tbd_version"],
        "git_commit": commit,
        "git_dirty": tags["git_dirty"] == "true" if commit else None,
    }

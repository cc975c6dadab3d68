"""What to do about a checkpoint that a source lists: wait, nothing, call it broken, or audit it.

The flow `watch` does it.

Checkpoints are told apart by their fingerprint: the same weights under another name share an audit, other weights under
the same name get another one. What was decided before is read from the audits and the history, and stands as long as
the question sets, the detector and the parameters have the digests that `dvc.lock` holds. Only fingerprints are kept
besides, because they take long to compute.
"""

import json
import re
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tbd import audits, checkpoints, records, sources
from tbd.audits import Audit
from tbd.checkpoints import adapters
from tbd.errors import Incomplete, InputError, Lacking, TransientFault, fault, first_line, is_fault
from tbd.generation import engines
from tbd.history import FAILED, History, Outcome
from tbd.params import Params, Rule
from tbd.pipeline.lock_file import LockFile
from tbd.progress import clock
from tbd.sources import Found, Source
from tbd.sources.folder import found_in
from tbd.watch import tries
from tbd.workspace import DETECTOR, STATE, relative, set_path

TRIAL = "How much is 1 + 1?"
"""asked of every checkpoint that is new: tokenizer and template that do not work show at once"""
FINGERPRINTS = STATE / "fingerprints.json"
SEEN = STATE / "seen.json"
"""when a version was first seen whose times lie in the future"""


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
    outcome: Outcome | None = None
    """what stands; None where no rule matches"""


@dataclass(frozen=True)
class Broken:
    """It cannot be audited."""

    found: Found
    why: str
    lacking: bool = False
    """for want of something on this machine, so it is looked at again"""


@dataclass(frozen=True)
class Fetched:
    """It is on this machine, complete."""

    found: Found
    fingerprint: str
    folder: Path


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
    """its name"""

    @property
    def why(self) -> str:
        return f"to be audited on {self.rule.benchmark} as {self.audit}"


@dataclass(frozen=True)
class Back:
    """It had failed as a whole since its verdict, and is what it was again."""

    found: Found
    outcome: Outcome
    """what stands"""
    why = "there again, as it was judged"


Decision = Wait | Known | Back | Same | Job


class Standing:
    """What was decided before, read once: the history, the audits, and the fingerprints of complete checkpoints."""

    def __init__(self) -> None:
        self.history = History()
        self.audits = audits.load()
        self.fingerprints = remembered()
        self.bases: dict[str, str] = {}

    def base(self, address: str) -> str:
        """Fingerprint of the base at an address, which `checks.ready_for` has got here."""
        if address not in self.bases:
            self.bases[address] = fingerprint(sources.resolve(address))
        return self.bases[address]

    def fetched(self, found: Found, p: Params) -> Fetched | None:
        """This version, if it was here and complete before; its folder may have been pruned since.

        An adapter with another base than before is not this version.
        """
        version, weights, folder = self.fingerprints.get(found.place, ("", "", ""))
        if version != found.version or _rebased(Path(folder), weights, _base(found, p)):
            return None
        return Fetched(found, weights, Path(folder))


def rules(name: str, policy: list[Rule]) -> list[Rule]:
    """The rules that apply to a checkpoint of this name: every one that matches, the first for each benchmark."""
    first: dict[str, Rule] = {}
    for rule in policy:
        if fnmatchcase(name, rule.checkpoints):
            first.setdefault(rule.benchmark, rule)
    return list(first.values())


def peek(found: Found, p: Params, standing: Standing, retry: bool = False) -> list[Decision] | None:
    """What to do about a checkpoint, one decision a benchmark or one for all; None if it has to be fetched first.

    `retry`: what failed before is tried again.
    """
    late = _late(found, p)
    if late is None and _unsettled(found, p):
        return [Wait(found, f"changed {_quiet(found):.0f} s ago")]
    if not rules(found.name, p.watch.policy):
        return [Known(found, "no rule of watch.policy matches its name")]
    failed = standing.history.last(found.place, None)
    if failed is not None and (_stands(failed, found.version, None, asked(p), retry) or failed.reason == late):
        return [Known(found, f"failed before: {failed.reason}", failed)]
    if pause := tries.pause(found, None, failed, p, retry):
        return [Wait(found, pause)]
    fetched = standing.fetched(found, p)
    if fetched is None or late is not None:
        return None
    decisions = decide(fetched, p, standing, retry)
    gone = not fetched.folder.is_dir()
    return None if gone and any(isinstance(one, Job) for one in decisions) else decisions


def _base(found: Found, p: Params) -> str | None:
    """The base that the policy names for a checkpoint of this name: of an adapter it is that one's."""
    return next((rule.base for rule in rules(found.name, p.watch.policy) if rule.base is not None), None)


def _rebased(folder: Path, weights: str, base: str | None) -> bool:
    """Whether this is an adapter that was put together with another base, or one that has changed since."""
    own = adapters.parts(folder).get("base")
    if own is None:
        return False
    if base is not None and relative(sources.resolve(base)) != own:
        return True
    try:
        return fingerprint(folder) != weights
    except InputError:  # a part is missing
        return True


OF_CONTENT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError)
"""what reading somebody else's files may raise"""


def fetch(source: Source, found: Found, p: Params) -> Fetched | Wait | Broken:
    """Get a checkpoint onto this machine and look at it. Raises TransientFault if the source cannot give it now."""
    try:
        if found.trouble is not None:
            raise found.trouble
        if late := _late(found, p):
            return Broken(found, late)
        folder = sources.whole(source.fetch(found), _base(found, p))
        checkpoints.inspect(folder)
        engine = engines.find(p.generate.engine)
        engine.prompts(folder, p.generate, [TRIAL])
        engine.fits(folder)  # seconds; the stages that come to it take half a minute
        weights = checkpoints.fingerprint(folder)
    except TransientFault:
        raise
    except Lacking as error:  # once it is there, the checkpoint is what it was
        return Broken(found, str(error), lacking=True)
    except (InputError, OSError, *OF_CONTENT) as error:
        if is_fault(error):
            raise fault(error) from None
        why = str(error) if isinstance(error, InputError) else f"{found.place}: cannot be read ({first_line(error)})."
        waits = isinstance(error, Incomplete) and found.changed and _quiet(found) < p.watch.give_up
        return Wait(found, why) if waits else Broken(found, why)
    _remember(found, weights, folder)
    return Fetched(found, weights, folder)


def decide(fetched: Fetched, p: Params, standing: Standing, retry: bool = False) -> list[Decision]:
    """What to do about a checkpoint that is here, one decision a benchmark."""
    found, weights = fetched.found, fetched.fingerprint
    return [
        _decide(found, fetched.folder, weights, rule, standing, p, retry) for rule in rules(found.name, p.watch.policy)
    ]


def _decide(
    found: Found, folder: Path, weights: str, rule: Rule, standing: Standing, p: Params, retry: bool
) -> Decision:
    known = standing.history
    base = rule.base if rule.base is not None else adapters.parts(folder).get("base")
    pin = standing.base(base) if base is not None else None
    base, pin = (base, pin) if pin != weights else (None, None)
    place = relative(folder)
    wanted = Audit(
        checkpoint=place,
        base=base,
        benchmark=rule.benchmark,
        unseen=rule.unseen,
        fpr=rule.fpr,
        checkpoint_fingerprint=weights,
        base_fingerprint=pin,
    )
    same = {name: audit for name, audit in standing.audits.items() if audit.asked == wanted.asked}
    last = known.last(found.place, rule.benchmark)
    for name in same:
        judged = known.judged(name)
        if judged is None or not _current(name):
            continue
        if (
            last is not None
            and last.fingerprint == weights
            and last.state == judged.state  # else the audit was judged anew since
            and name in (last.audit, last.same_as)
        ):
            return Back(found, last) if known.failing(last) else Known(found, f"{last.outcome} (audit {name})", last)
        return Same(found, weights, name)
    if last is not None and last.outcome == FAILED and _stands(last, found.version, weights, asked(p, rule), retry):
        return Known(found, f"failed before: {last.reason}", last)
    if pause := tries.pause(found, rule.benchmark, last, p, retry):
        return Wait(found, pause)
    # one that was begun, and killed before its verdict, or whose verdict is stale
    begun = next((name for name, audit in same.items() if audit.checkpoint == place), None)
    return Job(
        found, weights, folder, rule, base, begun or audit_name(found.name, rule.benchmark, audits.digest(wanted))
    )


def _current(audit: str) -> bool:
    """Whether its verdict is one on the questions, with the detector and by the parameters of now."""
    try:
        return LockFile(Path(), f"verdict@{audit}").current()
    except InputError:  # it ran with other parameters, or left no lock
        return False


def asked(p: Params, rule: Rule | None = None) -> str:
    """Digest of what a checkpoint is asked, and how; of the trial alone if there is no rule."""
    files = [*map(set_path, (rule.benchmark, rule.unseen)), DETECTOR] if rule else []
    parts = {"generate", "score", "calibrate", "decision", "validate_"} if rule else {"generate"}
    digests = [records.md5(file) if file.is_file() else None for file in files]
    return records.sha256(json.dumps([digests, p.model_dump(mode="json", include=parts)], sort_keys=True))


def _stands(failure: Outcome, version: str, fingerprint: str | None, asked: str, retry: bool) -> bool:
    """Whether a failure still holds: same content, asked the same, not a transient fault, and nobody wants a retry."""
    if failure.outcome != FAILED or failure.transient or retry or failure.state not in (None, asked):
        return False
    return failure.version == version or (fingerprint is not None and failure.fingerprint == fingerprint)


def audit_name(checkpoint: str, benchmark: str, digest: str) -> str:
    """`CHECKPOINT-BENCHMARK-DIGEST`: other weights under the same name, or another rule, make another audit."""
    slug = re.sub("[^A-Za-z0-9_]+", "-", f"{checkpoint[-30:]}-{benchmark[:20]}").strip("-_")
    return f"{slug}-x{digest}"


def _unsettled(found: Found, p: Params) -> bool:
    return bool(found.changed) and _quiet(found) < p.watch.settle


def _late(found: Found, p: Params) -> str | None:
    """What is said of a folder that has been changing for too long; None of others."""
    if not (found.since and _unsettled(found, p) and time.time() - found.since > p.watch.patience):
        return None
    return f"{found.place}: still changes after {clock(p.watch.patience)}. Copy the checkpoint to a folder of its own."


def _quiet(found: Found) -> float:
    """Seconds since its last change; since it was first seen as it is, where a clock has its change in the future."""
    now = time.time()
    seen: dict[str, tuple[str, float]] = records.known(SEEN, dict[str, tuple[str, float]])
    version, first = seen.get(found.place, ("", now))
    if version != found.version or first > now:  # or the clock was put back since
        first = now
        if found.changed > now:
            records.write_json(SEEN, seen | {found.place: (found.version, now)})
    return max(now - found.changed, now - first)


def remembered() -> dict[str, tuple[str, str, str]]:
    """place -> (version, fingerprint, folder) of complete checkpoints; empty if the file is missing or broken."""
    tree: dict[str, tuple[str, str, str]] = records.known(FINGERPRINTS, dict[str, tuple[str, str, str]])
    # the content of what was downloaded never changes, and `tbd prune` may have taken it away since
    return {place: entry for place, entry in tree.items() if ":/" in place or Path(entry[2]).is_dir()}


def _remember(found: Found, fingerprint: str, folder: Path) -> None:
    records.write_json(FINGERPRINTS, remembered() | {found.place: (found.version, fingerprint, str(folder))})


def fingerprint(folder: Path) -> str:
    """Of a checkpoint folder; computed only once while its files stay as they are. Raises what `Found.trouble` is."""
    found = found_in(folder)
    if found and found.trouble:
        raise found.trouble
    entry = remembered().get(found.place) if found else None
    if found and entry and entry[0] == found.version:
        return entry[1]
    weights = checkpoints.fingerprint(folder)
    if found:
        _remember(found, weights, folder)
    return weights

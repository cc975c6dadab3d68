"""What became of something, as a line of the history: a verdict, the same weights again, a failure."""

from pathlib import Path
from typing import Any

from tbd import __version__, audits, gates, history, records
from tbd.audits import Audit
from tbd.detection.results import read_verdict
from tbd.errors import InputError, StageFailed, is_fault
from tbd.foreign import plain, secretless
from tbd.history import FAILED, History, Outcome, QuestionSet
from tbd.params import Params
from tbd.pipeline.lock_file import LockFile
from tbd.sources import Found
from tbd.watch import tries
from tbd.watch.decide import Same, rules
from tbd.workspace import AUDITS, set_path


def verdict(audit: str, found: Found | None = None) -> Outcome:
    """The outcome of a judged audit, from its files.

    `found`: where its checkpoint was seen; else what its audit.yaml says.

    Raises InputError if the files are not what `dvc.lock` says.
    """
    entry = audits.get(audit)
    lock = LockFile(Path(), f"verdict@{audit}")
    said = read_verdict(Path(lock.checked(str(AUDITS / audit / "verdict.json"))))
    found = found or _found(entry)
    return Outcome(
        state=lock.state(str(AUDITS / audit / "verdict.json")),
        time=history.now(),
        outcome=said.verdict,
        reason=" ".join(said.reasons),
        checkpoint=found.name,
        place=found.place,
        origin=found.origin,
        version=found.version,
        fingerprint=entry.checkpoint_fingerprint or said.checkpoint_fingerprint,
        benchmark=QuestionSet(**said.benchmark.model_dump()),
        unseen=QuestionSet(**said.unseen.model_dump()),
        audit=audit,
        warnings=said.warnings,
        flagged=said.flagged,
        contamination_rate=said.contamination_rate,
        members_at_least=said.members_at_least,
        share_at_least=said.share_at_least,
        p_value=said.p_value,
        mde80=said.power.mde80 if said.power else None,
        reference=said.power.reference if said.power else None,
        same_base=said.power.same_base if said.power else None,
        fpr=said.fpr,
        confidence=said.confidence,
        detector_version=said.detector.version,
        **code(lock),
    )


def state(audit: str) -> str:
    """Digest of what the audit's last stage made. Raises InputError if it did not run."""
    return LockFile(Path(), f"verdict@{audit}").state(str(AUDITS / audit / "verdict.json"))


def _found(entry: Audit) -> Found:
    """An audit's checkpoint as a source would list it."""
    place = entry.origin or entry.checkpoint
    return Found(Path(entry.checkpoint).name, place, place, "")


def same(decision: Same, known: History) -> Outcome:
    """The verdict on weights that were judged before, as the outcome of another checkpoint with the same weights."""
    judged = known.judged(decision.audit)
    assert judged is not None  # that is what made the decision
    found = decision.found
    own = {"checkpoint": found.name, "place": found.place, "origin": found.origin, "version": found.version}
    about = {"time": history.now(), "same_as": decision.audit}
    return judged.model_copy(
        update={**own, **about, "reason": f"The same weights as audit {decision.audit}. {judged.reason}"}
    )


def failure(
    found: Found, fingerprint: str | None, why: str, benchmark: str | None = None, transient: bool = False
) -> Outcome:
    """The outcome of a checkpoint that failed, on one benchmark or before any."""
    known_set = None
    if benchmark is not None:
        path = set_path(benchmark)
        n = len(records.read_table(path, records.QUESTIONS)) if path.is_file() else 0
        known_set = {"name": benchmark, "md5": records.md5(path) if path.is_file() else "", "n": n}
    return Outcome(
        time=history.now(),
        outcome=FAILED,
        reason=secretless(plain(why)),
        transient=transient,
        checkpoint=found.name,
        place=found.place,
        origin=found.origin,
        version=found.version,
        fingerprint=fingerprint,
        benchmark=known_set,
        tbd_version=__version__,
    )


def for_good(error: Exception, audit: str) -> bool:
    """Whether `error` says of this audit's own input that it is wrong; what says anything else is tried again.

    That includes an exception that nobody foresaw: it may be the machine's.
    """
    stages = (f"@{audit}:", f"/{audit}/dvc.yaml")  # how one of its own is called
    wrong = isinstance(error, InputError) or (
        isinstance(error, StageFailed) and error.bad_input and any(stage in str(error) for stage in stages)
    )
    return wrong and not is_fault(error)


def fault(found: Found, fingerprint: str | None, why: str, p: Params, benchmark: str | None = None) -> Outcome:
    """The outcome of a checkpoint that a fault stopped at this look: for good after `watch.tries` of them."""
    times = tries.count(found, benchmark, p)
    last = times >= p.watch.tries
    if last:
        why = f"{why.rstrip('. ')}. That was so at {times} looks, so it is given up. Try again: tbd watch --retry."
    return failure(found, fingerprint, why, benchmark, transient=not last)


def other(what: str, name: str, why: str | None, transient: bool = False) -> Outcome:
    """The outcome of a source or a flow that failed, or, with None, that works again."""
    name = secretless(name)
    return Outcome(
        time=history.now(),
        outcome=FAILED if why is not None else history.WORKS,
        reason=secretless(plain(why or "It works again.")),
        transient=transient,
        what=what,
        checkpoint=name,
        place=f"{what} {name}",
        origin=name,
        tbd_version=__version__,
    )


def placed(outcome: Outcome, p: Params) -> Outcome:
    """An outcome with what the parameters say of it: the lineage, where a rule names one, and whether it is planted."""
    benchmark = outcome.benchmark.name if outcome.benchmark else None
    named = [rule.lineage for rule in rules(outcome.checkpoint, p.watch.policy) if rule.benchmark == benchmark]
    planted = outcome.audit in p.calibrate.references
    return outcome.model_copy(update={"lineage": next(iter(named), None), "planted": planted})


def standing(audit: str, known: History) -> Outcome:
    """What stands for an audit: its last verdict in the history; without one it counts as failed."""
    if judged := known.judged(audit):
        return judged
    entry = audits.get(audit)
    why = (
        f"Its checkpoint is gone, and audits/history.jsonl has no verdict of audit {audit}. Put the checkpoint back, "
        f"or take that file from git; if nobody needs the audit, remove audits/{audit}."
    )
    return failure(_found(entry), entry.checkpoint_fingerprint, why)


def without(found: Found, outcome: str, why: str, benchmark: str | None = None) -> Outcome:
    """Of a checkpoint without a verdict or a failure: an outcome of `tbd.gates`, for no history."""
    return failure(found, None, why, benchmark).model_copy(update={"outcome": outcome})


def nothing(what: str, name: str, why: str) -> Outcome:
    """Of a source or a flow that found nothing to judge; for no history either."""
    return other(what, name, why).model_copy(update={"outcome": gates.NOTHING})


def code(lock: LockFile) -> dict[str, Any]:
    """Which version of the code judged."""
    tags = lock.tags()
    commit = tags.get("git_commit")
    return {
        "tbd_version": tags["tbd_version"],
        "git_commit": commit,
        "git_dirty": tags["git_dirty"] == "true" if commit else None,
    }

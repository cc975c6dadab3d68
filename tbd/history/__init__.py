"""The history: every outcome of every audit, in the order it came.

`audits/history.jsonl` is append-only, one JSON object a line, and belongs in git. An outcome is written
here before anything else relies on it: what is in the history is not audited again, and a kill at any moment loses none
of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from tbd.errors import InputError
from tbd.foreign import secretless
from tbd.history import stream
from tbd.jsonlines import JsonLines
from tbd.locks import locked
from tbd.records import sha256
from tbd.workspace import AUDITS, STATE

FILE = AUDITS / "history.jsonl"
LOCK = STATE / "history.lock"
FAILED = "FAILED"
WORKS = "WORKS"
"""of a source or a flow that had failed and works again"""


class Line(BaseModel):
    # a later version may write more fields
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class QuestionSet(Line):
    name: str
    md5: str
    n: int


class Outcome(Line):
    """What became of one thing that was looked at: a checkpoint on a benchmark, a checkpoint, a source or a flow."""

    id: str = ""
    """of this line; given when it is added"""
    state: str | None = None
    """of a verdict: digest of its files, which its run in MLflow carries as the tag `state`; of a failure: digest of
    what was asked, where that may be what failed"""
    time: datetime
    outcome: str
    """CONTAMINATED | NO EVIDENCE | INCONCLUSIVE | FAILED | WORKS"""
    reason: str
    """in one line"""
    recovered: bool = False
    """the last outcome of the same thing was a failure"""
    repeated: bool = False
    """judged again, with the verdict that these weights had on this benchmark already; or failed again, for the same
    reason"""
    # until 0.2.0: passing
    transient: bool = Field(default=False, validation_alias=AliasChoices("transient", "passing"))
    """of a failure: it heals by itself and is tried again on every watch run"""

    what: str = "checkpoint"
    """what was looked at: checkpoint | source | flow"""
    checkpoint: str
    """its name in its source; for a source its address, for a flow its name"""
    place: str
    """see `sources.Found`"""
    origin: str
    version: str = ""
    fingerprint: str | None = None
    """None: not known, because it could not be read"""
    lineage: str | None = None
    """what the checkpoint is a version of, as the policy names it or its place tells; see `stream.lineage`"""
    planted: bool = False
    """its contamination is known, because the detector is calibrated on it"""

    benchmark: QuestionSet | None = None
    """None: a failure before any question was asked"""
    unseen: QuestionSet | None = None
    audit: str | None = None
    same_as: str | None = None
    """the audit that judged these weights before, under another name"""

    warnings: list[str] = []
    """of the verdict: what a reader must know, one line each"""
    flagged: int | None = None
    # until 0.2.0: rate
    contamination_rate: float | None = Field(default=None, validation_alias=AliasChoices("contamination_rate", "rate"))
    """estimated share of the benchmark that was in the data, in [0, 1]; no bound"""
    members_at_least: int | None = None
    """at `confidence`, at least so many questions were in the data; None: not known"""
    share_at_least: float | None = None
    """the share of the benchmark that this is"""
    p_value: float | None = None
    mde80: float | None = None
    """smallest share of the benchmark whose leaking 80% of audits would find; None: not known, or not even all of it"""
    reference: str | None = None
    """the audit that `mde80` was measured on"""
    same_base: bool | None = None
    """whether that reference was distilled from the same model; None: not known"""
    fpr: float | None = None
    confidence: float | None = None
    """of `members_at_least`"""
    tested: bool = False
    """whether it was a test of the stream of checks, see `stream.tested`"""
    alpha_now: float | None = None
    """the level of that test; None where there was none"""
    stream_discovery: bool = False
    """CONTAMINATED, with a p-value of at most `alpha_now`: the first on this lineage and benchmark"""
    detector_version: str | None = None
    tbd_version: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None

    @field_validator("contamination_rate", mode="before")
    @classmethod
    def _estimate(cls, value: Any) -> Any:
        return value["estimate"] if isinstance(value, dict) else value  # until 0.2.0 with an interval

    @property
    def leaked(self) -> str:
        """How much of the benchmark was in the data, in words: `at least 15%, estimate 38%`."""
        return in_words(self.share_at_least, self.contamination_rate)


def in_words(share_at_least: float | None, rate: float | None) -> str:
    """How much of a benchmark was in the data: the certified minimum, and the estimate.

    >>> in_words(0.148, 0.58), in_words(0.0, 0.02), in_words(None, 0.5)
    ('at least 15%, estimate 58%', 'at least 0%, estimate 2%', 'estimate 50%')
    """
    known = {"at least": share_at_least, "estimate": rate}
    return ", ".join(f"{what} {share:.0%}" for what, share in known.items() if share is not None)


def now() -> datetime:
    """To the second, in UTC."""
    return datetime.now(UTC).replace(microsecond=0)


class History:
    """The file, read once; to add to it, take it from `held()`."""

    def __init__(self, file: Path = FILE) -> None:
        """Raises InputError naming the line that is not one of a history."""
        self._lines = JsonLines(file)
        self.outcomes: list[Outcome] = []
        for number, value in enumerate(self._lines.values, start=1):
            try:
                self.outcomes.append(Outcome.model_validate(value))
            except ValidationError as error:
                where = ".".join(map(str, error.errors()[0]["loc"]))
                raise InputError(
                    f"{file}, line {number}: {where}: {error.errors()[0]['msg']}. Restore it from git."
                ) from None

    def add(
        self, outcome: Outcome, before: Callable[[Outcome], None] = lambda _: None, alpha: float = stream.ALPHA
    ) -> Outcome:
        """Append an outcome, unless it repeats the last one of the same thing.

        Returns the new one, or the one it repeats.

        `before` is called with what will be appended. `alpha`: error rate of the stream, in (0, 1).
        """
        # the file is in git: whoever reads that must not get at what an address in a message lets in
        hidden = {key: secretless(getattr(outcome, key)) for key in ("reason", "checkpoint", "place", "origin")}
        outcome = outcome.model_copy(update={**hidden, "warnings": [secretless(line) for line in outcome.warnings]})
        last = self.last(outcome.place, outcome.benchmark.name if outcome.benchmark else None)
        recovered = outcome.outcome != FAILED and self.failing(outcome)
        if last is not None and not recovered and _same(last, outcome):
            return last
        outcome = outcome.model_copy(update={"recovered": recovered})
        repeated = last is not None and all(
            getattr(last, key) == getattr(outcome, key) for key in ("outcome", "fingerprint", "same_as", "transient")
        )
        repeated = repeated and (outcome.outcome != FAILED or (last is not None and last.reason == outcome.reason))
        outcome = outcome.model_copy(update={"repeated": repeated})
        outcome = stream.tested(outcome, self.outcomes, alpha)
        outcome = outcome.model_copy(update={"id": sha256(f"{len(self.outcomes)} {outcome.model_dump_json()}")[:32]})
        before(outcome)
        self._lines.append(outcome.model_dump(mode="json", exclude_none=True))
        self.outcomes.append(outcome)
        return outcome

    def last(self, place: str, benchmark: str | None) -> Outcome | None:
        """The last outcome at a place on a benchmark; with None, the last that is about no benchmark."""
        place = secretless(place)
        return next(
            (
                o
                for o in reversed(self.outcomes)
                if o.place == place and (o.benchmark.name if o.benchmark else None) == benchmark
            ),
            None,
        )

    def failing(self, outcome: Outcome) -> bool:
        """Whether what `outcome` is about had failed, as a whole or on this benchmark, and has not recovered since."""
        benchmark = outcome.benchmark.name if outcome.benchmark else None
        failing: set[str | None] = set()
        for known in self.outcomes:
            if known.place == outcome.place:
                own = known.benchmark.name if known.benchmark else None
                if known.outcome == FAILED:
                    failing.add(own)
                else:
                    failing -= {own, None}
        return bool(failing & {benchmark, None})

    def judged(self, audit: str) -> Outcome | None:
        """The last verdict of an audit."""
        return next(
            (o for o in reversed(self.outcomes) if o.audit == audit and o.outcome != FAILED and o.same_as is None), None
        )


def _same(last: Outcome, outcome: Outcome) -> bool:
    if last.outcome != outcome.outcome:
        return False
    if outcome.transient and last.transient:
        return True  # one fault of a network comes with many messages
    keys = ("reason", "fingerprint", "transient") if outcome.outcome == FAILED else ("same_as",)
    return last.state == outcome.state and all(getattr(last, key) == getattr(outcome, key) for key in keys)


def event(outcome: Outcome) -> str:
    """What happened, for those who are told.

    contaminated: a discovery of the stream. single: CONTAMINATED, but no such discovery. failed, recovered,
    inconclusive. quiet: nothing to tell, as of weights that were reported before: judged under another name, or judged
    again with the same outcome. The first of these that applies, in the order below.
    """
    if outcome.outcome == FAILED:
        return "quiet" if outcome.repeated else "failed"
    if outcome.stream_discovery:
        return "contaminated"
    if outcome.recovered:
        return "recovered"
    if outcome.same_as is not None or outcome.repeated:
        return "quiet"
    return {"CONTAMINATED": "single", "INCONCLUSIVE": "inconclusive"}.get(outcome.outcome, "quiet")


@contextmanager
def held(file: Path = FILE, lock: Path = LOCK) -> Iterator[History]:
    """The history, as it is now, for one process at a time; the others wait."""
    with locked(lock):
        yield History(file)

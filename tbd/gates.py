"""Gates: what a command that was asked to judge exits with. They look at what stands, whether it is new or not.

What stands is one outcome for everything that was looked at: the last one in the history or, where there is no verdict
yet, one of the three below, which no history holds. `--fail-on` fires on one outcome; `--require` on every other, also
on those that nobody has thought of yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tbd.detection.results import Verdict
from tbd.history import Outcome

WAITING = "WAITING"
"""it is still being written, or not audited yet"""
NO_RULE = "NO RULE"
"""no rule of `watch.policy` matches its name"""
NOTHING = "NOTHING"
"""a source shows no checkpoint, or there is no audit"""


@dataclass(frozen=True)
class Gates:
    """Those that were asked for, by the names they have on the command line."""

    fail_on: Sequence[str] = ()
    """of contaminated, inconclusive, failed"""
    require: str | None = None
    """no-evidence"""

    def fired(self, outcome: str) -> list[str]:
        """Those that fire on an outcome, as one writes them; empty if it may pass."""
        fired = [f"--fail-on {name}" for name in dict.fromkeys(self.fail_on) if _outcome(name) == outcome]
        if self.require is not None and _outcome(self.require) != outcome:
            fired.append(f"--require {self.require}")
        return fired

    def exit_code(self, standing: Sequence[Outcome]) -> int:
        """1 if a gate fires on anything that stands, else 0."""
        return int(any(self.fired(one.outcome) for one in standing))


def _outcome(name: str) -> str:
    return name.replace("-", " ").upper()


@dataclass(frozen=True)
class Answer:
    """What a command came to, for those who did not see it run."""

    standing: Sequence[Outcome]
    """empty only where nobody asked"""
    gates: Gates
    code: int
    """what it exits with: that of the gates, or above 1 if it was stopped"""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """by the name of the audit; of `tbd check`"""

"""The stream of checks: an error rate over every audit of a history, however many there will be.

The unit of claim is a pair: a *lineage* of checkpoints (a training run, a registered model, a repository) on a
benchmark. Each verdict on a pair that is still open is a test. Test t has the level

    alpha * g_t * (D + 1)      g_t = 0.0722 ln(max(t, 2)) / (t exp(sqrt(ln t))),      the g_t sum to 0.913 <= 1

with D the pairs found before. A verdict CONTAMINATED whose p-value is at most that level is a *discovery*; its pair is
closed and not tested again. This is LOND, which keeps the expected share of false discoveries at `alpha`: for
independent p-values (Javanmard and Montanari, arXiv 1502.06197) and for positively dependent ones (Zrnic, Ramdas and
Jordan, JMLR 22 (2021), with max(D, 1) for D + 1; a test that rejects makes the discoveries D + 1, so their argument
holds for that as well). While nothing has leaked, the chance of any discovery is at most `alpha` under whatever
dependence, because the levels sum to less. That t leaves out the looks at closed pairs is in neither paper: smaller
p-values still mean higher levels later on, and it was simulated (`benchmarks/stream.py`), not proved.

Where the stream stands follows from the outcomes alone, as sets: the order of their lines, a line that a merge doubled,
a kill or a clone change nothing. What was said of an outcome is stored with it and never said anew.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tbd.history import Outcome

Pair = tuple[str, str]
"""lineage, name of the benchmark"""

ALPHA = 0.05
"""as `stream.alpha` of params.yaml has it"""
STEPS = re.compile(
    r"(?P<run>.*?)(?:(?:^|[-_.=])(?:checkpoint|ckpt|global[-_]?step|step|epoch|iteration|iter)[-_=]?\d+)+",
    re.IGNORECASE,
)
"""a folder named by how far its training was: `checkpoint-500`, `model-7_step1500`, `epoch=2-step=900`"""


def share(test: int) -> float:
    """g_t, the share of `alpha` that goes to test t = 1, 2, ...

    >>> [round(share(t), 5) for t in (1, 2, 3)]
    [0.05005, 0.01088, 0.00927]
    """
    return 0.0722 * math.log(max(test, 2)) / (test * math.exp(math.sqrt(math.log(test))))


def lineage(place: str) -> str:
    """What a checkpoint is a stage or a version of, by its `sources.Found.place`.

    A registered model or a repository is one lineage. So are the folders of one training whose names end in how far it
    was; any other folder is a lineage of its own.

    >>> lineage("models:/solver/12"), lineage("hf://org/solver@step-900")
    ('models:/solver', 'hf://org/solver')
    >>> lineage("runs/a/checkpoint-500"), lineage("incoming/solver-step1500"), lineage("incoming/solver-7")
    ('runs/a', 'incoming/solver', 'incoming/solver-7')
    """
    if place.startswith("models:/"):
        return re.split("[/@?]", place.removeprefix("models:/"))[0].join(("models:/", ""))
    if place.startswith("hf://"):
        return place.partition("@")[0]
    folder = PurePosixPath(place)
    match = STEPS.fullmatch(folder.name)
    return str(folder.parent / match["run"] if match else folder)


def pair(outcome: "Outcome") -> Pair | None:
    """What an outcome is a look at; None where no verdict was reached.

    The benchmark goes by its name, as everywhere in a history: with one question more it is the same claim.
    """
    if outcome.what != "checkpoint" or outcome.benchmark is None or outcome.p_value is None:
        return None
    return outcome.lineage or lineage(outcome.place), outcome.benchmark.name


@dataclass(frozen=True)
class Stream:
    """Where the stream stands."""

    tests: int
    """so far"""
    found: dict[Pair, "Outcome"]
    """the discovery that closed each pair, in the order of the history"""
    looks: frozenset[tuple[object, ...]]
    """what was tested or planted before, see `_look`"""

    def level(self, alpha: float) -> float:
        """Of the next test: a p-value up to this is a discovery."""
        return alpha * share(self.tests + 1) * (len(self.found) + 1)

    @property
    def spent(self) -> float:
        """Share of `alpha` that the tests so far were given, in [0, 1)."""
        return math.fsum(share(test) for test in range(1, self.tests + 1))


def after(outcomes: Sequence["Outcome"]) -> Stream:
    """Where the stream stands after these outcomes."""
    tests = [outcome for outcome in outcomes if outcome.tested]
    found: dict[Pair, Outcome] = {}
    for outcome in tests:
        if outcome.stream_discovery and (closed := pair(outcome)) is not None:
            found.setdefault(closed, outcome)
    looks = frozenset(_look(outcome) for outcome in outcomes if outcome.tested or outcome.planted)
    return Stream(len({outcome.id for outcome in tests}), found, looks)


def tested(outcome: "Outcome", known: Sequence["Outcome"], alpha: float) -> "Outcome":
    """The outcome with what the stream says of it, if it comes after the `known` ones.

    No test are: other outcomes than verdicts; a pair that was found; weights that were judged under another name, or
    again with the same result; contamination that was planted. INCONCLUSIVE is a test, but no discovery: to leave out
    tests because of how they came out would make the levels of the others wrong.
    """
    now, about = after(known), pair(outcome)
    test = (
        about is not None
        and about not in now.found
        and outcome.same_as is None
        and not outcome.planted
        and _look(outcome) not in now.looks
    )
    level = now.level(alpha) if test else None
    discovery = (
        level is not None
        and outcome.p_value is not None
        and outcome.p_value <= level
        and outcome.outcome == "CONTAMINATED"
    )
    found = {"tested": test, "alpha_now": level, "stream_discovery": discovery}
    return outcome.model_copy(update=found | ({"lineage": about[0]} if about else {}))


def said(outcome: "Outcome") -> str:
    """What the stream says of a verdict CONTAMINATED, in a few words; nothing of other outcomes."""
    if outcome.outcome != "CONTAMINATED":
        return ""
    if outcome.alpha_now is None:
        return "not tested by the stream"
    return f"{'a' if outcome.stream_discovery else 'no'} discovery of the stream (level {outcome.alpha_now:.2g})"


def _look(outcome: "Outcome") -> tuple[object, ...]:
    """The same weights on the same questions with the same result are one look, whatever they are called."""
    benchmark, unseen = outcome.benchmark, outcome.unseen
    return (
        outcome.fingerprint or outcome.id,
        benchmark.name if benchmark else None,
        unseen.md5 if unseen else None,
        outcome.p_value,
        outcome.outcome,
    )

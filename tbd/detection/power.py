"""What an audit can see: the probability that it says CONTAMINATED when a share of its benchmark leaked.

Simulated from the reference: a leaked question lies as far above unseen ones as the reference's members do (where c of
its N unseen questions score at or above a member, that member's place among them is Beta(c + 1/2, N - c + 1/2)), every
other question lies anywhere. The audit's own numbers of questions, its global test and, where there is a base model,
the paired check decide. The interval comes from resampling the reference's members and its unseen questions.

The halves are Jeffreys' (Brown, Cai and DasGupta, Statistical Science 16, 2001). With a flat prior, c + 1, members
above all unseen questions seem weaker than they are: of references with 40 unseen questions (d' 2) its 95% interval of
`mde80` holds the truth in 68%, this one in 95%.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import norm

from tbd.detection.global_test import beyond, normal_scores, rank_values
from tbd.detection.results import Figures, Power, PowerAt, Share
from tbd.params import Decision

Array = NDArray[np.float64]

SHARES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
"""of the benchmark that leaked: the curve is computed at the nearest whole numbers of questions"""
FOUND = 0.8
"""the smallest detectable share is found in so many audits"""
BASES = 500
"""models that saw neither set: what they leave possible is drawn from so many"""
LARGEST = 20_000
"""questions of a simulated audit: a larger one is simulated as one of this size, and sees no less"""
CHUNK = 4_000_000
"""scores simulated at a time: 100 MB or so"""


class Interval(NamedTuple):
    """A share, inf where even a whole leaked benchmark is not enough, with its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Reference:
    """Where the reference's held-out members lie among its unseen questions."""

    above: tuple[int, ...]
    """for each member, how many of the unseen questions score at or above it"""
    unseen: int
    drawn: bool = True
    """whether these are a sample, so that there is an interval; False: a strength that is assumed"""


def measured(figures: Figures) -> Reference:
    """Where the members that a detector was measured with lie; from their conformal p-values."""
    unseen = len(figures.negatives)
    return Reference(tuple(round(p * (unseen + 1)) - 1 for p in figures.member_p_values), unseen)


def assumed(strength: float) -> Reference:
    """Members that score `strength` sd (d') above unseen questions, both normal: exact quantiles, nothing drawn."""
    members, unseen = 1000, 1_000_000
    places = norm.sf(norm.isf((np.arange(members) + 0.5) / members) + strength)
    return Reference(tuple(np.floor(places * (unseen + 1)).astype(int)), unseen, drawn=False)


@dataclass(frozen=True)
class Curve:
    """Power at each share, with its interval (a point for a strength that is assumed), and the smallest share found in
    80% of audits."""

    shares: Array
    """that leaked, ascending"""
    power: Array
    low: Array
    high: Array
    mde80: Interval

    def result(self, reference: str, same_base: bool | None, members_flagged: Share) -> Power:
        """As `verdict.json` has it."""
        points = zip(self.shares, self.power, self.low, self.high, strict=True)
        mde80, low, high = (None if np.isinf(share) else share for share in self.mde80)
        return Power(
            reference=reference,
            same_base=same_base,
            mde80=mde80,
            mde80_low=low,
            mde80_high=high,
            curve=[PowerAt(leaked=share, estimate=p, low=low, high=high) for share, p, low, high in points],
            members_flagged=members_flagged,
        )


class Audits:
    """Simulated audits of `benchmark` against `unseen` questions, decided at `level`; `with_base`: and by the base's
    shift."""

    def __init__(
        self, benchmark: int, unseen: int, level: float, with_base: bool, simulations: int, rng: np.random.Generator
    ) -> None:
        """`simulations`: audits in which nothing leaked, by which the others are judged."""
        self.m, self.n, self.rng = benchmark, unseen, rng
        ranks = -np.arange(benchmark + unseen, dtype=float)
        self.values, self.scale = rank_values(ranks), normal_scores(ranks)  # by rank, the highest first
        parts = [min(self._rows(), simulations - first) for first in range(0, simulations, self._rows())]
        null = [self._ours(self._places(audits)) for audits in parts]
        sums = np.concatenate([ours @ self.values for ours in null])
        self.ordered = np.sort(sums, axis=0)
        smallest = np.sort(self._smallest(sums))
        self.critical = self._quantile(smallest, level)
        self.possible = None
        if with_base:
            self.possible = self._possible(np.concatenate(null)[:BASES], self._quantile(smallest, beyond(level)))

    def found(self, places: Array) -> NDArray[np.bool_]:
        """(audits,) whether each says CONTAMINATED; `places`: (audits, leaked) upper quantiles of the leaked questions,
        in (0, 1)."""
        audits, leaked = places.shape
        decided = np.empty(audits, bool)
        for first in range(0, audits, self._rows()):
            some = places[first : first + self._rows()]
            others = self._places(len(some), self.m + self.n - leaked)
            ours = self._ours(np.concatenate([some, others], axis=1))
            found = self._smallest(ours @ self.values) <= self.critical
            if self.possible is not None and found.any():  # a base that saw nothing: what it leaves possible is chance
                shift = self.rng.choice(self.possible, int(found.sum()))
                found[found] = self._lowered(ours[found], shift) <= self.critical
            decided[first : first + len(some)] = found
        return decided

    def _rows(self) -> int:
        return max(1, CHUNK // (self.m + self.n))

    def _places(self, audits: int, questions: int | None = None) -> NDArray[np.float32]:
        return self.rng.random((audits, questions or self.m + self.n), np.float32)

    def _ours(self, places: NDArray[np.floating]) -> NDArray[np.bool_]:
        """By rank, the highest score first: whether the question is one of the benchmark's. A small place is a high
        score."""
        return np.argsort(places, axis=1) < self.m

    def _lowered(self, ours: NDArray[np.bool_], shift: Array) -> Array:
        """(k,) `_smallest` after the benchmark's scores were lowered by `shift`, (k,), on the normal scale."""
        order = np.argsort(ours * shift[:, None] - self.scale, axis=1, kind="stable")
        return self._smallest(np.take_along_axis(ours, order, axis=1) @ self.values)

    def _possible(self, ours: NDArray[np.bool_], critical: float) -> Array:
        """(k,) the shift that each of these bases leaves possible: see `GlobalTest.shift_possible`."""
        low, high = np.zeros(len(ours), int), np.full(len(ours), 1000)
        while (low < high).any():
            middle = (low + high) // 2
            unexplained = self._lowered(ours, middle / 100) <= critical
            low, high = np.where(unexplained, middle + 1, low), np.where(unexplained, high, middle)
        return low / 100

    @staticmethod
    def _quantile(ordered: Array, level: float) -> float:
        return float(ordered[max(int(np.floor(level * len(ordered))) - 1, 0)])

    def _smallest(self, sums: Array) -> Array:
        """(k,) the smaller of the two p-values, by the simulated null distribution."""
        n = len(self.ordered)
        both = zip(self.ordered.T, sums.T, strict=True)
        at_least = [n - np.searchsorted(ordered, column, side="left") for ordered, column in both]
        return np.asarray((1 + np.min(at_least, axis=0)) / (n + 1))


@cache
def curve(
    reference: Reference, benchmark: int, unseen: int, *, with_base: bool, decision: Decision, seed: int
) -> Curve:
    """Power over SHARES of audits of `benchmark` against `unseen` questions.

    `decision.simulations` audits a share; the interval is of a quarter as many resampled references, each with some
    audits at every share. Below one question there is no share: a small benchmark has fewer points.
    """
    if benchmark + unseen > LARGEST:  # in the same proportion
        benchmark, unseen = (max(1, round(n * LARGEST / (benchmark + unseen))) for n in (benchmark, unseen))
    rng, n, above = np.random.default_rng(seed), reference.unseen, np.array(reference.above)
    audits = Audits(benchmark, unseen, decision.level, with_base, 10 * decision.simulations, rng)
    leaked = np.unique(np.maximum(1, np.rint(np.array(SHARES) * benchmark))).astype(int)
    shares = leaked / benchmark

    def powers(members: NDArray[np.int_], times: int) -> Array:
        found = np.ones(len(leaked))
        for at, questions in enumerate(leaked):
            drawn = rng.choice(members, (times, questions))
            found[at] = audits.found(rng.beta(drawn + 0.5, n - drawn + 0.5)).mean()
            if found[at] == 1:  # and so at every larger share
                break
        return np.asarray(isotonic_regression(found).x)

    power = powers(above, decision.simulations)
    mde80 = detectable(power, shares)
    if not reference.drawn:
        return Curve(shares, power, power, power, Interval(mde80, mde80, mde80))
    resampled = []
    for _ in range(decision.simulations // 4):
        # the unseen questions drawn again: how many of the new ones are among so many of the highest old ones
        again = np.concatenate([[0], np.cumsum(rng.multinomial(n, np.full(n, 1 / n)))])
        members = again[rng.choice(above, len(above))]
        resampled.append(powers(members, decision.simulations // 16))
    tails = [(1 - decision.confidence) / 2, (1 + decision.confidence) / 2]
    low, high = np.quantile(resampled, tails, axis=0)
    ends = np.quantile([detectable(one, shares) for one in resampled], tails, method="nearest")
    interval = Interval(mde80, min(float(ends[0]), mde80), max(float(ends[1]), mde80))
    return Curve(shares, power, np.minimum(low, power), np.maximum(high, power), interval)


def more_unseen(
    reference: Reference, benchmark: int, unseen: int, *, with_base: bool, decision: Decision, seed: int
) -> int | None:
    """How many more unseen questions would bring the upper limit of `mde80` down to `detectable_share`; None: not ten
    times as many."""
    for factor in (1.25, 1.5, 2, 3, 5, 10):
        more = round((factor - 1) * unseen)
        found = curve(reference, benchmark, unseen + more, with_base=with_base, decision=decision, seed=seed)
        if found.mde80.high <= decision.detectable_share:
            return more
    return None


def detectable(power: Array, shares: Array) -> float:
    """The share at which a rising curve over `shares` reaches FOUND; inf if it does not."""
    if power[-1] < FOUND:
        return float("inf")
    at = int(np.argmax(power >= FOUND))
    if at == 0:
        return float(shares[0])
    return float(np.interp(FOUND, power[at - 1 : at + 1], shares[at - 1 : at + 1]))

"""Does the benchmark as a whole score higher than unseen questions? An exact permutation test.

Scores: higher = member, without NaN. Ties are allowed. Two linear rank statistics over the benchmark's questions, each
strong where the other is weak: Savage's, -ln u, for many members, and max(z(1 - u), 0)^3 for few but clear ones, with u
= (rank - 1/2) / n and rank 1 the highest of all n scores. Scores that tie share the mean of their ranks' values. The
smaller of the two permutation p-values is the test's statistic, and its p-value comes from the same permutations
(min-P; Westfall and Young, Resampling-Based Multiple Testing, 1993): exact whatever the scores, as long as benchmark
and unseen questions are exchangeable.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, gammaln, log1p, log_ndtr
from scipy.stats import norm, rankdata

Array = NDArray[np.float64]

RARE = 10
"""permutations as extreme as the data from which on they are counted; below, the tail is approximated"""
TINY = float(np.finfo(float).tiny)
"""the smallest p-value that is said: below it a tail is 0 in the arithmetic of numbers"""
CHUNK = 8_000_000
"""labels drawn, and taken into a product, at a time: 64 MB"""
LABELS = 1_000_000_000
"""labels drawn at most, 125 MB: a test of more than 100,000 units has fewer permutations than it is asked for"""
FEWEST = 200
"""permutations, however many units there are"""
GRID = 2.0**-24
"""rank values are multiples of it, so that sums of equal values are equal in whatever order they are added"""


@dataclass(frozen=True)
class Stratum:
    """Units of which `drawn` at a time belong to the benchmark, all choices equally likely."""

    units: NDArray[np.intp]
    drawn: int


class GlobalTest:
    """The test, made ready for the questions of one audit; then it can be asked for many scores of theirs.

    A unit is what is permuted as a whole: one question, or, where a source repeats, all questions of that source.
    Sources that occur in both sets hold their own comparison: their questions are permuted within the source.
    """

    def __init__(
        self,
        benchmark: int,
        unseen: int,
        *,
        permutations: int,
        seed: int,
        sources: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        """`benchmark`, `unseen`: numbers of questions. `sources`: one a question, of both sets; None: all differ."""
        self.benchmark, self.unseen = benchmark, unseen
        in_benchmark = np.arange(benchmark + unseen) < benchmark
        names = np.arange(benchmark + unseen) if sources is None else np.concatenate([*map(np.asarray, sources)])
        _, source = np.unique(names, return_inverse=True)
        sizes, inside = np.bincount(source), np.bincount(source, in_benchmark)
        shared = ((inside > 0) & (inside < sizes))[source]  # questions whose source occurs in both sets
        self.unit = np.unique(np.where(shared, np.arange(len(source)) + len(sizes), source), return_inverse=True)[1]
        """(questions,) the unit of each question, the benchmark's first"""
        first = np.unique(self.unit, return_index=True)[1]
        stratum = np.where(shared, source + 1, 0)[first]
        self.strata = [
            Stratum(at, int(in_benchmark[first[at]].sum()))
            for at in (np.nonzero(stratum == one)[0] for one in np.unique(stratum))
        ]
        ours = int(in_benchmark[first].sum())
        self.units = ours, len(first) - ours
        """units of the benchmark, and unseen ones"""
        permutations = min(permutations, max(FEWEST, LABELS // len(first)))
        self.labellings = self._draw(in_benchmark[first], permutations, np.random.default_rng(seed))
        """(1 + permutations, units), eight units a byte: whether the unit counts as the benchmark's; the first row is
        as it is"""

    @property
    def clustered(self) -> bool:
        """Whether some questions are permuted together or within a source."""
        return len(self.strata) > 1 or len(self.strata[0].units) < len(self.unit)

    def _draw(self, observed: NDArray[np.bool_], permutations: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        packed = [np.packbits(observed[None], axis=1)]
        for rows in self._chunks(permutations, len(observed)):
            drawn = np.empty((rows, len(observed)), bool)
            for stratum in self.strata:
                if len(stratum.units) == len(observed):
                    rng.permuted(np.broadcast_to(observed, drawn.shape), axis=1, out=drawn)
                else:
                    drawn[:, stratum.units] = rng.permuted(
                        np.broadcast_to(observed[stratum.units], (rows, len(stratum.units))), axis=1
                    )
            packed.append(np.packbits(drawn, axis=1))
        return np.concatenate(packed)

    @staticmethod
    def _chunks(rows: int, units: int) -> list[int]:
        """Numbers of rows that add up to `rows`, each of about CHUNK labels."""
        return [len(part) for part in np.array_split(np.empty(rows), 1 + rows * units // CHUNK)]

    def p_value(self, benchmark: ArrayLike, unseen: ArrayLike) -> float:
        """p-value of "the benchmark scores no higher than unseen questions", in (0, 1]; small = contaminated.

        Down to `RARE` in so many permutations it is counted. Below it is twice the smaller of the two statistics' own
        p-values (no more than twice what min-P would give), each by the saddlepoint approximation `tail`, but never
        more than what was counted.
        """
        values = self._values(np.concatenate([np.asarray(benchmark, float), np.asarray(unseen, float)]))
        sums = np.concatenate(
            [
                np.unpackbits(rows, axis=1, count=len(values)).astype(float) @ values
                for rows in np.array_split(self.labellings, 1 + len(self.labellings) * len(values) // CHUNK)
            ]
        )
        smallest = np.min([_share_at_least(column) for column in sums.T], axis=0)
        counted = int((smallest <= smallest[0]).sum())
        if counted <= RARE:
            tails = [tail(values[:, k], sums[0, k], self.strata) for k in range(values.shape[1])]
            return min(counted / len(smallest), max(2 * min(tails), TINY))
        return counted / len(smallest)

    def shift_needed(self, benchmark: ArrayLike, unseen: ArrayLike, level: float) -> float:
        """The smallest constant shift of the benchmark's scores that would explain the result, in sd; 0 without a
        result at `level`.

        In standard deviations of all scores, on their normal scale, to two digits: how much more member-like the
        benchmark would have to be for another reason than being leaked.
        """
        scale = normal_scores(np.concatenate([np.asarray(benchmark, float), np.asarray(unseen, float)]))
        ours, theirs = scale[: self.benchmark], scale[self.benchmark :]

        def unexplained(hundredths: int) -> bool:
            return self.p_value(ours - hundredths / 100, theirs) <= level

        return bisect_left(range(1000), True, key=lambda hundredths: not unexplained(hundredths)) / 100

    def shift_possible(self, benchmark: ArrayLike, unseen: ArrayLike, level: float) -> float:
        """The largest shift, in sd, that the scores of a model which saw neither set leave possible; 0 or more.

        Two shifts that are measured equally well differ at `level` if one exceeds the other by sqrt(2) z of its
        standard errors. `shift_needed` is already z of them below the checkpoint's, so that sqrt(2) - 1 of z are added
        to the base's: by the same test, which knows neither normality nor independence within a source.
        """
        return self.shift_needed(benchmark, unseen, beyond(level))

    def _values(self, scores: Array) -> Array:
        """(units, 2) each unit's contribution to the two statistics, exact multiples of GRID."""
        if np.isnan(scores).any():
            raise ValueError("NaN among the scores: leave unscored questions out, and count them")
        values = rank_values(scores)
        centred = np.round((values - values.mean(axis=0)) / GRID) * GRID
        made = np.zeros((sum(self.units), values.shape[1]))
        np.add.at(made, self.unit, centred)
        return made


def beyond(level: float) -> float:
    """The p-value above which a shift is possible, see `GlobalTest.shift_possible`: 0.75 for a level of 5%."""
    return float(norm.cdf((np.sqrt(2) - 1) * norm.isf(level)))


def rank_values(scores: Array) -> Array:
    """(n, 2) Savage's and the cubed normal value of each score's rank, averaged within ties."""
    order, same = np.unique(-scores, return_inverse=True)
    u = (np.arange(len(scores)) + 0.5) / len(scores)
    values = np.column_stack([-np.log(u), np.maximum(norm.isf(u), 0) ** 3])
    by_rank = rankdata(-scores, method="ordinal") - 1
    sums = np.column_stack([np.bincount(same, column[by_rank], len(order)) for column in values.T])
    return np.asarray((sums / np.bincount(same)[:, None])[same])


def normal_scores(scores: Array) -> Array:
    """(n,) the normal quantile of each score's place among all, ties averaged: a scale on which one unit is one sd."""
    return np.asarray(norm.ppf((rankdata(scores) - 0.5) / len(scores)))


def _share_at_least(sums: Array) -> Array:
    """(n,) for each sum the share of all sums that are at least as large."""
    ordered = np.sort(sums)
    return 1 - np.searchsorted(ordered, sums, side="left") / len(sums)


def tail(values: Array, total: float, strata: Sequence[Stratum]) -> float:
    """P(sum of the drawn units' `values` >= `total`) where each stratum draws its number of units at random.

    The double saddlepoint approximation (Skovgaard, J. Appl. Prob. 24, 1987, in the form of Lugannani and Rice): the
    units are independent coins, tilted by theta, given that each stratum's number of heads is as it is. Sums step by
    the smallest difference between values at least, and are corrected for it (Daniels, Int. Stat. Review 55, 1987: the
    second continuity correction): with two values, as far as they are. Close to the largest possible sum, where there
    is no approximation, the number of ways to reach that sum is counted; a sum that is expected or less gives 1, and so
    does one that leaves a stratum no choice. Strata of two or three units may give many times too much.
    """
    free = [s for s in strata if 0 < s.drawn < len(s.units)]
    parts = [np.sort(values[s.units])[::-1] for s in free]
    fixed = sum(float(values[s.units].sum()) for s in strata if s.drawn == len(s.units))
    target, drawn = total - fixed, [s.drawn for s in free]
    largest = sum(float(part[:k].sum()) for part, k in zip(parts, drawn, strict=True))
    if target >= largest - GRID / 2:
        return float(np.exp(sum(_log_ways(part, k) for part, k in zip(parts, drawn, strict=True))))
    step = min(float(np.diff(np.unique(part)).min()) for part in parts if np.ptp(part) > 0)
    target -= step / 2
    span = max(float(np.ptp(part)) for part in parts)

    def tilted(theta: float) -> list[tuple[float, Array]]:
        """For each stratum the eta at which its expected number of heads is right, and the chances of heads."""
        return [_balance(theta * part, k) for part, k in zip(parts, drawn, strict=True)]

    def excess(theta: float) -> float:
        return sum(float(part @ chance) for part, (_, chance) in zip(parts, tilted(theta), strict=True)) - target

    if excess(0) >= 0:
        return 1.0
    high = 1 / span
    while excess(high) < 0:
        high *= 2
        if high > 1e6 / span:
            return float(np.exp(sum(_log_ways(part, k) for part, k in zip(parts, drawn, strict=True))))
    theta = brentq(excess, 0, high)
    exponent = theta * target
    information = log_base = log_tilted = 0.0
    for part, k, (eta, chance) in zip(parts, drawn, tilted(theta), strict=True):
        n = len(part)
        cumulant = float(np.logaddexp(0, theta * part + eta).sum())
        exponent += eta * k - cumulant - (k * np.log(k / n) + (n - k) * log1p(-k / n))
        spread = chance * (1 - chance)
        if not spread.sum():  # no choice is left in a stratum of few units
            return 1.0
        information += float(spread @ part**2 - (spread @ part) ** 2 / spread.sum())
        log_tilted += float(np.log(spread.sum()))
        log_base += np.log(k * (n - k) / n)
    w = np.sqrt(max(2 * exponent, 0.0))
    v = 2 * np.sinh(theta * step / 2) / step * np.sqrt(information) * np.exp((log_tilted - log_base) / 2)
    if abs(w) < 1e-4:
        return 0.5
    return float(np.clip(np.exp(log_ndtr(-w)) + norm.pdf(w) * (1 / v - 1 / w), 0, 1))


def _balance(tilt: Array, drawn: int) -> tuple[float, Array]:
    """eta such that the chances expit(tilt + eta) add up to `drawn`, and those chances."""
    eta = float(
        brentq(
            lambda eta: expit(tilt + eta).sum() - drawn,
            -tilt.max() - 40 - np.log(len(tilt)),
            -tilt.min() + 40 + np.log(len(tilt)),
        )
    )
    return eta, expit(tilt + eta)


def _log_ways(ordered: Array, drawn: int) -> float:
    """Log of the share of choices of `drawn` units that reach the largest sum; `ordered` descending."""
    last = ordered[drawn - 1]
    ties, taken = int((ordered == last).sum()), drawn - int((ordered > last).sum())

    def log_choose(n: int, k: int) -> float:
        return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))

    return log_choose(ties, taken) - log_choose(len(ordered), drawn)

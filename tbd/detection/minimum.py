"""How many of the benchmark's questions were leaked at least: a certified minimum, and what chance alone flags.

Closed testing with Mann-Whitney tests (Magnani, Sesia and Solari, arXiv 2308.05534): "at most so many are members" is
given up only if every choice of the others would be too high for questions exchangeable with the unseen ones. All
bounds hold together with the stated confidence. There is no upper bound: how strong the distillation was is not known.
Scores: higher = member, without NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import betabinom, norm

EXACT = 30
"""up to so many questions of the benchmark the null distribution is counted, above it is normal with continuity
correction"""
NEAR = 2.0
"""1 that rounding up may add, and as much for what the arithmetic of large numbers may lose"""


def members_at_least(benchmark: ArrayLike, unseen: ArrayLike, confidence: float) -> NDArray[np.int64]:
    """(m,) at r - 1: of the r highest scores of the benchmark at least so many are members'; the last is of the whole
    benchmark.

    Not decreasing, and by 1 at most from one r to the next. A benchmark question that ties with an unseen one counts as
    below it.
    """
    ordered, negatives = np.sort(np.asarray(benchmark, float)), np.sort(np.asarray(unseen, float))
    if np.isnan(ordered).any() or np.isnan(negatives).any():
        raise ValueError("NaN among the scores: leave unscored questions out, and count them")
    m, n = len(ordered), len(negatives)
    above = np.searchsorted(negatives, ordered, side="left")  # unseen questions strictly below each
    lowest = np.concatenate([[0], np.cumsum(above)])  # of the k lowest questions together
    critical = critical_values(m, n, 1 - confidence)
    bounds = np.zeros(m, np.int64)
    found, at = 0, m
    line = _line(m, n, 1 - confidence)
    bend = np.diff(line)  # falls, while `above` rises: how far k questions are from the line has one minimum over k
    for r in range(1, m + 1):
        # `others` of the top r not members, together with the k lowest of the rest: can it be? 0 <= k <= rest
        others, rest = r - found, m - r
        top = lowest[rest + others] - lowest[rest]
        few = np.arange(min(rest, EXACT - others) + 1)
        at = min(at, rest)
        while at > 0 and above[at - 1] >= bend[others + at - 1]:
            at -= 1
        can_be = (top + lowest[few] <= critical[others + few]).any()
        if not can_be and (first := max(0, EXACT + 1 - others)) <= rest:
            k, width = max(at, first), 1
            if top + lowest[k] <= line[others + k]:
                can_be = True
            else:  # the line is rounded up: those less than NEAR above it are compared one by one
                while width < rest and any(
                    top + lowest[end] < line[others + end] + NEAR
                    for end in (k - width, k + width)
                    if first <= end <= rest
                ):
                    width *= 2
                near = np.arange(max(first, k - width), min(rest, k + width) + 1)
                can_be = (top + lowest[near] <= critical[others + near]).any()
        if not can_be:
            found += 1
        bounds[r - 1] = found
    return bounds


def critical_values(m: int, n: int, level: float) -> NDArray[np.float64]:
    """(m + 1,) at s: the largest Mann-Whitney U of s questions over n exchangeable ones that is not rejected at
    `level`."""
    critical = np.ceil(_line(m, n, level))  # smallest c with P(U > c) <= level
    ways = np.ones(1)
    for s in range(1, min(m, EXACT) + 1):  # Gaussian binomials: times (1 - q^(n + s)), through (1 - q^s)
        longer = np.concatenate([ways, np.zeros(n)])
        longer[n + s :] -= ways[: len(longer) - n - s]
        for first in range(s):
            longer[first::s] = np.cumsum(longer[first::s])
        ways = longer
        above = 1 - np.cumsum(ways) / ways.sum()
        critical[s] = np.nonzero(above <= level + 1e-12)[0][0]
    critical[0] = 0
    return np.asarray(critical)


def _line(m: int, n: int, level: float) -> NDArray[np.float64]:
    """(m + 1,) the normal approximation of the critical values before rounding: concave."""
    sizes = np.arange(m + 1.0)
    return np.asarray(sizes * n / 2 - 0.5 + norm.isf(level) * np.sqrt(sizes * n * (sizes + n + 1) / 12))


def flags_by_chance(m: int, n: int, fpr: float, confidence: float) -> tuple[float, int]:
    """Mean and upper limit, at `confidence`, of how many of m questions nobody was trained on are flagged at `fpr`.

    Beta-binomial, not binomial: one set of n unseen questions serves all m of them.
    """
    allowed = int(np.floor(fpr * (n + 1) + 1e-9))  # p <= fpr: fewer than so many unseen questions at or above it
    if allowed == 0:
        return 0.0, 0
    chance = betabinom(m, allowed, n + 1 - allowed)
    return float(chance.mean()), int(chance.ppf(confidence))

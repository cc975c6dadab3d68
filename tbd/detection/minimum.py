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
    found = 0
    for r in range(1, m + 1):
        others = r - found  # so many of the top r not members, together with the k lowest of the rest: can it be?
        top = lowest[m - r + others] - lowest[m - r]
        rest = np.arange(m - r + 1)
        if not (top + lowest[rest] <= critical[others + rest]).any():
            found += 1
        bounds[r - 1] = found
    return bounds


def critical_values(m: int, n: int, level: float) -> NDArray[np.float64]:
    """(m + 1,) at s: the largest Mann-Whitney U of s questions over n exchangeable ones that is not rejected at
    `level`."""
    sizes = np.arange(m + 1)
    centre, deviation = sizes * n / 2, np.sqrt(sizes * n * (sizes + n + 1) / 12)
    critical = np.ceil(centre - 0.5 + norm.isf(level) * deviation)  # smallest c with P(U > c) <= level
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


def flags_by_chance(m: int, n: int, fpr: float, confidence: float) -> tuple[float, int]:
    """Mean and upper limit, at `confidence`, of how many of m questions nobody was trained on are flagged at `fpr`.

    Beta-binomial, not binomial: one set of n unseen questions serves all m of them.
    """
    allowed = int(np.floor(fpr * (n + 1) + 1e-9))  # p <= fpr: fewer than so many unseen questions at or above it
    if allowed == 0:
        return 0.0, 0
    chance = betabinom(m, allowed, n + 1 - allowed)
    return float(chance.mean()), int(chance.ppf(confidence))

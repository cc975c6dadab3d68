"""Are benchmark and unseen questions of one kind? What can be checked with the base model, which saw neither.

Scores: higher = member, without NaN.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import mannwhitneyu, norm

from tbd.detection.intervals import delong_deviation
from tbd.detection.metrics import auc

ALLOWANCE = float((np.sqrt(2) - 1) * norm.isf(0.05))
"""standard errors added to the base's shift: two equally sure shifts then differ at the 5% level, as in a paired
test"""


class Shift(NamedTuple):
    """How much more member-like the benchmark is than unseen questions to a model that saw neither, in sd."""

    estimate: float
    bound: float
    """with ALLOWANCE: a verdict that a shift of this size explains is not one of contamination"""


def differs(benchmark: ArrayLike, unseen: ArrayLike) -> float:
    """Two-sided Mann-Whitney p-value of "the base scores both sets alike"; small = the sets differ anyway."""
    return float(mannwhitneyu(benchmark, unseen, alternative="two-sided").pvalue)


def base_shift(benchmark: ArrayLike, unseen: ArrayLike) -> Shift:
    """The shift between two normal distributions that has the AUC of the base's scores.

    Its error is DeLong's, or that of Mann and Whitney's test if it is larger: a set of one question, scores that all
    tie or sets that do not overlap show no spread, and yet leave much possible.
    """
    scores = np.concatenate([np.asarray(benchmark, float), np.asarray(unseen, float)])
    labels = np.arange(len(scores)) < np.size(benchmark)
    area = auc(scores, labels)
    smallest = 1 / len(scores)
    quantile = norm.ppf(np.clip(area, smallest, 1 - smallest))
    m, n = np.size(benchmark), np.size(unseen)
    deviation = max(delong_deviation(scores, labels), np.sqrt((m + n + 1) / (12 * m * n)))
    error = np.sqrt(2) * deviation / norm.pdf(quantile)
    estimate = float(np.sqrt(2) * quantile)
    return Shift(estimate, estimate + ALLOWANCE * float(error))

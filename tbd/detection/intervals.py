"""How sure a number is. Every function returns (low, high) at a stated confidence."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata

from tbd.detection.metrics import auc

Interval = tuple[float, float]


def delong(scores: ArrayLike, labels: ArrayLike, confidence: float) -> Interval:
    """Interval of the AUC by DeLong's variance, on the logit scale so that it stays inside [0, 1].

    At an AUC of exactly 0 or 1, where that variance is 0, the far end comes from the rule of three on the smaller
    class.

    Sources: DeLong et al., Biometrics 44 (1988); fast form, Sun and Xu, IEEE Signal Processing Letters 21 (2014), eq.
    5-9.
    """
    s, y = np.asarray(scores, float), np.asarray(labels)
    members, others = s[y == 1], s[y == 0]
    n, m = len(members), len(others)
    area = auc(s, y)
    if area in (0.0, 1.0) or min(n, m) < 2:
        width = min(1.0, -np.log(1 - confidence) / min(n, m))
        return (max(0.0, area - width), min(1.0, area + width))
    joint = rankdata(np.concatenate([members, others]))
    # for each member the share of non-members below it, and for each non-member the share of members above it
    member_parts = (joint[:n] - rankdata(members)) / m
    other_parts = 1 - (joint[n:] - rankdata(others)) / n
    deviation = np.sqrt(member_parts.var(ddof=1) / n + other_parts.var(ddof=1) / m)
    half = norm.ppf((1 + confidence) / 2) * deviation / (area * (1 - area))  # delta method
    return float(expit(logit(area) - half)), float(expit(logit(area) + half))


def proportion(successes: int, trials: int, confidence: float) -> Interval:
    """Exact (Clopper-Pearson) interval of a proportion; (0, 1) without trials."""
    if trials == 0:
        return (0.0, 1.0)
    found = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)

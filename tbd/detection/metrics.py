"""How well scores tell members from non-members.

Scores: higher = member. Labels: 1 member, 0 non-member. NaN is refused.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]


def _split(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    s, y = np.asarray(scores, float), np.asarray(labels)
    if np.isnan(s).any():
        raise ValueError("NaN among the scores: leave unscored questions out, and count them")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels other than 0 and 1: leave questions without a label out, and count them")
    members, others = s[y == 1], s[y == 0]
    if len(members) == 0 or len(others) == 0:
        raise ValueError("members and non-members are both needed")
    return members, others


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: P(member > non-member) + P(tie) / 2, the Mann-Whitney statistic. In [0, 1].

    >>> auc([3, 2, 1], [1, 0, 0])
    1.0
    """
    members, others = _split(scores, labels)
    ranks = rankdata(np.concatenate([members, others]))
    n, m = len(members), len(others)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def roc(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    """False- and true-positive rates from (0, 0) to (1, 1), and the lowest score that is positive at each point."""
    members, others = _split(scores, labels)
    lowest = np.concatenate([[np.inf], np.unique(np.concatenate([members, others]))[::-1]])

    def share(scores: Array) -> Array:  # at or above each of `lowest`
        return (len(scores) - np.searchsorted(np.sort(scores), lowest, side="left")) / len(scores)

    return share(others), share(members), lowest


def tpr_at_fpr(scores: ArrayLike, labels: ArrayLike, target: float, convention: str = "at most") -> float:
    """The true-positive rate at a false-positive rate of `target`. In [0, 1].

    `at most` (ours, and the baselines' code): the largest rate whose empirical FPR does not exceed the target.
    `first above` (the script of arXiv 2510.04850): the first ROC point whose FPR reaches the target; mostly higher than
    ours, but lower where several points have an FPR of exactly the target.

    >>> scores, labels = [5, 4, 4, 2, 1], [1, 1, 0, 1, 0]  # ROC points (0, 1/3), (1/2, 2/3), (1/2, 1), (1, 1)
    >>> round(tpr_at_fpr(scores, labels, 0.1), 2), round(tpr_at_fpr(scores, labels, 0.1, "first above"), 2)
    (0.33, 0.67)
    """
    fpr, tpr, _ = roc(scores, labels)
    return float(read(fpr, tpr, target, convention))


def read(fpr: Array, tpr: Array, target: float, convention: str) -> Array:
    """The same of ROC curves, (..., points): (...), NaN where a class is empty."""
    if convention == "at most":
        return np.where(np.isnan((fpr + tpr)[..., -1]), np.nan, np.where(fpr <= target, tpr, 0).max(axis=-1))
    if convention == "first above":
        first = np.argmax(fpr >= target, axis=-1, keepdims=True)
        return np.asarray(np.take_along_axis(tpr, first, axis=-1)[..., 0])
    raise ValueError(f"unknown convention {convention!r}: 'at most' or 'first above'")

"""Choosing the detector where contamination is known: half of the questions choose, every figure is from the others."""

import numpy as np
from numpy.typing import NDArray

from tbd.detection.decisions import conformal_p_values
from tbd.detection.intervals import bootstrap, delong, proportion
from tbd.detection.metrics import auc, tpr_at_fpr
from tbd.detection.results import AtWork, Performance

Array = NDArray[np.float64]


def halves(labels: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) True for the half that chooses, False for the half that evaluates; members and others are split evenly."""
    chooses = np.zeros(len(labels), bool)
    for label in (0, 1):
        rows = rng.permutation(np.nonzero(labels == label)[0])
        chooses[rows[: len(rows) // 2]] = True
    return chooses


def performance(
    scores: Array,
    labels: NDArray[np.int8],
    chooses: NDArray[np.bool_],
    *,
    fpr: float,
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Performance:
    """AUC with DeLong's interval, TPR at `fpr` with a bootstrap interval stratified by label."""
    scored = ~np.isnan(scores)
    choice, rest = scored & chooses, scored & ~chooses
    s, y = scores[rest], labels[rest]
    low, high = delong(s, y, confidence)

    def rate(members: Array, others: Array) -> float:
        return tpr_at_fpr(np.r_[members, others], np.r_[np.ones(len(members)), np.zeros(len(others))], fpr)

    point = tpr_at_fpr(s, y, fpr)
    tpr_low, tpr_high = bootstrap(rate, [s[y == 1], s[y == 0]], rng, resamples, confidence)
    if point in (0.0, 1.0):  # every resample says the same, which is not certainty
        members = int((y == 1).sum())
        tpr_low, tpr_high = proportion(round(point * members), members, confidence)
    return Performance(
        auc_choice=auc(scores[choice], labels[choice]),
        auc=auc(s, y),
        auc_low=low,
        auc_high=high,
        tpr_at_fpr=point,
        tpr_low=tpr_low,
        tpr_high=tpr_high,
        tpr_paper_convention=tpr_at_fpr(s, y, fpr, "first above"),
        unscored=int((~scored).sum()),
    )


def at_work(members: Array, others: Array, negatives: Array, fpr: float, confidence: float) -> AtWork:
    """What flagging at conformal p <= `fpr` finds among evaluation members, and flags among evaluation others."""
    negatives = np.sort(negatives[~np.isnan(negatives)])
    p_members = conformal_p_values(members[~np.isnan(members)], negatives)
    p_others = conformal_p_values(others[~np.isnan(others)], negatives)
    hits = int((p_members <= fpr).sum())
    low, high = proportion(hits, len(p_members), confidence)
    return AtWork(
        threshold=threshold(negatives, fpr),
        members_flagged=hits / len(p_members),
        members_flagged_low=low,
        members_flagged_high=high,
        others_flagged=float((p_others <= fpr).mean()),
        member_p_values=sorted(p_members.tolist()),
        negatives=negatives.tolist(),
    )


def threshold(negatives: Array, fpr: float) -> float | None:
    """The score above which (strictly) a question is flagged at conformal p-value <= `fpr`; None if none can be."""
    ordered = np.sort(negatives)
    allowed = int(np.floor(fpr * (len(ordered) + 1) + 1e-9)) - 1  # negatives that may score at least as high
    return None if allowed < 0 else float(ordered[len(ordered) - 1 - allowed])


def choose(performances: dict[str, Performance]) -> str:
    """The method id with the highest AUC on the choosing half; the first named in params.yaml where several tie."""
    return max(performances, key=lambda key: performances[key].auc_choice)

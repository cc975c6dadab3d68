"""From scores to a verdict: conformal p-values, false-discovery control, contamination rate, and the three verdicts.

Scores: higher = member. *Negatives* are the scores, on the same checkpoint, of questions it cannot have seen. A p-value
speaks against "this question is exchangeable with the negatives". Negatives, and scores taken together, must be without
NaN: leave unscored questions out and count them.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import mannwhitneyu

from tbd.detection.intervals import Interval, bootstrap
from tbd.detection.results import Ruling

Array = NDArray[np.float64]


def _known(scores: ArrayLike) -> Array:
    found = np.asarray(scores, float)
    if not len(found) or np.isnan(found).any():
        raise ValueError("no score, or NaN among the scores: leave unscored questions out, and count them")
    return found


def conformal_p_values(scores: ArrayLike, negatives: ArrayLike) -> Array:
    """p(q) = (1 + #{i: negatives_i >= s(q)}) / (n + 1), in [1 / (n + 1), 1]; NaN for a NaN score.

    Under exchangeability P(p <= a) <= a for every a. Source: Vovk et al., Algorithmic Learning in a Random World
    (2005); as a test for outliers, Bates et al., arXiv 2104.08279.

    >>> conformal_p_values([5.0, 0.0], [1.0, 2.0, 3.0]).tolist()
    [0.25, 1.0]
    """
    s, ordered = np.asarray(scores, float), np.sort(_known(negatives))
    at_least = len(ordered) - np.searchsorted(ordered, s, side="left")
    return np.where(np.isnan(s), np.nan, (1 + at_least) / (len(ordered) + 1))


def benjamini_hochberg(p_values: ArrayLike, level: float) -> NDArray[np.bool_]:
    """Which hypotheses to reject so that the expected share of false ones among them is at most `level`.

    NaN is never rejected.

    Valid for conformal p-values, which are positively dependent (Bates et al., theorem 2). Source: Benjamini and
    Hochberg (1995).
    """
    p = np.asarray(p_values, float)
    known = np.sort(p[~np.isnan(p)])
    # Conformal p-values are multiples of 1 / (n + 1) and often equal the bound, which rounding must not push below
    # them.
    bound = level * np.arange(1, len(known) + 1) / max(len(known), 1) * (1 + 1e-12)
    passing = np.nonzero(known <= bound)[0]
    return p <= known[passing[-1]] if len(passing) else np.zeros(len(p), bool)


def exceeds(scores: ArrayLike, negatives: ArrayLike) -> float:
    """One-sided Mann-Whitney p-value for "the benchmark as a whole scores higher than the negatives"."""
    return float(mannwhitneyu(_known(scores), _known(negatives), alternative="greater").pvalue)


def differs(scores: ArrayLike, negatives: ArrayLike) -> float:
    """Two-sided Mann-Whitney p-value: the exchangeability check, on scores of the base model."""
    return float(mannwhitneyu(_known(scores), _known(negatives), alternative="two-sided").pvalue)


def contamination_rate(scores: Array, negatives: Array, storey_lambda: float) -> float:
    """Share of the benchmark that unseen questions cannot explain, by Storey: 1 - share(p > lambda) / expected share.

    A lower estimate: members the detector cannot tell from unseen questions do not count. In [0, 1]. Questions with a
    p-value above `storey_lambda`, in (0, 1), are taken to be unseen. Source: Storey, JRSS B 64 (2002), with the
    expected share taken from the discrete conformal p-values.
    """
    p = conformal_p_values(_known(scores), negatives)
    n = len(negatives)
    expected = (n + 1 - np.floor(storey_lambda * (n + 1))) / (n + 1)
    return float(np.clip(1 - (p > storey_lambda).mean() / expected, 0, 1))


def contamination_interval(
    scores: Array,
    negatives: Array,
    storey_lambda: float,
    rng: np.random.Generator,
    resamples: int,
    confidence: float,
) -> Interval:
    """Bootstrap interval of `contamination_rate`, over the benchmark's questions and the negatives."""
    rate = partial(contamination_rate, storey_lambda=storey_lambda)
    return bootstrap(rate, [scores, negatives], rng, resamples, confidence)


def negatives_needed(fpr: float) -> int:
    """The fewest negatives with which a conformal p-value can reach `fpr` at all.

    >>> negatives_needed(0.05), negatives_needed(0.01)
    (19, 99)
    """
    return int(np.ceil(1 / fpr - 1e-9)) - 1


@dataclass(frozen=True)
class Evidence:
    """What a verdict is decided on."""

    p_value: float
    """of the benchmark-level test"""
    discoveries: int
    """questions rejected by Benjamini-Hochberg at half the level"""
    exchangeability: float | None
    """p-value of the check on the base model; None where there was no base"""
    power: float | None
    """share of planted members found on the reference; None where there is no reference for this detector"""
    negatives: int

    def __post_init__(self) -> None:
        if any(number is not None and np.isnan(number) for number in (self.p_value, self.exchangeability, self.power)):
            raise ValueError(f"NaN is no evidence: {self}")  # compared with a bound it would pass for none found


def decide(
    evidence: Evidence, *, fpr: float, level: float, exchangeability_level: float, min_power: float
) -> tuple[Ruling, list[str]]:
    """The verdict and its reasons, in the order they were looked at.

    CONTAMINATED on a benchmark that was not in the data has probability at most `level`: two routes, each at half of
    it. The benchmark-level test is strong when many questions leaked, the false-discovery route when few did and
    negatives are many.
    """
    if evidence.negatives < negatives_needed(fpr):
        need = negatives_needed(fpr)
        return "INCONCLUSIVE", [
            f"{evidence.negatives} unseen questions cannot resolve a false-positive rate of {fpr:g}: {need} can."
        ]
    if evidence.exchangeability is not None and evidence.exchangeability <= exchangeability_level:
        return "INCONCLUSIVE", [
            "The base model, which saw neither set, already tells benchmark and unseen questions apart "
            f"(p = {evidence.exchangeability:.2g}): the two sets differ by more than contamination. "
            "Use unseen questions of the same kind."
        ]
    reasons = []
    if evidence.p_value <= level / 2:
        reasons.append(
            f"The benchmark as a whole scores higher than unseen questions (p = {evidence.p_value:.2g} <= "
            f"{level / 2:g})."
        )
    if evidence.discoveries:
        reasons.append(
            f"{evidence.discoveries} questions stand out one by one at a false-discovery rate of {level / 2:g} "
            "(Benjamini-Hochberg)."
        )
    if reasons:
        return "CONTAMINATED", reasons
    reasons.append(
        f"The benchmark as a whole scores no higher than unseen questions (p = {evidence.p_value:.2g} > "
        f"{level / 2:g}), "
        "and no question stands out by itself."
    )
    if evidence.power is None:
        return "INCONCLUSIVE", [
            *reasons,
            "How much this detector would have found is not known: no labelled reference for it.",
        ]
    if evidence.power < min_power:
        return "INCONCLUSIVE", [
            *reasons,
            f"The detector finds only {evidence.power:.0%} of planted members on the reference (at least "
            f"{min_power:.0%} wanted): "
            "it could have missed contamination.",
        ]
    return "NO EVIDENCE", [*reasons, f"On the reference the detector finds {evidence.power:.0%} of planted members."]

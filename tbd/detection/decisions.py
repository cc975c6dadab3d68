"""From scores to a verdict: conformal p-values, the contamination rate, and the three verdicts.

Scores: higher = member. *Negatives* are the scores, on the same checkpoint, of questions it cannot have seen. A p-value
speaks against "this question is exchangeable with the negatives". Negatives, and scores taken together, must be without
NaN: leave unscored questions out and count them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import mannwhitneyu

from tbd.detection.results import Answers, Power, Ruling, SameKind
from tbd.params import Decision

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


def contamination_rate(scores: Array, negatives: Array, storey_lambda: float) -> float:
    """Share of the benchmark that unseen questions cannot explain, by Storey: 1 - share(p > lambda) / expected share.

    An estimate, no bound: it may lie above the true share (on a clean benchmark it averages some percent) or below it,
    since members the detector cannot tell from unseen questions do not count. In [0, 1]. Questions with a p-value above
    `storey_lambda`, in (0, 1), are taken to be unseen. Source: Storey, JRSS B 64 (2002), with the expected share taken
    from the discrete conformal p-values.
    """
    p = conformal_p_values(_known(scores), negatives)
    n = len(negatives)
    expected = (n + 1 - np.floor(storey_lambda * (n + 1) + 1e-9)) / (n + 1)
    return float(np.clip(1 - (p > storey_lambda).mean() / expected, 0, 1))


def negatives_needed(fpr: float) -> int:
    """The fewest negatives with which a conformal p-value can reach `fpr` at all.

    >>> negatives_needed(0.05), negatives_needed(0.01)
    (19, 99)
    """
    return int(np.ceil(1 / fpr - 1e-9)) - 1


def differs(benchmark: ArrayLike, unseen: ArrayLike) -> float:
    """Two-sided Mann-Whitney p-value of "the base scores both sets alike"; small = the sets differ anyway."""
    return float(mannwhitneyu(_known(benchmark), _known(unseen), alternative="two-sided").pvalue)


@dataclass(frozen=True)
class Evidence:
    """What a verdict is decided on."""

    p_value: float
    """of the global test"""
    negatives: int
    """unseen questions with a score"""
    units: int
    """of the smaller set, that are independent"""
    same_kind: SameKind
    answers: Answers
    power: Power | None
    """None where the reference cannot say"""
    more_unseen: int | None
    """so many more unseen questions would let it see `detectable_share`; None: no number was found that would"""


def decide(evidence: Evidence, rule: Decision) -> tuple[Ruling, list[str]]:
    """The verdict and its reasons, in the order they were looked at.

    `rule`: with the audit's own `fpr`. CONTAMINATED on a benchmark that was not in the data has probability at most
    `level`, if both sets are of one kind. NO EVIDENCE needs an audit that would have seen a leak of `detectable_share`
    of the benchmark, even at the upper limit of what is known of its power.
    """
    p_value, checks = evidence.p_value, evidence.same_kind
    if evidence.negatives < negatives_needed(rule.fpr):
        need = negatives_needed(rule.fpr)
        return "INCONCLUSIVE", [
            f"{evidence.negatives} unseen questions cannot resolve a false-positive rate of {rule.fpr:g}: {need} can."
        ]
    if evidence.answers.odd_prompts:
        return "INCONCLUSIVE", [
            f"Around {evidence.answers.odd_prompts} of the questions the chat template puts other text than around the "
            "rest, or the tokenizer changes what they say, so answers cannot be compared. Use a template and a "
            "tokenizer that leave every question as it is."
        ]
    if checks.base_p_value is not None and checks.base_p_value <= rule.exchangeability:
        return "INCONCLUSIVE", [
            "The base model, which saw neither set, already tells benchmark and unseen questions apart "
            f"(p = {checks.base_p_value:.2g}): the two sets differ by more than contamination. "
            "Use unseen questions of the same kind."
        ]
    if p_value <= rule.level:
        higher = f"The benchmark as a whole scores higher than unseen questions (p = {p_value:.2g} <= {rule.level:g})"
        return _higher(higher, checks, rule)
    reasons = [f"The benchmark as a whole scores no higher than unseen questions (p = {p_value:.2g} > {rule.level:g})."]
    why_not = _blind_spot(evidence, rule)
    if why_not:
        return "INCONCLUSIVE", [*reasons, why_not]
    assert evidence.power is not None
    return "NO EVIDENCE", [
        *reasons,
        f"If {_sees(evidence.power)}, four audits in five like this one would have found it.",
    ]


def _higher(higher: str, checks: SameKind, rule: Decision) -> tuple[Ruling, list[str]]:
    needed, bound = checks.shift_needed or 0.0, checks.base_shift_bound
    if bound is None:
        worded = checks.blind is not None and checks.blind.p_value <= rule.exchangeability
        apart = (
            f", and their wording alone tells them apart (AUC {checks.blind.auc:.2f})"
            if checks.blind and worded
            else ""
        )
        return "CONTAMINATED", [
            f"This rests on both sets being of one kind, which no base model could check{apart}.",
            f"{higher}. A difference in kind would have to be {needed:.2f} sd or more to explain that.",
        ]
    if needed <= bound:
        return "INCONCLUSIVE", [
            f"{higher}, but a difference in kind of {needed:.2f} sd would explain that, and the base model, which saw "
            f"neither set, leaves up to {bound:.2f} sd possible.",
            "More unseen questions of the same kind would tell the two apart.",
        ]
    return "CONTAMINATED", [
        f"{higher}.",
        f"A difference in kind does not explain that: it would have to be {needed:.2f} sd, and the base model, which "
        f"saw neither set, leaves at most {bound:.2f} sd possible.",
    ]


def _blind_spot(evidence: Evidence, rule: Decision) -> str | None:
    """Why finding nothing says nothing here; None if it does say something."""
    power, answers = evidence.power, evidence.answers
    if answers.short > rule.incomplete_share:
        return (
            f"{answers.short:.0%} of the answers to a set have fewer than the {answers.looked_at} tokens that the "
            "detector looks at, so a leak may leave no trace in them. Find out why they end, or calibrate with a "
            "smaller m in score.methods."
        )
    if answers.unscored > rule.incomplete_share:
        return (
            f"{answers.unscored:.0%} of the questions of a set have no score. Look at scores.parquet for the reasons."
        )
    if not answers.same_frame:
        return (
            "The chat template puts another text (a system prompt, a thinking switch) around the questions than on the "
            "reference, so what this audit would have found is not known. Make a reference whose base has this "
            "template, with `tbd distill`."
        )
    if evidence.units < rule.fewest_units:
        return (
            f"The smaller set has {evidence.units} independent questions (those of one source count once), and at "
            f"least {rule.fewest_units} are needed (decision.fewest_units). Add questions from other sources."
        )
    if power is None:
        return (
            "How much an audit like this would have found is not known: at a false-positive rate of "
            f"{rule.fpr:g} its reference needs {negatives_needed(rule.fpr)} unseen questions and has fewer. Add some "
            "to the reference, or raise the rate."
        )
    if power.same_base is not True and not rule.allow_foreign_power:
        whose = "another model than this checkpoint" if power.same_base is False else "what may be another model"
        return (
            f"The reference {power.reference!r} was distilled from {whose}, so what this audit would have found is not "
            "known. Make a reference of your own with `tbd distill`, or set decision.allow_foreign_power."
        )
    remedy = "A reference with more labelled questions, or a detector that looks at more tokens, may do."
    if evidence.more_unseen is not None:
        remedy = f"{evidence.more_unseen} more unseen questions would do."
    if power.mde80_high is None or power.mde80_high > rule.detectable_share:
        return (
            f"{_sees_only(power)} NO EVIDENCE needs at most {rule.detectable_share:.0%} at the upper limit "
            f"(decision.detectable_share). {remedy}"
        )
    return None


def _sees_only(power: Power) -> str:
    if power.mde80 is None:
        return "Not even a leak of the whole benchmark would have been found by four audits in five like this one."
    return f"Only if {_sees(power)}, four audits in five like this one would have found it."


def _sees(power: Power) -> str:
    """The smallest detectable share in words."""
    high = "more than all of it" if power.mde80_high is None else f"{power.mde80_high:.0%}"
    return f"{power.mde80:.0%} of the benchmark had leaked ({power.mde80_low or 0:.0%} to {high})"

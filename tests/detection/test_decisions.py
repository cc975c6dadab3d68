"""Decisions: values worked by hand, every branch, and error rates by simulation."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from tbd.detection.decisions import Evidence, conformal_p_values, contamination_rate, decide, differs, negatives_needed
from tbd.detection.results import Answers, Power, SameKind
from tbd.params import Blind, Decision
from tests.results import ANSWERS, POWER, SAME_KIND

DECISION = Decision(
    fpr=0.05,
    level=0.05,
    exchangeability=0.01,
    detectable_share=0.3,
    incomplete_share=0.1,
    allow_foreign_power=False,
    confidence=0.95,
    storey_lambda=0.5,
    permutations=1000,
    simulations=100,
    fewest_units=10,
    blind=Blind(folds=5, permutations=500, questions=2000),
)


def test_conformal_p_values_by_hand() -> None:
    # Four negatives, n + 1 = 5. 9: none at least as high, 1/5. 3: two (3 and 4), 3/5, a tie counts against. 0: all,
    # 5/5.
    found = conformal_p_values([9.0, 3.0, 0.0, 3.5, np.nan], [1.0, 4.0, 2.0, 3.0])
    np.testing.assert_allclose(found, [0.2, 0.6, 1.0, 0.4, np.nan])


def test_all_tied_is_no_evidence_at_all() -> None:
    assert conformal_p_values([0.0, 0.0], np.zeros(19)).tolist() == [1.0, 1.0]


rate = partial(contamination_rate, storey_lambda=0.5)


@pytest.mark.parametrize("function", [conformal_p_values, rate])
@pytest.mark.parametrize("negatives", [[1.0, np.nan], []])
def test_nan_among_the_negatives_is_refused(function, negatives) -> None:
    with pytest.raises(ValueError, match="unscored"):
        function(np.array([1.0, 2.0]), np.array(negatives))


@pytest.mark.parametrize("scores", [[1.0, np.nan], []])
def test_nan_among_scores_taken_together_is_refused(scores) -> None:
    with pytest.raises(ValueError, match="unscored"):
        rate(np.array(scores), np.array([1.0, 2.0]))


def test_differs_is_mann_whitneys_test() -> None:
    high, low = np.arange(10.0, 40), np.arange(0.0, 30)
    assert differs(low, high) == differs(high, low) == mannwhitneyu(high, low).pvalue < 0.01
    assert differs(np.zeros(30), np.zeros(30)) == 1.0


@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.05, 0.07, 0.1, 0.2, 1 / 3, 0.5, 0.9])
def test_negatives_needed_is_the_fewest(fpr: float) -> None:
    n = negatives_needed(fpr)
    assert conformal_p_values([1.0], np.zeros(n))[0] <= fpr if n else fpr >= 1
    assert n == 1 or conformal_p_values([1.0], np.zeros(n - 1))[0] > fpr


# -- every branch


def evidence(power: Any = POWER, same_kind: Any = None, **changed: Any) -> Evidence:
    checks = SameKind.model_validate(SAME_KIND | (same_kind or {}))
    known = {"p_value": 0.4, "negatives": 40, "units": 40, "more_unseen": None, **changed}
    answers = Answers.model_validate(ANSWERS | (known.pop("answers", {})))
    return Evidence(same_kind=checks, answers=answers, power=power and Power.model_validate(power), **known)


def without_base(**changes: Any) -> dict[str, Any]:
    return {"base_p_value": None, "base_shift_bound": None, **changes}


def test_no_evidence_names_what_would_have_been_found() -> None:
    verdict, reasons = decide(evidence(), DECISION)
    assert verdict == "NO EVIDENCE"
    assert reasons == [
        "The benchmark as a whole scores no higher than unseen questions (p = 0.4 > 0.05).",
        "If 16% of the benchmark had leaked (11% to 22%), four audits in five like this one would have found it.",
    ]


def test_contaminated_by_the_global_test_at_the_full_level() -> None:
    verdict, reasons = decide(evidence(p_value=0.05), DECISION)
    assert verdict == "CONTAMINATED"
    assert reasons == [
        "The benchmark as a whole scores higher than unseen questions (p = 0.05 <= 0.05).",
        "A difference in kind does not explain that: it would have to be 0.61 sd, and the base model, which saw "
        "neither set, leaves at most 0.14 sd possible.",
    ]
    assert decide(evidence(p_value=0.0501), DECISION)[0] == "NO EVIDENCE"


def test_contaminated_needs_neither_power_nor_base_and_says_first_what_was_not_checked() -> None:
    assert decide(evidence(p_value=0.001, power=None), DECISION)[0] == "CONTAMINATED"
    verdict, reasons = decide(evidence(p_value=0.001, same_kind=without_base()), DECISION)
    assert verdict == "CONTAMINATED" and "no base model could check." in reasons[0]
    apart = without_base(blind={"auc": 0.93, "p_value": 0.002})
    assert (
        "wording alone tells them apart (AUC 0.93)" in decide(evidence(p_value=0.001, same_kind=apart), DECISION)[1][0]
    )


def test_a_shift_that_the_base_leaves_possible_explains_it() -> None:
    verdict, reasons = decide(evidence(p_value=0.01, same_kind={"shift_needed": 0.14}), DECISION)
    assert verdict == "INCONCLUSIVE" and "0.14 sd would explain that" in reasons[0]
    assert decide(evidence(p_value=0.01, same_kind={"shift_needed": 0.15}), DECISION)[0] == "CONTAMINATED"


def test_too_few_negatives() -> None:
    verdict, reasons = decide(evidence(negatives=18, p_value=1e-9), DECISION)
    assert verdict == "INCONCLUSIVE" and "18 unseen" in reasons[0] and "19" in reasons[0]
    assert decide(evidence(negatives=19), DECISION)[0] == "NO EVIDENCE"


def test_base_that_tells_the_sets_apart() -> None:
    verdict, reasons = decide(evidence(p_value=1e-9, same_kind={"base_p_value": 0.01}), DECISION)
    assert verdict == "INCONCLUSIVE" and len(reasons) == 1 and "base model" in reasons[0] and "p = 0.01" in reasons[0]
    assert decide(evidence(same_kind={"base_p_value": 0.011}), DECISION)[0] == "NO EVIDENCE"


def test_power_that_is_unknown_too_small_or_of_another_base() -> None:
    verdict, reasons = decide(evidence(power=None), DECISION)
    assert verdict == "INCONCLUSIVE" and "needs 19 unseen questions and has fewer" in reasons[1]
    verdict, reasons = decide(evidence(power=POWER | {"mde80_high": 0.31}, more_unseen=60), DECISION)
    assert verdict == "INCONCLUSIVE" and "60 more unseen questions would do" in reasons[1] and "30%" in reasons[1]
    assert decide(evidence(power=POWER | {"mde80_high": 0.3}), DECISION)[0] == "NO EVIDENCE"
    blind = decide(evidence(power=POWER | {"mde80": None, "mde80_low": 0.7, "mde80_high": None}), DECISION)
    assert blind[0] == "INCONCLUSIVE" and "Not even a leak of the whole benchmark" in blind[1][1]


@pytest.mark.parametrize("same_base", [False, None])
def test_power_of_another_base_is_not_borrowed_in_silence(same_base: bool | None) -> None:
    foreign = evidence(power=POWER | {"same_base": same_base})
    verdict, reasons = decide(foreign, DECISION)
    assert verdict == "INCONCLUSIVE" and "'reference'" in reasons[1] and "tbd distill" in reasons[1]
    assert decide(foreign, DECISION.model_copy(update={"allow_foreign_power": True}))[0] == "NO EVIDENCE"


def test_questions_of_few_sources_say_nothing_by_their_silence() -> None:
    verdict, reasons = decide(evidence(units=9), DECISION)
    assert verdict == "INCONCLUSIVE" and "smaller set has 9 independent questions" in reasons[1]
    assert decide(evidence(units=9, p_value=0.01), DECISION)[0] == "CONTAMINATED"  # what is found is found


# -- the contamination rate


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_contamination_rate_finds_the_share(share: float) -> None:
    rng, n = np.random.default_rng(6), 100
    rates = []
    for _ in range(60):
        members = int(share * n)
        scores = np.r_[rng.normal(9, 1, members), rng.normal(0, 1, n - members)]  # members far above everything
        rates.append(rate(scores, rng.normal(size=100)))
    # Cut off at 0 it is biased upward there, by at most its own standard deviation.
    assert np.mean(rates) == pytest.approx(share, abs=0.08 if share == 0 else 0.03)


def test_contamination_rate_misses_members_that_look_unseen() -> None:
    rng = np.random.default_rng(7)
    weak = [np.r_[rng.normal(0.5, 1, 50), rng.normal(0, 1, 50)] for _ in range(60)]
    rates = [rate(scores, rng.normal(size=200)) for scores in weak]
    assert 0.05 < np.mean(rates) < 0.4  # of the 0.5 there is: weak members pass for unseen


@pytest.mark.parametrize("n", [19, 20, 39, 40, 100])
def test_contamination_rate_counts_discrete_p_values_right(n: int) -> None:
    """One score in each of the n + 1 gaps between negatives is what unseen questions look like: exactly 0."""
    gaps, negatives = np.arange(n + 1) - 0.5, np.arange(n, dtype=float)
    for above in (0.25, 0.5, 0.9):
        assert contamination_rate(gaps, negatives, above) == pytest.approx(0, abs=1e-12)

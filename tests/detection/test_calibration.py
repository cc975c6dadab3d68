"""Choosing the detector: on hand-made scores, and properties that must hold for any."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbd.detection import calibration, detector
from tbd.detection.decisions import conformal_p_values, negatives_needed
from tbd.detection.results import Performance
from tbd.errors import InputError
from tbd.params import Calibrate
from tests.detection.test_verdict import DECISION, LOW, audit, table

LABELS = np.array([1] * 6 + [0] * 5, np.int8)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# --- halves -----------------------------------------------------------------------------------------------------------


@given(labels=st.lists(st.sampled_from([0, 1]), max_size=60), seed=st.integers(0, 2**32))
def test_halves_split_each_label_evenly_and_repeat(labels: list[int], seed: int) -> None:
    y = np.array(labels, np.int8)
    chooses = calibration.halves(y, np.random.default_rng(seed))
    for label in (0, 1):
        assert chooses[y == label].sum() == (y == label).sum() // 2
    np.testing.assert_array_equal(chooses, calibration.halves(y, np.random.default_rng(seed)))


def test_halves_do_not_follow_the_order_of_the_questions() -> None:
    y = np.array([1] * 40 + [0] * 40, np.int8)
    chooses = calibration.halves(y, rng())
    assert 5 < chooses[:20].sum() < 15
    assert not np.array_equal(chooses, calibration.halves(y, np.random.default_rng(8)))


# --- threshold --------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.sampled_from([-3.0, -1.0, -0.5, -0.25, 0.0, 1.0]) | st.floats(-10, 10), min_size=1, max_size=40)


@settings(max_examples=300)
@given(
    negatives=SCORES, scores=SCORES, fpr=st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5, 0.9]) | st.floats(0.001, 0.999)
)
def test_above_the_threshold_is_a_p_value_of_at_most_the_rate(
    negatives: list[float], scores: list[float], fpr: float
) -> None:
    bound = calibration.threshold(np.array(negatives), fpr)
    every = np.array([*scores, *negatives])  # ties with a negative are where it goes wrong
    p = conformal_p_values(every, negatives)
    away = abs(p - fpr) > 1e-9
    flagged = np.zeros(len(every), bool) if bound is None else every > bound
    np.testing.assert_array_equal(flagged[away], (p <= fpr)[away])
    assert (bound is None) == (len(negatives) < negatives_needed(fpr))


def test_threshold_by_hand() -> None:
    negatives = np.arange(19.0)  # at 5 % none of 19 may score as high
    assert calibration.threshold(negatives, 0.05) == 18.0
    assert calibration.threshold(negatives, 0.1) == 17.0
    assert calibration.threshold(negatives, 0.04) is None


# --- performance, choice, work ----------------------------------------------------------------------------------------


def measured(scores: list[float], chooses: list[int]) -> Performance:
    return calibration.performance(
        np.array(scores), LABELS, np.array(chooses, bool), fpr=0.05, confidence=0.95, resamples=100, rng=rng()
    )


def test_one_half_chooses_and_the_other_is_measured() -> None:
    # Choosing half (first 3 members, first 2 others): separated. Other half: wrong way round.
    found = measured([9, 9, 9, 1, 2, 3, 0, 0, 7, 8, 9], [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0])
    assert found.auc_choice == 1.0 and found.auc == 0.0 and found.tpr_at_fpr == 0.0 and found.unscored == 0
    assert found.auc_low == 0.0 < found.auc_high < 1.0
    assert found == measured([9, 9, 9, 1, 2, 3, 0, 0, 7, 8, 9], [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0])


def test_unscored_questions_are_left_out_and_counted() -> None:
    found = measured([9, 9, math.nan, 5, 6, math.nan, 0, 0, 7, 1, 2], [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0])
    assert found.unscored == 2 and found.auc_choice == 1.0
    assert found.auc == pytest.approx(4 / 6)  # 5 and 6 against 7, 1 and 2


def test_the_best_on_the_choosing_half_is_chosen_and_the_first_of_equals() -> None:
    good, better = measured([3, 1, 2, 9, 9, 9, 2, 0, 0, 0, 0], [1] * 3 + [0] * 3 + [1] * 2 + [0] * 3), None
    better = measured([3, 3, 3, 0, 0, 0, 2, 0, 9, 9, 9], [1] * 3 + [0] * 3 + [1] * 2 + [0] * 3)
    assert better.auc_choice > good.auc_choice and better.auc < good.auc
    assert calibration.choose({"good": good, "better": better}) == "better"
    assert calibration.choose({"a": good, "b": better, "c": better}) == "b"


def test_at_work_by_hand() -> None:
    negatives = np.array([math.nan, *np.arange(19.0)])
    found = calibration.at_work(np.array([20.0, 18.5, 3.0, math.nan]), np.array([19.0, 1.0]), negatives, 0.05, 0.95)
    assert found.threshold == 18.0 and found.members_flagged == pytest.approx(2 / 3) and found.others_flagged == 0.5
    assert found.member_p_values == pytest.approx([1 / 20, 1 / 20, 17 / 20])
    assert found.negatives == list(np.arange(19.0))
    assert found.members_flagged_low == pytest.approx(0.0943, abs=1e-4)
    assert found.members_flagged_high == pytest.approx(0.9916, abs=1e-4)


@given(
    members=st.lists(st.floats(-5, 5), min_size=1, max_size=20),
    others=st.lists(st.floats(-5, 5), min_size=1, max_size=20),
    negatives=SCORES,
    fpr=st.floats(0.01, 0.9),
)
def test_rates_at_work_are_rates(members: list[float], others: list[float], negatives: list[float], fpr: float) -> None:
    found = calibration.at_work(np.array(members), np.array(others), np.array(negatives), fpr, 0.95)
    assert (
        0 <= found.members_flagged_low <= found.members_flagged <= found.members_flagged_high <= 1
        and 0 <= found.others_flagged <= 1
    )
    assert found.member_p_values == sorted(found.member_p_values) and found.negatives == sorted(negatives)


# --- the detector -----------------------------------------------------------------------------------------------------

GOOD, BAD, RATIO = "mean_logprob(m=20)", "lowest_token(m=20)", "logprob_ratio(m=10)"
TRUTH = [1] * 20 + [0] * 20
APART = [*np.linspace(-0.5, -0.1, 20), *np.linspace(-2, -1, 20)]
MIXED_UP = [-1.0, -2.0] * 20


def chosen(
    *methods: str, labels: list[int] | None = TRUTH, unseen: list[float] = LOW, **of: list[float]
) -> detector.Calibration:
    """The detector among these methods; `good`, `bad` and `ratio` are their scores."""
    scores = {GOOD: of.get("good", APART), BAD: of.get("bad", MIXED_UP), RATIO: of.get("ratio", MIXED_UP)}
    reference = table({("checkpoint", method): (scores[method], unseen) for method in methods}, labels)
    return detector.calibrate(reference, audit(), Calibrate(reference="reference", bootstrap=200, seed=0), DECISION)


def test_the_best_method_with_and_without_a_base() -> None:
    found = chosen(BAD, GOOD, RATIO)
    detector = found.detector
    assert detector.choices.alone.id == GOOD and detector.choices.with_base is not None
    assert detector.choices.with_base.id == GOOD  # the best of all, whether it looks at the base or not
    assert detector.choices.alone.parameters == {"m": 20} and detector.choices.alone.auc == 1.0
    assert list(found.methods) == [BAD, GOOD, RATIO] and set(found.curves) == {"alone", "with_base"}
    assert detector.provenance.fingerprint == "c" * 64 and detector.provenance.benchmark.n == 40
    assert detector.questions.evaluation.members == detector.questions.choice.others == 10 and detector.warnings == []
    compared = chosen(BAD, RATIO, ratio=APART).detector.choices
    assert compared.alone.id == BAD and compared.with_base is not None and compared.with_base.id == RATIO
    assert chosen(GOOD).detector.choices.with_base is None


def test_the_version_is_of_everything_in_the_detector() -> None:
    first, same, other = (chosen(GOOD, good=scores).detector for scores in (APART, APART, [*APART[:-1], -0.2]))
    assert first == same and len(first.version) == 12 and first.version != other.version


def test_questions_without_a_score_are_told() -> None:
    detector = chosen(GOOD, good=[math.nan, *APART[1:]]).detector
    assert detector.questions.unscored == 1
    assert detector.warnings == ["1 of 40 labelled questions have no score and are left out."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": None}, "benchmark 'asked' of the reference: needs labels, 1 and 0"),
        ({"labels": [1] + [0] * 39}, "1 of its questions has the rarer label"),
        ({"unseen": LOW[:18]}, r"decision\.fpr: 0\.05 needs 19 unseen questions and 'new' has 18: add 1"),
    ],
)
def test_a_reference_that_cannot_calibrate_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        chosen(GOOD, **arguments)
    with pytest.raises(InputError, match="every method needs a base model"):
        chosen(RATIO)

"""Choosing the detector: on hand-made scores, and properties that must hold for any."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbd.detection import calibration, detector, metrics
from tbd.detection.calibration import Known
from tbd.detection.decisions import conformal_p_values, negatives_needed
from tbd.detection.intervals import delong
from tbd.errors import InputError
from tbd.params import Calibrate
from tests.detection.test_verdict import DECISION, LOW, audit, table


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# --- halves -----------------------------------------------------------------------------------------------------------


@given(labels=st.lists(st.sampled_from([0, 1]), max_size=60), seed=st.integers(0, 2**32))
def test_halves_split_each_label_evenly_and_come_with_their_complement(labels: list[int], seed: int) -> None:
    y = np.array(labels, np.int8)
    split = calibration.halves(y, np.random.default_rng(seed), 3)
    assert split.shape == (6, len(y))
    np.testing.assert_array_equal(split[::2], ~split[1::2])
    for label in (0, 1):
        assert (split[::2, y == label].sum(axis=1) == (y == label).sum() // 2).all()
    np.testing.assert_array_equal(split, calibration.halves(y, np.random.default_rng(seed), 3))


def test_halves_do_not_follow_the_order_of_the_questions_and_differ() -> None:
    split = calibration.halves(np.array([1] * 40 + [0] * 40, np.int8), rng(), 2)
    assert 5 < split[0, :20].sum() < 15 and not np.array_equal(split[0], split[2])


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


# --- curves, halves, intervals ----------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    labelled=st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 2.0, 2.5]) | st.just(math.nan), st.integers(0, 1)), max_size=20
    ),
    fpr=st.sampled_from([0.05, 0.2, 0.5]),
    seed=st.integers(0, 99),
)
def test_rates_are_those_of_the_sample_written_out(labelled: list[tuple[float, int]], fpr: float, seed: int) -> None:
    scores, labels = np.array([s for s, _ in labelled]), np.array([y for _, y in labelled], np.int8)
    counts = np.random.default_rng(seed).integers(0, 3, (1, len(labels)))
    found = calibration.rates(known(scores, labels), counts, fpr)
    rows = np.repeat(np.arange(len(labels)), counts[0])
    rows = rows[~np.isnan(scores[rows])]
    s, y = scores[rows], labels[rows]
    if len(np.unique(y)) < 2:
        assert np.isnan(found.auc).all() and np.isnan(found.tpr).all()
        return
    assert found.auc[0, 0] == pytest.approx(metrics.auc(s, y))
    assert found.tpr[0, 0] == pytest.approx(metrics.tpr_at_fpr(s, y, fpr))
    assert found.tpr_paper_convention[0, 0] == pytest.approx(metrics.tpr_at_fpr(s, y, fpr, "first above"))


def known(scores: Any, labels: Any, unseen: Any = (0.0,), **more: Any) -> Known:
    every = {"only": np.asarray(scores, float)} | {key: np.asarray(value, float) for key, value in more.items()}
    return Known("set", np.asarray(labels, np.int8), every, {key: np.asarray(unseen, float) for key in every})


def test_one_half_chooses_and_the_other_is_measured() -> None:
    # `only` separates the questions of one half and `other` those of the other, where each is the wrong way round
    labels = [1, 1, 0, 0, 1, 1, 0, 0]
    only, other = [3, 3, 1, 1, 1, 1, 3, 3], [1, 1, 3, 3, 3, 3, 1, 1]
    split = np.array([[True] * 4 + [False] * 4, [False] * 4 + [True] * 4])
    once = {"set": np.ones((1, 8), int)}
    tried = calibration.cross_validate([known(only, labels, other=other)], {"set": split}, once, 0.05)
    np.testing.assert_array_equal(tried.choosing, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(tried.chosen([True, True]), [0, 1])
    np.testing.assert_array_equal(tried.held_out([True, True], 0).auc, [0, 0])
    np.testing.assert_array_equal(tried.held_out([False, True], 0).auc, [1, 0])


def test_a_choice_is_by_the_mean_over_the_references() -> None:
    labels = [1, 0] * 20
    apart, mixed, less = [1.0, 0.0] * 20, [0.0, 0.0] * 20, [1.0, 0.0] * 17 + [0.0, 1.0] * 3
    strong, weak = known(apart, labels, other=less), known(mixed, labels, other=apart)
    both, _ = calibration.repeated([strong, weak], 3, 0.05, rng())
    assert set(both.chosen([True, True])) == {1} and set(both.chosen([True, False])) == {0}
    alone, _ = calibration.repeated([strong], 3, 0.05, rng())
    assert set(alone.chosen([True, True])) == {0}


def test_references_with_the_same_questions_are_split_and_drawn_alike() -> None:
    scores = np.random.default_rng(3).normal(size=40)
    same = known(scores, [1, 0] * 20)
    tried = calibration.resampled([same, same], 2, 30, 0.05, rng())
    np.testing.assert_array_equal(tried.measuring[0].auc, tried.measuring[1].auc)
    assert tried.choosing.shape == (30 * 4, 1)


def test_resamples_keep_the_number_of_either_label() -> None:
    labels = np.array([1] * 3 + [0] * 7, np.int8)
    counts = calibration.resample(labels, 50, rng())
    assert (
        (counts[:, :3].sum(axis=1) == 3).all()
        and (counts[:, 3:].sum(axis=1) == 7).all()
        and len(set(map(tuple, counts))) > 40
    )


def test_a_bootstrap_is_repeatable_and_about_what_delong_says() -> None:
    draw, labels = np.random.default_rng(3), np.repeat([1, 0], [40, 60])
    one = known(np.r_[draw.normal(1, 1, 40), draw.normal(0, 1, 60)], labels)

    def interval(seed: int) -> tuple[float, float]:
        drawn = calibration.rates(one, calibration.resample(one.labels, 400, np.random.default_rng(seed)), 0.05).auc[
            :, 0
        ]
        return calibration.interval(float(np.median(drawn)), drawn, 40, 0.95)

    assert interval(0) == interval(0) != interval(1)
    assert interval(0) == pytest.approx(delong(one.scores["only"], labels, 0.95), abs=0.03)


def test_an_interval_holds_its_point_and_is_never_certain() -> None:
    drawn = np.linspace(0.5, 0.9, 101)
    assert calibration.interval(0.7, drawn, 10, 0.9) == (pytest.approx(0.52), pytest.approx(0.88))
    assert calibration.interval(0.95, drawn, 10, 0.9)[1] == 0.95
    low, high = calibration.interval(1.0, np.ones(100), 10, 0.95)
    assert low == pytest.approx(0.025 ** (1 / 10)) and high == 1.0


def test_places_are_by_the_method_that_the_other_half_chose() -> None:
    one = known([5.0, math.nan, 1.5, 0.0], [1, 1, 0, 0], unseen=[1.0, 2.0, math.nan], other=[0.0, 9.0, 0.0, 9.0])
    split = np.array([[True, True, False, False], [False, False, True, True]])
    p = calibration.places(one, np.array([1, 0]), split)  # the first half is judged by `only`, the second by `other`
    assert p[0] == pytest.approx(1 / 3) and math.isnan(p[1]) and p[2:] == pytest.approx([1.0, 1 / 3])


def test_the_mean_curve_says_what_the_rates_say() -> None:
    scores = np.random.default_rng(5).normal(size=60) + np.repeat([1.0, 0.0], 30)
    one = known(scores, np.repeat([1, 0], 30))
    tried, splits = calibration.repeated([one], 5, 0.05, rng())
    x, y = calibration.mean_curve(one, tried.chosen([True]), splits["set"])
    assert (x[0], x[-1], y[-1]) == (0, 1, pytest.approx(1)) and (np.diff(y) >= 0).all()
    held = tried.held_out([True], 0)
    assert y[np.searchsorted(x, 0.05)] == pytest.approx(held.tpr.mean())
    assert np.trapezoid(y, x) == pytest.approx(held.auc.mean(), abs=0.04)


def test_repeated_halves_are_surer_than_one_and_honest_about_the_best_of_many() -> None:
    """Twenty scores of no use: the best of them has an AUC above one half on the questions that chose it."""
    draw = np.random.default_rng(11)
    found = []
    for _ in range(60):
        scores = {str(at): draw.normal(size=48) for at in range(20)}
        one = Known("set", np.array([1, 0] * 24, np.int8), scores, {})
        tried, _ = calibration.repeated([one], 10, 0.05, draw)
        held = tried.held_out([True] * 20, 0).auc
        naive = calibration.rates(one, np.ones((1, 48), int), 0.05).auc.max()
        found.append((held[0], held.mean(), naive))
    once, often, naive = np.array(found).T
    assert abs(often.mean() - 0.5) < 3 * often.std() / np.sqrt(60) < 0.5 < naive.mean() - 0.1
    assert often.std() < 0.75 * once.std()


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
    p = Calibrate(references=["a"], repeats=3, bootstrap=100, seed=0)
    return detector.calibrate([(reference, audit())], p, DECISION)


def test_the_best_method_with_and_without_a_base() -> None:
    found = chosen(BAD, GOOD, RATIO)
    choices, reference = found.detector.choices, found.detector.reference
    assert choices.alone.id == GOOD and choices.with_base is not None
    assert choices.with_base.id == GOOD  # the best of all, whether it looks at the base or not
    assert choices.alone.parameters == {"m": 20} and found.detector.best == "with_base"
    figures = reference.figures("alone")
    assert (figures.auc, figures.auc_choice, figures.agreement, figures.auc_high) == (1.0, 1.0, 1.0, 1.0)
    assert figures.auc_low == pytest.approx(0.025 ** (1 / 20)) and figures.members_flagged == 1.0
    assert figures.member_p_values == [pytest.approx(1 / (len(LOW) + 1))] * 20 and len(figures.other_p_values) == 20
    assert list(found.methods["a"]) == [BAD, GOOD, RATIO] and set(found.curves["a"]) == {"alone", "with_base"}
    assert reference.provenance.fingerprint == "c" * 64 and reference.provenance.benchmark.n == 40
    assert (reference.questions.members, reference.questions.others, found.detector.warnings) == (20, 20, [])
    compared = chosen(BAD, RATIO, ratio=APART).detector.choices
    assert compared.alone.id == BAD and compared.with_base is not None and compared.with_base.id == RATIO
    alone = chosen(GOOD).detector
    assert alone.choices.with_base is None and alone.reference.with_base is None and alone.best == "alone"


def test_one_detector_for_all_references_and_figures_for_each() -> None:
    strong = table({("checkpoint", m): (s, LOW) for m, s in ((GOOD, APART), (BAD, APART))}, TRUTH)
    weak = table({("checkpoint", m): (s, LOW) for m, s in ((BAD, MIXED_UP), (GOOD, APART), (RATIO, APART))}, TRUTH)
    weak.audit = "weak"
    p = Calibrate(references=["a", "weak"], repeats=3, bootstrap=100, seed=0)
    found = detector.calibrate([(strong, audit()), (weak, audit(checkpoint="w"))], p, DECISION).detector
    assert found.choices.alone.id == GOOD and found.choices.with_base is None  # a score that both references have
    assert [(one.name, one.alone.auc) for one in found.references] == [("a", 1.0), ("weak", 1.0)]
    assert found.reference.name == "a" and found.references[1].provenance.checkpoint == "w"


def test_the_version_is_of_everything_in_the_detector() -> None:
    first, same, other = (chosen(GOOD, good=scores).detector for scores in (APART, APART, [*APART[:-1], -0.2]))
    assert first == same and len(first.version) == 12 and first.version != other.version


def test_questions_without_a_score_are_told() -> None:
    detector = chosen(GOOD, good=[math.nan, *APART[1:]]).detector
    assert detector.reference.questions.unscored == 1 and detector.reference.questions.members == 19
    assert detector.warnings == ["1 of 40 labelled questions of 'a' have no score and are left out."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": None}, "benchmark 'asked' of the reference 'a': needs labels, 1 and 0"),
        ({"labels": [1] + [0] * 39}, "1 of its questions has the rarer label"),
        ({"unseen": LOW[:18]}, r"decision\.fpr: 0\.05 needs 19 unseen questions and 'new' has 18: add 1"),
    ],
)
def test_a_reference_that_cannot_calibrate_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        chosen(GOOD, **arguments)
    with pytest.raises(InputError, match="every method needs a base model"):
        chosen(RATIO)

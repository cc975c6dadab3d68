"""The cascade: values worked by hand, the order that its score keeps, and error rates wherever the cut lies."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbd.detection import cascade, detector, minimum
from tbd.detection.decisions import conformal_p_values
from tbd.detection.global_test import GlobalTest
from tbd.detection.results import Cascade
from tbd.detection.verdict import judge
from tbd.errors import InputError
from tbd.params import Calibrate
from tbd.params import Cascade as Asked
from tbd.report.explain import explain
from tests.detection.test_verdict import DECISION, LOW, audit, table
from tests.detection.test_verdict import detector as given_detector

SHORT, LONG, OTHER, OTHER_LONG = (f"{name}(m={m})" for name in ("mean_logprob", "lowest_token") for m in (5, 20))
TRUTH = [1] * 20 + [0] * 20
APART = [*np.linspace(-0.5, -0.1, 20), *np.linspace(-2, -1, 20)]


def test_the_cut_by_hand() -> None:
    ten, five = np.arange(10.0), np.array([7.0, 1.0, math.nan, 5.0, 3.0, 9.0])
    assert cascade.cut([ten], 0.3) == 7 and cascade.cut([ten], 0.31) == 6
    assert cascade.cut([ten], 1) == 0 and cascade.cut([ten], 0.001) == 9
    assert cascade.cut([five], 0.4) == 7 and cascade.cut([ten, five], 0.4) == 6  # 0.4 of each at least


def test_one_score_of_both_by_hand() -> None:
    first, full = np.array([-1.0, -2.0, -3.0, 0.0]), np.array([-3.0, 0.0, -0.5, 1.0])
    # from -1 on it goes on: -3 / 4 and 1 / 2; below: -2 / 3 - 2 and -3 / 4 - 2
    np.testing.assert_allclose(cascade.ranked(first, full, -1.0), [-0.75, -8 / 3, -2.75, 0.5])


numbers = st.floats(-1e3, 1e3) | st.just(math.nan)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20), st.floats(-1e3, 1e3))
def test_who_goes_on_is_above_and_both_keep_their_order(pairs: list[tuple[float, float]], cut: float) -> None:
    first, full = (np.array(column) for column in zip(*pairs, strict=True))
    found, stops = cascade.ranked(first, full, cut), cascade.stops(first, cut)
    assert (found[stops] < -1).all() and not (found[~stops] < -1).any()
    for some, by in ((stops, first), (~stops, full)):
        known = some & ~np.isnan(by)
        assert np.isnan(found[some & np.isnan(by)]).all()
        order = np.argsort(by[known], kind="stable")
        assert (np.diff(found[known][order]) >= 0).all()


@pytest.mark.parametrize("cut", [-math.inf, -1.0, 0.5, math.inf], ids=["all go on", "most", "few", "all stop"])
def test_error_rates_hold_wherever_the_cut_lies(cut: float) -> None:
    """Nothing leaked; scores of the first step and of the whole answer correlate. Two standard errors are allowed."""
    rng, audits, m, n = np.random.default_rng(5), 400, 30, 39
    test = GlobalTest(m, n, permutations=1000, seed=1)
    flagged, said, certified = 0, 0, 0
    for _ in range(audits):
        first = rng.normal(size=m + n)
        scores = cascade.ranked(first, 0.7 * first + 0.7 * rng.normal(size=m + n), cut)
        asked, new = scores[:m], scores[m:]
        flagged += int((conformal_p_values(asked, new) <= 0.05).sum())
        said += test.p_value(asked, new) <= 0.05
        certified += minimum.members_at_least(asked, new, 0.95)[-1] > 0
    # one unseen set serves all questions of an audit, so flags of an audit come together: sd of a share is 0.04
    assert 0.05 - 0.008 < flagged / (audits * m) < 0.05 + 0.004
    assert said / audits < 0.05 + 2 * 0.011 and certified / audits < 0.05 + 2 * 0.011


def scored(first: Any = APART, full: Any = APART, unseen_first: Any = LOW, labels: Any = TRUTH, **made: Any) -> Any:
    """A reference (or an audit) whose answers score so in the first step and whole; the other method tells nothing."""
    mixed = [-1.0, -2.0] * 20
    return table(
        {
            ("checkpoint", OTHER_LONG): (mixed, LOW),
            ("checkpoint", LONG): (full, LOW),
            ("checkpoint", OTHER): (mixed, LOW),
            ("checkpoint", SHORT): (first, unseen_first),
            ("base", LONG): (LOW, LOW),
            ("base", SHORT): (LOW, LOW),
        },
        labels,
        **made,
    )


def calibrated(reference: Any, m: int = 5, keep: float = 0.25) -> Any:
    p = Calibrate(references=["a"], repeats=3, bootstrap=100, seed=0, cascade=Asked(m=m, keep=keep))
    return detector.calibrate([(reference, audit(base=None))], p, DECISION)


def test_the_detector_is_measured_with_its_cascade() -> None:
    found = calibrated(scored())
    steps, figures = found.detector.cascade, found.detector.reference.alone
    assert steps is not None and (steps.id, steps.m, found.detector.tokens) == (SHORT, 5, 20)
    assert steps.cut == sorted(LOW)[-10]  # a quarter of 40 go on
    assert found.detector.choices.alone.id == LONG and list(found.methods["a"]) == [OTHER_LONG, LONG]
    # 30 of 40 unseen questions stop after 5 of 20 tokens: three quarters of three quarters; no member does
    (saved,) = steps.saved
    assert (saved.reference, saved.members, saved.unseen) == ("a", 0, pytest.approx(9 / 16))
    assert saved.others == pytest.approx(np.mean(np.array(APART[20:]) < steps.cut) * 0.75)
    expected = sorted(cascade.ranked(np.array(LOW), np.array(LOW), steps.cut))
    assert figures.auc == 1 and figures.negatives == pytest.approx(expected)
    # members that begin like others stop with them, however they would have gone on
    blind = calibrated(scored(first=[*LOW[:20], *LOW[:20]])).detector.reference.alone
    assert blind.auc < 0.7


def test_a_first_step_that_is_as_long_as_every_answer_is_refused() -> None:
    with pytest.raises(InputError, match="every method needs a base model"):
        calibrated(scored(), m=20)


def test_a_verdict_ranks_who_stopped_below_and_says_how_many() -> None:
    steps = Cascade(id=SHORT, m=5, keep=0.25, cut=-1.0, saved=[])
    found = given_detector(with_base=False).model_copy(update={"cascade": steps})
    found = found.model_copy(update={"choices": calibrated(scored()).detector.choices})
    first = [*[-0.2] * 10, *[-3.0] * 30]
    scores = scored(first, [0.0] * 40, labels=None, tokens=5)
    judged = judge("a", audit(base=None), scores, found, DECISION, seed=0)
    assert (judged.scores[:10] == 0).all() and judged.scores[10:] == pytest.approx(-2.75)
    stopped = judged.verdict.stopped
    assert stopped is not None and (stopped.m, stopped.benchmark, stopped.unseen) == (5, 30, sum(np.array(LOW) < -1.0))
    # of five tokens, what stopped has all it needs, what went on has too few
    assert judged.verdict.answers.short == pytest.approx(0.25)
    assert "30 of 40 benchmark and 39 of 40 unseen questions are judged by the first 5 tokens" in "".join(
        explain(judged.verdict).paragraphs
    )

"""Intervals: against a plain implementation, and how often they hold the truth."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from tbd.detection.intervals import delong, proportion
from tbd.detection.metrics import auc


def naive_delong(members: np.ndarray, others: np.ndarray, confidence: float) -> tuple[float, float]:
    """DeLong et al. 1988, eq. 3 and 4, pair by pair."""
    wins = (members[:, None] > others).astype(float) + (members[:, None] == others) / 2
    area = wins.mean()
    variance = wins.mean(1).var(ddof=1) / len(members) + wins.mean(0).var(ddof=1) / len(others)
    half = norm.ppf((1 + confidence) / 2) * np.sqrt(variance) / (area * (1 - area))
    return expit(logit(area) - half), expit(logit(area) + half)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_delong_is_delongs(seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    members, others = np.round(rng.normal(0.7, 1, 15), 1), np.round(rng.normal(0, 1.5, 24), 1)
    labels = np.r_[np.ones(15), np.zeros(24)]
    order = rng.permutation(39)
    found = delong(np.r_[members, others][order], labels[order], confidence)
    assert found == pytest.approx(naive_delong(members, others, confidence))


def test_delong_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, runs = np.random.default_rng(1), 400
    truth = norm.cdf(1.0 / np.sqrt(2))  # members N(1, 1), others N(0, 1)
    labels = np.repeat([1, 0], 40)
    found = [delong(rng.normal(labels, 1), labels, 0.95) for _ in range(runs)]
    held = np.mean([low <= truth <= high for low, high in found])
    assert 0.92 <= held <= 0.98
    assert all(0 <= low < high <= 1 for low, high in found)


@pytest.mark.parametrize(("sign", "area"), [(1, 1.0), (-1, 0.0)])
def test_perfect_separation_is_not_certainty(sign: int, area: float) -> None:
    scores, labels = sign * np.arange(50), np.repeat([0, 1], [20, 30])
    low, high = delong(scores, labels, 0.95)
    assert auc(scores, labels) == area and low <= area <= high
    assert high - low == pytest.approx(3 / 20, abs=0.01)  # the rule of three on the smaller class


def test_one_member_says_next_to_nothing() -> None:
    low, high = delong([2.0, 1.0, 3.0, 0.0], [1, 0, 0, 0], 0.95)
    assert high - low > 0.9


def test_proportion_is_exact() -> None:
    assert proportion(0, 10, 0.95) == pytest.approx((0, 1 - 0.025**0.1))  # closed form: (1 - p)^10 = 0.025
    assert proportion(10, 10, 0.95) == pytest.approx((0.025**0.1, 1))
    assert proportion(0, 0, 0.95) == (0.0, 1.0)
    rng = np.random.default_rng(2)
    for p, n in ((0.05, 40), (0.5, 20), (0.9, 60)):
        low, high = np.array([proportion(k, n, 0.95) for k in range(n + 1)]).T
        hits = rng.binomial(n, p, 4000)
        assert np.mean((low[hits] <= p) & (p <= high[hits])) >= 0.945


def test_a_higher_confidence_is_wider() -> None:
    scores, labels = np.random.default_rng(5).normal(np.repeat([1, 0], 30), 1), np.repeat([1, 0], 30)
    for function in (lambda c: delong(scores, labels, c), lambda c: proportion(7, 30, c)):
        (low, high), (lower, higher) = function(0.8), function(0.99)
        assert lower < low < high < higher

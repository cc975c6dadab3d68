"""The certified minimum: by hand, against enumeration, and its error by simulation."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import betabinom, mannwhitneyu

from tbd.detection.minimum import critical_values, flags_by_chance, members_at_least


def test_critical_values_by_hand() -> None:
    # One question over n = 19: U is 0..19, equally likely. P(U > 18) = 1/20, P(U > 17) = 2/20.
    assert critical_values(1, 19, 0.05).tolist() == [0, 18]
    assert critical_values(1, 19, 0.1).tolist() == [0, 17]
    assert critical_values(1, 18, 0.05)[1] == 18  # 1/19 is too likely: nothing is ever rejected


@pytest.mark.parametrize(("m", "n"), [(3, 6), (8, 19), (30, 40), (31, 40), (60, 19)])
def test_critical_values_are_those_of_the_exact_test(m: int, n: int) -> None:
    """The smallest U whose exceedance has at most the level's probability; U of s = m questions."""
    unseen = np.arange(n) + 0.5
    found = critical_values(m, n, 0.05)[m]

    def p_value(total: float) -> float:  # of some scores whose U is `total`
        base, rest = divmod(int(total), m)
        scores = np.sort(np.r_[np.full(m - rest, base), np.full(rest, base + 1)]) + np.arange(m) * 1e-6
        return float(mannwhitneyu(scores, unseen, alternative="greater", method="exact").pvalue)

    assert p_value(found + 1) <= 0.0505 and p_value(found) > 0.0495


def test_bounds_are_those_of_closed_testing() -> None:
    """Six questions: every intersection of hypotheses is tested, and none of those left allows more than a bound."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        scores, unseen = rng.normal(1, 1.5, 6), rng.normal(size=25)
        above = (scores[:, None] > unseen).sum(1)
        critical = critical_values(6, 25, 0.05)
        kept = [
            set(chosen)
            for size in range(7)
            for chosen in combinations(range(6), size)
            if above[list(chosen)].sum() <= critical[size]
        ]
        top = np.argsort(-scores)
        expected = [r - max(len(set(top[:r]) & some) for some in kept) for r in range(1, 7)]
        assert members_at_least(scores, unseen, 0.95).tolist() == expected


@pytest.mark.parametrize(("m", "n", "digits"), [(35, 400, 3), (150, 60, 1), (150, 60, 0), (300, 300, 3)])
def test_bounds_of_many_questions_are_those_of_the_definition(m: int, n: int, digits: int) -> None:
    """Every number of others, and every number of the lowest beside them, tried."""
    rng = np.random.default_rng(m + digits)
    for leaked in (0, m // 5, m):
        scores, unseen = np.round(rng.normal(size=m) + 2 * (np.arange(m) < leaked), digits), rng.normal(size=n)
        unseen = np.round(unseen, digits)
        lowest = np.concatenate([[0], np.cumsum((np.sort(scores)[:, None] > unseen).sum(1))])
        critical, found, expected = critical_values(m, n, 0.05), 0, []
        for r in range(1, m + 1):
            rest, others = np.arange(m - r + 1), r - found
            top = lowest[m - r + others] - lowest[m - r]
            found += not (top + lowest[rest] <= critical[others + rest]).any()
            expected.append(found)
        assert members_at_least(scores, unseen, 0.95).tolist() == expected


def test_clear_members_are_counted() -> None:
    rng = np.random.default_rng(3)
    bounds = members_at_least(np.r_[rng.normal(9, 1, 60), rng.normal(size=40)], rng.normal(size=200), 0.95)
    assert 45 <= bounds[-1] <= 60 and (np.diff(bounds) >= 0).all() and (np.diff(bounds) <= 1).all()
    assert members_at_least(np.zeros(50), np.zeros(50), 0.95)[-1] == 0


@pytest.mark.parametrize("strength", [0.95, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 1.0])
def test_it_is_rarely_above_the_truth(share: float, strength: float) -> None:
    rng, runs, m = np.random.default_rng(int(100 * share)), 100, 128
    members = round(share * m)
    found, above = np.zeros(runs), 0
    for run in range(runs):
        scores = np.r_[rng.normal(strength, 1, members), rng.normal(size=m - members)]
        bounds = members_at_least(scores, rng.normal(size=100), 0.95)
        true = np.cumsum(np.argsort(-scores) < members)  # members among the top r
        above += (bounds > true).any()
        found[run] = bounds[-1]
    assert above / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    if (share, strength) == (0.25, 2.0):
        assert found.mean() / m >= 0.09


def test_flags_by_chance() -> None:
    assert flags_by_chance(128, 100, 0.05, 0.95) == (pytest.approx(128 * 5 / 101), 13)
    assert flags_by_chance(10, 18, 0.05, 0.95) == (0.0, 0)  # none can be flagged
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(4000):
        fifth = np.sort(rng.random(100))[-5]  # a score above it has at most four unseen ones above
        counts.append((rng.random(128) > fifth).sum())
    assert np.mean(counts) == pytest.approx(128 * 5 / 101, abs=0.2)
    assert np.mean(np.array(counts) <= 13) == pytest.approx(betabinom(128, 5, 96).cdf(13), abs=0.02)


@pytest.mark.parametrize("scores", [([1.0, np.nan], [1.0]), ([1.0], [np.nan])])
def test_nan_is_refused(scores: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="unscored"):
        members_at_least(*scores, 0.95)

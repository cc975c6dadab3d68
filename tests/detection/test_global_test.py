"""The global test: by hand, by enumeration, its tail, its size on scores of every kind, and clusters."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom, norm

from tbd.detection.global_test import GRID, GlobalTest, Stratum, beyond, normal_scores, rank_values, tail


def test_rank_values_by_hand() -> None:
    # Four scores, u = 1/8, 3/8, 5/8, 7/8 from the highest down; the two that tie share the mean of 3/8 and 5/8.
    found = rank_values(np.array([5.0, 9.0, 5.0, 1.0]))
    savage = (-np.log(3 / 8) - np.log(5 / 8)) / 2
    np.testing.assert_allclose(found[:, 0], [savage, -np.log(1 / 8), savage, -np.log(7 / 8)])
    cubed = [norm.isf(1 / 8) ** 3, norm.isf(3 / 8) ** 3 / 2]
    np.testing.assert_allclose(found[:, 1], [cubed[1], cubed[0], cubed[1], 0], atol=1e-12)


def test_all_tied_is_no_evidence_at_all() -> None:
    assert GlobalTest(30, 20, permutations=1000, seed=0).p_value(np.zeros(30), np.zeros(20)) == 1.0


def test_it_is_the_share_of_all_relabellings() -> None:
    """Five against five: the 252 choices can be counted."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=10)
    scores[:5] += 1
    values = np.round((rank_values(scores) - rank_values(scores).mean(0)) / GRID) * GRID
    sums = np.array([values[list(chosen)].sum(0) for chosen in combinations(range(10), 5)])
    each = np.array([(sums >= row).mean(0) for row in sums]).min(1)
    exact = (each <= each[0]).mean()
    found = GlobalTest(5, 5, permutations=20000, seed=1).p_value(scores[:5], scores[5:])
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact / 20000))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-3, 3) | st.sampled_from([0.0, 1.0]), min_size=3, max_size=12),
    st.lists(st.floats(-3, 3) | st.sampled_from([0.0, 1.0]), min_size=3, max_size=12),
)
def test_only_ranks_count_and_higher_scores_never_speak_against(benchmark: list[float], unseen: list[float]) -> None:
    test = GlobalTest(len(benchmark), len(unseen), permutations=200, seed=0)
    p = test.p_value(benchmark, unseen)
    stretched = [2 * np.asarray(scores) ** 3 + 5 * np.asarray(scores) for scores in (benchmark, unseen)]
    if len({*benchmark, *unseen}) == len({*stretched[0], *stretched[1]}):  # rounding may tie what did not
        assert test.p_value(*stretched) == p
    assert test.p_value(np.add(benchmark, 10), unseen) <= p <= 1


def test_the_same_seed_gives_the_same_p_value() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(0.4, 1, 40), rng.normal(size=50)
    one, two = (GlobalTest(40, 50, permutations=2000, seed=7).p_value(*scores) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("unseen", [[1.0, np.nan], [np.nan]])
def test_nan_is_refused(unseen: list[float]) -> None:
    with pytest.raises(ValueError, match="unscored"):
        GlobalTest(2, len(unseen), permutations=100, seed=0).p_value([1.0, 2.0], unseen)


# -- the tail


@pytest.mark.parametrize(("benchmark", "unseen"), [(20, 19), (40, 40), (128, 100)])
@pytest.mark.parametrize("decimals", [6, 0])
def test_the_tail_is_what_permutations_count(benchmark: int, unseen: int, decimals: int) -> None:
    rng, n = np.random.default_rng(benchmark), benchmark + unseen
    values = np.round(rank_values(np.round(rng.normal(size=n), decimals)) / GRID) * GRID
    keys = rng.random((60_000, n), np.float32)
    sums = values[np.argpartition(keys, benchmark, axis=1)[:, :benchmark]].sum(axis=1)
    totals = np.quantile(sums, 0.998, axis=0, method="higher")
    for column, total, counted in zip(values.T, totals, (sums >= totals).mean(axis=0), strict=True):
        found = tail(column, total, [Stratum(np.arange(n), benchmark)])
        assert 0.5 * counted - 4e-4 < found < 1.3 * counted + 4e-4


def test_the_tail_of_two_values_is_hypergeometric() -> None:
    values = np.zeros(228)
    values[:23] = 1
    everything = [Stratum(np.arange(228), 128)]
    assert tail(values, 23.0, everything) == pytest.approx(hypergeom.sf(22, 228, 23, 128))  # the largest sum: counted
    for ones in (17, 19, 21):
        assert 0.97 < tail(values, float(ones), everything) / hypergeom.sf(ones - 1, 228, 23, 128) < 1.03


def test_a_sum_that_is_expected_or_less_is_no_surprise() -> None:
    assert tail(np.arange(20.0), 95.0, [Stratum(np.arange(20), 10)]) == 1.0
    # the benchmark lies between the top tenth and the lower half: Savage's sum is high, the other one low
    scores = -np.arange(1000.0)
    test = GlobalTest(400, 600, permutations=1000, seed=0)
    assert test.p_value(scores[100:500], np.r_[scores[:100], scores[500:]]) < 1e-7


def test_pairs_are_counted_where_the_tail_is_too_large() -> None:
    """A hundred sources with one question in each set, where coins under a condition are not close to two labels."""
    rng, sources = np.random.default_rng(0), np.arange(100)
    test = GlobalTest(100, 100, permutations=10_000, seed=0, sources=(sources, sources))
    common = rng.normal(size=100)
    assert test.p_value(common + rng.normal(1, 0.5, 100), common + rng.normal(0, 0.5, 100)) <= 11 / 10_001


def test_small_p_values_are_resolved() -> None:
    """Ever clearer contamination, ever smaller p: down to below 1e-7, without a jump where counting ends."""
    test = GlobalTest(128, 100, permutations=10_000, seed=0)
    rng = np.random.default_rng(1)
    unseen, others = rng.normal(size=100), rng.normal(size=128)
    found = [test.p_value(np.r_[others[leaked:], others[:leaked] + 3], unseen) for leaked in range(0, 70, 3)]
    assert found[0] > 0.05 and found[-1] < 1e-7
    assert all(after <= 3 * before for before, after in pairwise(found))


# -- size, by simulation

KINDS = {
    "continuous": lambda rng, n: rng.normal(size=n),
    "rounded": lambda rng, n: np.round(rng.gamma(2.0, 1.0, n)),
    "60% at one value": lambda rng, n: np.maximum(rng.normal(size=n), norm.ppf(0.6)),
    "1% of two values": lambda rng, n: (rng.random(n) < 0.01).astype(float),
    "10% of two values": lambda rng, n: (rng.random(n) < 0.1).astype(float),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("benchmark", "unseen"), [(20, 100), (128, 100), (40, 400)])
def test_an_unseen_benchmark_is_rarely_called_contaminated(kind: str, benchmark: int, unseen: int) -> None:
    rng, runs = np.random.default_rng(benchmark), 200
    test = GlobalTest(benchmark, unseen, permutations=1000, seed=benchmark)
    found = [test.p_value(KINDS[kind](rng, benchmark), KINDS[kind](rng, unseen)) <= 0.05 for _ in range(runs)]
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("leaked", "strength", "power"), [(13, 2.0, 0.5), (32, 0.95, 0.45), (32, 2.0, 0.95)])
def test_power(leaked: int, strength: float, power: float) -> None:
    """128 against 100; Mann-Whitney and Benjamini-Hochberg at half the level each found 0.17, 0.36 and 0.82."""
    rng = np.random.default_rng(leaked)
    test = GlobalTest(128, 100, permutations=2000, seed=0)
    found = 0
    for _ in range(200):
        scores = np.r_[rng.normal(strength, 1, leaked), rng.normal(size=128 - leaked)]
        found += test.p_value(scores, rng.normal(size=100)) <= 0.05
    assert found / 200 >= power


# -- clusters


def clustered(rng: np.random.Generator, clusters: int, size: int, correlation: float) -> np.ndarray:
    common = np.repeat(rng.normal(size=clusters), size)
    return np.asarray(np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.normal(size=clusters * size))


def test_clusters_are_permuted_whole() -> None:
    rng, runs = np.random.default_rng(4), 300
    sources = [f"a{i // 10}" for i in range(120)], [f"b{i // 10}" for i in range(120)]
    whole = GlobalTest(120, 120, permutations=500, seed=0, sources=sources)
    single = GlobalTest(120, 120, permutations=500, seed=0)
    assert whole.clustered and whole.units == (12, 12) and not single.clustered
    found = np.zeros(2)
    for _ in range(runs):
        scores = clustered(rng, 12, 10, 0.3), clustered(rng, 12, 10, 0.3)
        found += [test.p_value(*scores) <= 0.05 for test in (whole, single)]
    assert found[0] / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert found[1] / runs > 0.1  # what it would be if questions were taken for independent


def test_a_source_in_both_sets_holds_its_own_comparison() -> None:
    """One source with high scores, another with low ones, unevenly spread: within each nothing differs."""
    rng = np.random.default_rng(5)
    sources = ["high"] * 30 + ["low"] * 10, ["high"] * 10 + ["low"] * 30
    scores = np.r_[rng.normal(4, 1, 30), rng.normal(0, 1, 10)], np.r_[rng.normal(4, 1, 10), rng.normal(0, 1, 30)]
    within = GlobalTest(40, 40, permutations=1000, seed=0, sources=sources)
    assert len(within.strata) == 2 and within.units == (40, 40)
    assert within.p_value(*scores) > 0.05 > GlobalTest(40, 40, permutations=1000, seed=0).p_value(*scores)


def test_a_stratum_that_leaves_no_choice() -> None:
    """Two large sources, each in one set, beside questions of one that is in both."""
    sources = ["both"] * 20 + ["a"] * 20, ["both"] * 20 + ["b"] * 20
    test = GlobalTest(40, 40, permutations=1000, seed=0, sources=sources)
    with np.errstate(invalid="raise"):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            assert 0 < test.p_value(rng.normal(3, 1, 40), rng.normal(size=40)) <= 11 / 1001


def test_a_tail_over_strata() -> None:
    """Two strata of which each draws all its high values: the ways multiply."""
    values = np.r_[np.ones(4), np.zeros(6), np.ones(3), np.zeros(5)]
    strata = [Stratum(np.arange(10), 4), Stratum(np.arange(10, 18), 3)]
    assert tail(values, 7.0, strata) == pytest.approx(1 / 210 / 56)
    inside = [hypergeom.pmf(range(5), 10, 4, 4), hypergeom.pmf(range(4), 8, 3, 3)]
    six = np.convolve(*inside)[6:].sum()
    assert 0.8 * six < tail(values, 6.0, strata) < 1.2 * six


# -- the shift that would explain it, and the shift that another model leaves possible


def test_beyond_by_hand() -> None:
    # sqrt(2) z = z + (sqrt(2) - 1) z, and z is 1.645 for 5%: 0.681 of a standard error, one-sided 0.752
    assert beyond(0.05) == pytest.approx(norm.cdf(0.681), abs=2e-4) and beyond(0.5) == 0.5


def test_shift_possible() -> None:
    rng = np.random.default_rng(8)
    test = GlobalTest(200, 200, permutations=2000, seed=0)
    same, shifted = rng.normal(size=200), rng.normal(size=200) + 0.5
    unseen = rng.normal(size=200)
    assert 0 <= test.shift_possible(same, unseen, 0.05) < 0.3 < test.shift_possible(shifted, unseen, 0.05) < 0.9
    assert test.shift_needed(shifted, unseen, 0.05) < test.shift_possible(shifted, unseen, 0.05)
    assert test.shift_possible(unseen - 2, unseen, 0.05) == 0


@pytest.mark.parametrize("edge", ["uniform", "negative gamma"])
def test_an_equal_shift_of_scores_with_a_sharp_edge_is_no_contamination(edge: str) -> None:
    rng, runs = np.random.default_rng(9), 100
    test = GlobalTest(128, 100, permutations=1000, seed=0)

    def draw(n: int) -> np.ndarray:
        return rng.random(n) * np.sqrt(12) if edge == "uniform" else -rng.gamma(2, 1, n) / np.sqrt(2)

    found = 0
    for _ in range(runs):
        needed = test.shift_needed(draw(128) + 0.2, draw(100), 0.05)
        found += needed > test.shift_possible(draw(128) + 0.2, draw(100), 0.05)
    assert found / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_shift_needed() -> None:
    rng = np.random.default_rng(6)
    unseen, shifted = rng.normal(size=200), rng.normal(size=200) + 0.5
    test = GlobalTest(200, 200, permutations=2000, seed=0)
    assert test.shift_needed(unseen, unseen, 0.05) == 0
    needed = test.shift_needed(shifted, unseen, 0.05)
    assert 0.1 < needed < 0.6  # about 0.5 less 1.645 standard errors of 0.1
    scale = normal_scores(np.r_[shifted, unseen])
    assert (
        test.p_value(scale[:200] - needed, scale[200:]) > 0.05 >= test.p_value(scale[:200] - needed + 0.01, scale[200:])
    )

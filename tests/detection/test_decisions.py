"""Decisions: values worked by hand, every branch, and error rates by simulation."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu

from tbd.detection.decisions import (
    Evidence,
    benjamini_hochberg,
    conformal_p_values,
    contamination_interval,
    contamination_rate,
    decide,
    differs,
    exceeds,
    negatives_needed,
)

RULES = {"fpr": 0.05, "level": 0.05, "exchangeability_level": 0.01, "min_power": 0.2}


def test_conformal_p_values_by_hand() -> None:
    # Four negatives, n + 1 = 5. 9: none at least as high, 1/5. 3: two (3 and 4), 3/5, a tie counts against. 0: all,
    # 5/5.
    found = conformal_p_values([9.0, 3.0, 0.0, 3.5, np.nan], [1.0, 4.0, 2.0, 3.0])
    np.testing.assert_allclose(found, [0.2, 0.6, 1.0, 0.4, np.nan])


def test_all_tied_is_no_evidence_at_all() -> None:
    assert conformal_p_values([0.0, 0.0], np.zeros(19)).tolist() == [1.0, 1.0]


rate = partial(contamination_rate, storey_lambda=0.5)


@pytest.mark.parametrize("function", [conformal_p_values, exceeds, differs, rate])
@pytest.mark.parametrize("negatives", [[1.0, np.nan], []])
def test_nan_among_the_negatives_is_refused(function, negatives) -> None:
    with pytest.raises(ValueError, match="unscored"):
        function(np.array([1.0, 2.0]), np.array(negatives))


@pytest.mark.parametrize("function", [exceeds, differs, rate])
@pytest.mark.parametrize("scores", [[1.0, np.nan], []])
def test_nan_among_scores_taken_together_is_refused(function, scores) -> None:
    with pytest.raises(ValueError, match="unscored"):
        function(np.array(scores), np.array([1.0, 2.0]))


def test_benjamini_hochberg_by_hand() -> None:
    # Sorted 0.01 0.02 0.03 0.2 against 0.05 * i / 4 = 0.0125 0.025 0.0375 0.05: the third passes, so the first three
    # do.
    assert benjamini_hochberg([0.2, 0.03, 0.01, 0.02], 0.05).tolist() == [False, True, True, True]
    # 0.02 alone is above 0.0125, but 0.024 <= 0.025 carries it along: step up, not step down.
    assert benjamini_hochberg([0.02, 0.024, 0.9, 0.9], 0.05).tolist() == [True, True, False, False]
    assert benjamini_hochberg([0.9, 0.8], 0.05).tolist() == [False, False]
    assert benjamini_hochberg([], 0.05).tolist() == []
    assert benjamini_hochberg([np.nan, 0.04], 0.05).tolist() == [False, True]
    assert benjamini_hochberg([np.nan], 0.05).tolist() == [False]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from([0.025, 0.05, 0.2]))
def test_benjamini_hochberg_is_scipys(p_values: list[float], level: float) -> None:
    np.testing.assert_array_equal(
        benjamini_hochberg(p_values, level), false_discovery_control(p_values) <= level * (1 + 1e-12)
    )


@pytest.mark.parametrize("m", range(1, 200))
def test_p_values_on_the_bound_itself_are_rejected(m: int) -> None:
    """39 negatives give p-values of at least 1/40 = 0.025, half the default level: rounding must not lose them."""
    assert benjamini_hochberg(np.full(m, 1 / 40), 0.025).all()


def test_benchmark_tests() -> None:
    high, low = np.arange(10.0, 40), np.arange(0.0, 30)
    assert exceeds(high, low) == mannwhitneyu(high, low, alternative="greater").pvalue < 0.001
    assert exceeds(low, high) > 0.99
    assert differs(low, high) == differs(high, low) < 0.01
    assert exceeds(np.zeros(30), np.zeros(30)) == 1.0


@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.05, 0.07, 0.1, 0.2, 1 / 3, 0.5, 0.9])
def test_negatives_needed_is_the_fewest(fpr: float) -> None:
    n = negatives_needed(fpr)
    assert conformal_p_values([1.0], np.zeros(n))[0] <= fpr if n else fpr >= 1
    assert n == 1 or conformal_p_values([1.0], np.zeros(n - 1))[0] > fpr


# -- every branch


def evidence(**changed: float | None) -> Evidence:
    return Evidence(
        **{"p_value": 0.4, "discoveries": 0, "exchangeability": 0.5, "power": 0.6, "negatives": 40, **changed}
    )


def test_no_evidence_names_the_power() -> None:
    verdict, reasons = decide(evidence(), **RULES)
    assert verdict == "NO EVIDENCE"
    assert reasons == [
        "The benchmark as a whole scores no higher than unseen questions (p = 0.4 > 0.025), and no question "
        "stands out by itself.",
        "On the reference the detector finds 60% of planted members.",
    ]


def test_contaminated_by_either_route() -> None:
    verdict, reasons = decide(evidence(p_value=0.025), **RULES)
    assert verdict == "CONTAMINATED"
    assert reasons == ["The benchmark as a whole scores higher than unseen questions (p = 0.025 <= 0.025)."]
    verdict, reasons = decide(evidence(discoveries=3), **RULES)
    assert verdict == "CONTAMINATED"
    assert reasons == ["3 questions stand out one by one at a false-discovery rate of 0.025 (Benjamini-Hochberg)."]
    assert len(decide(evidence(p_value=1e-9, discoveries=3), **RULES)[1]) == 2


def test_contaminated_needs_neither_power_nor_base() -> None:
    assert decide(evidence(p_value=0.001, power=None, exchangeability=None), **RULES)[0] == "CONTAMINATED"
    assert decide(evidence(p_value=0.001, power=0.0), **RULES)[0] == "CONTAMINATED"


def test_each_route_has_half_the_level() -> None:
    assert decide(evidence(p_value=0.0251), **RULES)[0] == "NO EVIDENCE"


def test_too_few_negatives() -> None:
    verdict, reasons = decide(evidence(negatives=18, p_value=1e-9), **RULES)
    assert verdict == "INCONCLUSIVE" and "18 unseen" in reasons[0] and "19" in reasons[0]
    assert decide(evidence(negatives=19), **RULES)[0] == "NO EVIDENCE"


def test_base_that_tells_the_sets_apart() -> None:
    verdict, reasons = decide(evidence(exchangeability=0.01, p_value=1e-9), **RULES)
    assert verdict == "INCONCLUSIVE" and len(reasons) == 1 and "base model" in reasons[0] and "p = 0.01" in reasons[0]
    assert decide(evidence(exchangeability=0.011), **RULES)[0] == "NO EVIDENCE"


def test_power_unknown_or_low() -> None:
    verdict, reasons = decide(evidence(power=None), **RULES)
    assert verdict == "INCONCLUSIVE" and "no labelled reference" in reasons[1]
    verdict, reasons = decide(evidence(power=0.19), **RULES)
    assert verdict == "INCONCLUSIVE" and "only 19%" in reasons[1] and "at least 20%" in reasons[1]
    assert decide(evidence(power=0.2), **RULES)[0] == "NO EVIDENCE"


@pytest.mark.parametrize("name", ["p_value", "exchangeability", "power"])
def test_nan_is_not_evidence_of_absence(name: str) -> None:
    with pytest.raises(ValueError, match="NaN"):
        evidence(**{name: float("nan")})


# -- error rates by simulation


def verdicts(rng: np.random.Generator, runs: int, benchmark: int, negatives: int, decimals: int) -> tuple[float, float]:
    """Share of CONTAMINATED and of flagged questions over benchmarks nobody was trained on; few decimals make ties."""
    contaminated, flagged = 0, 0.0
    for _ in range(runs):
        s, n = (np.round(rng.gamma(2.0, 1.0, size), decimals) for size in (benchmark, negatives))
        p = conformal_p_values(s, n)
        found = Evidence(exceeds(s, n), int(benjamini_hochberg(p, 0.025).sum()), None, 0.9, negatives)
        contaminated += decide(found, **RULES)[0] == "CONTAMINATED"
        flagged += (p <= RULES["fpr"]).mean()
    return contaminated / runs, flagged / runs


@pytest.mark.parametrize(
    ("benchmark", "negatives", "decimals"), [(40, 40, 6), (80, 39, 1), (20, 200, 6), (100, 400, 1)]
)
def test_an_uncontaminated_benchmark_is_rarely_called_contaminated(
    benchmark: int, negatives: int, decimals: int
) -> None:
    runs = 1000
    contaminated, flagged = verdicts(np.random.default_rng(benchmark), runs, benchmark, negatives, decimals)
    assert contaminated <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    # The flagged share of one run hangs on its negatives: its standard deviation is about sqrt(fpr / negatives).
    assert flagged <= 0.05 + 3 * np.sqrt(0.05 / negatives / runs) + 3 * np.sqrt(0.05 / benchmark / runs)


def test_false_discoveries_among_the_discoveries() -> None:
    """30 members, clearly higher, in a benchmark of 100, against 400 negatives: at most q of the discoveries are
    false."""
    rng, q, runs = np.random.default_rng(5), 0.1, 500
    false, found = np.zeros(runs), np.zeros(runs)
    for run in range(runs):
        scores = rng.normal(np.repeat([3.0, 0.0], [30, 70]), 1)
        rejected = benjamini_hochberg(conformal_p_values(scores, rng.normal(size=400)), q)
        false[run] = rejected[30:].sum() / max(rejected.sum(), 1)
        found[run] = rejected[:30].mean()
    assert false.mean() <= q + 3 * false.std() / np.sqrt(runs)
    assert found.mean() > 0.7  # and it is not by finding nothing


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_contamination_rate_finds_the_share(share: float) -> None:
    rng, n = np.random.default_rng(6), 100
    rates, held = [], 0
    for _ in range(60):
        members = int(share * n)
        scores = np.r_[rng.normal(9, 1, members), rng.normal(0, 1, n - members)]  # members far above everything
        negatives = rng.normal(size=100)
        rates.append(rate(scores, negatives))
        low, high = contamination_interval(scores, negatives, 0.5, rng, 100, 0.95)
        held += low - 1e-12 <= share <= high + 1e-12
    # Cut off at 0 it is biased upward there, by at most its own standard deviation.
    assert np.mean(rates) == pytest.approx(share, abs=0.08 if share == 0 else 0.03)
    assert held >= 0.85 * 60


def test_contamination_rate_is_a_lower_estimate() -> None:
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

"""What the base says about the two sets."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from tbd.detection.same_kind import ALLOWANCE, base_shift, differs


def test_differs_is_mann_whitneys_test() -> None:
    high, low = np.arange(10.0, 40), np.arange(0.0, 30)
    assert differs(low, high) == differs(high, low) == mannwhitneyu(high, low).pvalue < 0.01
    assert differs(np.zeros(30), np.zeros(30)) == 1.0


def test_a_shift_is_measured_in_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    found = base_shift(rng.normal(10.0, 2.0, 3000), rng.normal(9.0, 2.0, 3000))
    assert found.estimate == pytest.approx(0.5, abs=0.08)
    assert found.bound - found.estimate == pytest.approx(ALLOWANCE * np.sqrt(2 / 3000), rel=0.12)
    assert pytest.approx(0.681, abs=0.001) == ALLOWANCE  # sqrt(2) * 1.645 = 1.645 + 0.681


def test_sets_that_do_not_overlap_or_do_not_vary() -> None:
    apart = base_shift(np.arange(10.0, 20), np.arange(10.0))
    assert 2 < apart.estimate < apart.bound + 1e-9 and np.isfinite(apart.bound)
    assert apart.bound > apart.estimate + 0.5
    # a single question, or scores that all tie, leave as much possible as chance does
    assert base_shift(np.zeros(10), np.zeros(10)) == (0.0, pytest.approx(ALLOWANCE * np.sqrt(1 / 5), rel=0.06))
    one = base_shift(np.array([9.5]), np.arange(20.0))
    assert one.bound - one.estimate == pytest.approx(ALLOWANCE * np.sqrt(1 + 1 / 20), rel=0.06)

"""The power of an audit, against audits that are really run on simulated scores."""

import numpy as np
import pytest
from scipy.stats import norm

from tbd.detection import power
from tbd.detection.global_test import GlobalTest
from tbd.detection.same_kind import base_shift
from tests.detection.test_decisions import DECISION


def reference(strength: float, members: int = 64, unseen: int = 100) -> power.Reference:
    """Members that lie as those of a normal distribution do, without the luck of a draw."""
    places = norm.sf(norm.isf((np.arange(members) + 0.5) / members) + strength)
    return power.Reference(tuple(np.floor(places * (unseen + 1)).astype(int)), unseen)


def curve(strength: float, benchmark: int, unseen: int, with_base: bool = False, simulations: int = 200) -> power.Curve:
    decision = DECISION.model_copy(update={"simulations": simulations})
    return power.curve(reference(strength), benchmark, unseen, with_base=with_base, decision=decision, seed=0)


def test_detectable_by_hand() -> None:
    rising = np.array([0, 0, 0, 0.1, 0.3, 0.6, 0.7, 0.9, *[1.0] * 8])
    # 0.8 lies half way between 0.7 at 12.5% and 0.9 at 15%
    assert power.SHARES[6:8] == (0.125, 0.15) and power.detectable(rising) == pytest.approx(0.1375)
    assert power.detectable(np.full(16, 0.79)) == np.inf and power.detectable(np.full(16, 0.8)) == 0.01


@pytest.mark.parametrize("with_base", [False, True])
def test_the_planned_share_is_found_in_four_audits_of_five(with_base: bool) -> None:
    planned = curve(2.0, 128, 100, with_base, simulations=400).mde80.estimate
    rng, leaked, runs = np.random.default_rng(1), round(planned * 128), 200
    test = GlobalTest(128, 100, permutations=1000, seed=0)
    found = 0
    for _ in range(runs):
        benchmark, unseen = rng.normal(size=128), rng.normal(size=100)
        benchmark[:leaked] += 2
        bound = base_shift(rng.normal(size=128), rng.normal(size=100)).bound if with_base else 0.0
        found += test.shift_needed(benchmark, unseen, 0.05) > max(bound, 0)
    assert found / runs == pytest.approx(0.8, abs=0.12)
    assert planned == pytest.approx(0.2 if with_base else 0.155, abs=0.03)


def test_more_of_anything_is_more_power() -> None:
    weak, strong, large = curve(0.95, 128, 100), curve(2.0, 128, 100), curve(2.0, 400, 400)
    assert weak.mde80.estimate > strong.mde80.estimate > large.mde80.estimate
    for one in (weak, strong, large):
        assert (np.diff(one.power) >= 0).all() and (one.low <= one.power).all() and (one.power <= one.high).all()
        assert one.mde80.low <= one.mde80.estimate <= one.mde80.high


def test_weak_and_small_audits_see_nothing() -> None:
    found = curve(0.5, 20, 20)
    assert found.mde80.high == np.inf and found.power[0] < 0.15
    result = found.result("reference", True, members_flagged={"estimate": 0.1, "low": 0, "high": 0.2})
    assert result.mde80_high is None and len(result.curve) == len(power.SHARES)


def test_nothing_leaked_is_found_at_the_level() -> None:
    """Members that lie like unseen questions: whatever share of them, the audit says CONTAMINATED in 5%."""
    found = curve(0.0, 128, 100)
    assert 0.01 < found.power[-1] < 0.12


def test_how_many_more_unseen_questions_would_do() -> None:
    decision = DECISION.model_copy(update={"detectable_share": 0.4})
    kwargs = {"with_base": False, "decision": decision, "seed": 0}
    before = power.curve(reference(0.95), 128, 60, **kwargs).mde80.high
    more = power.more_unseen(reference(0.95), 128, 60, **kwargs)
    assert before > 0.4 and more is not None
    assert power.curve(reference(0.95), 128, 60 + more, **kwargs).mde80.high <= 0.4
    assert power.more_unseen(reference(0.1), 20, 20, **kwargs) is None

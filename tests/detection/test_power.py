"""The power of an audit, against audits that are really run on simulated scores."""

import numpy as np
import pytest
from scipy.stats import norm

from tbd.detection import power
from tbd.detection.global_test import GlobalTest
from tbd.detection.results import Share
from tests.detection.test_decisions import DECISION

SHARE = Share(estimate=0.1, low=0, high=0.2)


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
    shares = np.array(power.SHARES)
    assert power.SHARES[6:8] == (0.125, 0.15) and power.detectable(rising, shares) == pytest.approx(0.1375)
    assert power.detectable(np.full(16, 0.79), shares) == np.inf
    assert power.detectable(np.full(16, 0.8), shares) == 0.01


def test_shares_are_of_whole_questions() -> None:
    """Of 20 questions 1% to 5% is one; 7.5%, 10% and 12.5% are two."""
    found = curve(8.0, 20, 400)
    assert (found.shares * 20).tolist() == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20]
    assert found.mde80.estimate >= 0.05
    assert [point.leaked for point in found.result("r", True, SHARE).curve] == found.shares.tolist()


def test_an_assumed_strength_has_no_interval() -> None:
    decision = DECISION.model_copy(update={"simulations": 200})
    found = power.curve(power.assumed(2.0), 128, 100, with_base=False, decision=decision, seed=0)
    assert found.mde80.low == found.mde80.estimate == found.mde80.high
    assert found.mde80.estimate == pytest.approx(curve(2.0, 128, 100).mde80.estimate, abs=0.03)
    # d' 2: a member lies above P(Z > z - 2); the median member above 1 - Phi(2) = 2.275% of the unseen questions
    middle = np.mean(power.assumed(2.0).above[499:501])
    assert middle / 1e6 == pytest.approx(0.02275, abs=1e-4)


@pytest.mark.parametrize("with_base", [False, True])
def test_the_planned_share_is_found_in_four_audits_of_five(with_base: bool) -> None:
    planned = curve(2.0, 128, 100, with_base, simulations=400).mde80.estimate
    rng, leaked, runs = np.random.default_rng(1), round(planned * 128), 200
    test = GlobalTest(128, 100, permutations=1000, seed=0)
    found = 0
    for _ in range(runs):
        benchmark, unseen = rng.normal(size=128), rng.normal(size=100)
        benchmark[:leaked] += 2
        base = rng.normal(size=128), rng.normal(size=100)
        bound = test.shift_possible(*base, 0.05) if with_base else 0.0
        found += test.shift_needed(benchmark, unseen, 0.05) > max(bound, 0)
    assert found / runs == pytest.approx(0.8, abs=0.12)
    # 0.8 of 250 audits were found at these shares, run as above with several numbers of leaked questions
    assert planned == pytest.approx(0.22 if with_base else 0.128, abs=0.03)


def test_a_share_planned_from_an_assumed_strength_is_the_share_found() -> None:
    """At d' 2, 128 v 100; the shares tried are far enough apart to be told from each other by 200 audits."""
    decision = DECISION.model_copy(update={"simulations": 400})
    planned = power.curve(power.assumed(2.0), 128, 100, with_base=False, decision=decision, seed=0).mde80.estimate
    rng, leaked = np.random.default_rng(3), np.array([8, 12, 16, 20, 24])
    test = GlobalTest(128, 100, permutations=1000, seed=0)
    shifts = 2 * (np.arange(128) < leaked[:, None])
    found = [
        np.mean([test.p_value(rng.normal(size=128) + shift, rng.normal(size=100)) <= 0.05 for _ in range(200)])
        for shift in shifts
    ]
    assert planned == pytest.approx(power.detectable(np.array(found), leaked / 128), abs=0.03)


def test_a_small_reference_does_not_make_the_audit_seem_blind() -> None:
    """At d' 2, 128 v 100 audits find 12.8% (400 simulated at each of five shares, run through `GlobalTest`)."""
    rng, decision, found = np.random.default_rng(4), DECISION.model_copy(update={"simulations": 200}), []
    for seed in range(20):
        unseen, members = rng.normal(size=40), rng.normal(2, size=32)
        drawn = power.Reference(tuple((unseen >= members[:, None]).sum(axis=1)), 40)
        found.append(power.curve(drawn, 128, 100, with_base=False, decision=decision, seed=seed).mde80)
    assert np.median([one.estimate for one in found]) == pytest.approx(0.128, abs=0.03)
    assert sum(one.low <= 0.128 <= one.high for one in found) >= 17


def test_more_of_anything_is_more_power() -> None:
    weak, strong, large = curve(0.95, 128, 100), curve(2.0, 128, 100), curve(2.0, 400, 400)
    assert weak.mde80.estimate > strong.mde80.estimate > large.mde80.estimate
    for one in (weak, strong, large):
        assert (np.diff(one.power) >= 0).all() and (one.low <= one.power).all() and (one.power <= one.high).all()
        assert one.mde80.low <= one.mde80.estimate <= one.mde80.high


def test_weak_and_small_audits_see_nothing() -> None:
    found = curve(0.5, 20, 20)
    assert found.mde80.high == np.inf and found.power[0] < 0.15
    result = found.result("reference", True, SHARE)
    assert result.mde80_high is None and len(result.curve) == len(found.shares)


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

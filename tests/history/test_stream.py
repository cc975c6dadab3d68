"""The stream of checks: its levels, what is a test, and how often it is wrong in a year of audits."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import stream as simulated
from tbd import history
from tbd.history import FAILED, History, Outcome, stream
from tests.outcomes import verdict


def look(number: int, p: float, training: str = "a", on: str = "maths", **more: Any) -> Outcome:
    """The verdict on checkpoint NUMBER of a training, as the p-value alone has it."""
    own = {"checkpoint": f"{training}/{number}", "place": f"models:/{training}/{number}", "fingerprint": f"{number}"}
    said = "CONTAMINATED" if p <= 0.05 else "NO EVIDENCE"
    return verdict(number, said, on, **({"p_value": p, "state": f"{training} {number} {on}", **own} | more))


def noted(*outcomes: Outcome, file: Path = history.FILE, alpha: float = 0.05) -> list[Outcome]:
    known = History(file)
    return [known.add(outcome, alpha=alpha) for outcome in outcomes]


def levels(outcomes: list[Outcome]) -> list[float | None]:
    return [outcome.alpha_now for outcome in outcomes]


def test_the_first_levels_by_hand(workspace: Path) -> None:
    """g_1 = 0.0722 ln 2 = 0.0500452, g_2 = 0.0722 ln 2 / (2 e^0.832555) = 0.0108833, g_3 = 0.0722 ln 3 / (3 e^1.048147)
    = 0.00926949, g_4 = 0.0722 ln 4 / (4 e^1.177410) = 0.00770886."""
    found = noted(
        look(1, 0.0025),  # found: below 0.05 g_1
        look(2, 0.0011, "b"),  # above 2 x 0.05 g_2
        look(3, 1e-9),  # found before
        look(4, 0.0009, "b"),  # found: below 2 x 0.05 g_3
        look(5, 0.3, "c"),
    )
    expected = [0.00250226, 0.00108833, None, 0.000926949, 0.00115633]
    assert levels(found) == [value and pytest.approx(value, rel=1e-5) for value in expected]
    assert [one.stream_discovery for one in found] == [True, False, False, True, False]
    assert [one.tested for one in found] == [True, True, False, True, True]
    now = stream.after(found)
    assert (now.tests, list(now.found)) == (4, [("models:/a", "maths"), ("models:/b", "maths")])
    assert now.spent == pytest.approx(0.0500452 + 0.0108833 + 0.00926949 + 0.00770886, rel=1e-5)


def test_the_shares_sum_to_less_than_one() -> None:
    """Behind n, where they fall, they sum to less than their integral, 0.1444 (y^3 + 3 y^2 + 6 y + 6) e^-y with y =
    sqrt(ln n)."""
    n = 10_000
    some = [stream.share(test) for test in range(1, n + 1)]
    assert some == sorted(some, reverse=True)
    y = math.sqrt(math.log(n))
    assert math.fsum(some) + 0.1444 * (y**3 + 3 * y**2 + 6 * y + 6) * math.exp(-y) == pytest.approx(0.913, abs=5e-4)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("models:/solver/12", "models:/solver"),
        ("models:/solver@champion", "models:/solver"),
        ("hf://org/solver@main", "hf://org/solver"),
        ("runs/a/checkpoint-500", "runs/a"),
        ("runs/a", "runs/a"),
        ("/data/runs/a/global_step100", "/data/runs/a"),
        ("incoming/solver-step1500", "incoming/solver"),
        ("incoming/solver-7_CKPT-20", "incoming/solver-7"),
        ("incoming/epoch=2-step=900", "incoming"),
        ("incoming/solver-7", "incoming/solver-7"),
        ("incoming/footstep-3", "incoming/footstep-3"),
        ("incoming/step-by-step", "incoming/step-by-step"),
    ],
)
def test_lineages(place: str, expected: str) -> None:
    assert stream.lineage(place) == expected


def test_a_lineage_that_is_named_is_one_wherever_it_lies(workspace: Path) -> None:
    first, other, third = noted(
        look(1, 1e-9, "a", lineage="solver"), look(2, 1e-9, "b", lineage="solver"), look(3, 1e-9, "a")
    )
    assert [one.stream_discovery for one in (first, other, third)] == [True, False, True]


def test_another_benchmark_is_another_claim_other_questions_of_it_are_not(workspace: Path) -> None:
    more = {"benchmark": {"name": "maths", "md5": "f" * 32, "n": 161}}
    found = noted(look(1, 1e-9), look(2, 1e-9, on="physics"), look(3, 1e-9, **more))
    assert [one.stream_discovery for one in found] == [True, True, False]


def test_what_is_no_test(workspace: Path) -> None:
    found = noted(
        look(1, 1e-9, "a", outcome=FAILED, p_value=None),
        look(2, 1e-9, "b", same_as="another"),
        look(3, 1e-9, "c", planted=True),
        look(3, 1e-9, "copy of c"),
        look(4, 1e-9, "d", p_value=None),
        look(5, 1e-9, "e", outcome=FAILED, what="flow", p_value=None),
    )
    assert not any(one.tested or one.stream_discovery for one in found)
    assert levels(found) == [None] * 6
    (first,) = noted(look(6, 1e-9, "f"))
    assert first.alpha_now == pytest.approx(0.00250226, rel=1e-5)


def test_inconclusive_is_a_test_that_finds_nothing(workspace: Path) -> None:
    """As where the base tells the sets apart: the p-value is none. Judged CONTAMINATED later it is another test."""
    shifted, right = noted(look(1, 1e-9, outcome="INCONCLUSIVE"), look(1, 1e-9, state="with a base of the right kind"))
    assert shifted.tested and not shifted.stream_discovery
    assert right.stream_discovery and right.alpha_now == pytest.approx(0.000544164, rel=1e-5)


def test_the_same_look_again_is_no_second_test(workspace: Path) -> None:
    """Judged again with the same result, as after a change of the report; checked by hand from a copy elsewhere."""
    first, again, copy, new = noted(
        look(1, 0.02),
        look(1, 0.02, state="another report"),
        look(1, 0.02, "elsewhere"),
        look(1, 0.03, state="another detector"),
    )
    assert first.tested and not again.tested and not copy.tested and new.tested
    assert new.alpha_now == pytest.approx(0.000544164, rel=1e-5)


def test_what_was_said_stands_when_alpha_changes(workspace: Path) -> None:
    noted(look(1, 0.002))
    (second,) = noted(look(2, 0.5, "b"), alpha=0.01)
    first = History().outcomes[0]
    assert first.stream_discovery and first.alpha_now == pytest.approx(0.00250226, rel=1e-5)
    assert second.alpha_now == pytest.approx(0.01 * 0.0108833 * 2, rel=1e-5)


# --- from the file alone ----------------------------------------------------------------------------------------------

LOOKS = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.sampled_from(["maths", "physics"]), st.sampled_from([1e-9, 1e-4, 0.002, 0.5])
    ),
    max_size=25,
)


@given(LOOKS)
def test_the_stream_follows_from_the_outcomes_alone(drawn: list[tuple[str, str, float]]) -> None:
    outcomes: list[Outcome] = []
    for number, (training, on, p) in enumerate(drawn):
        new = stream.tested(look(number, p, training, on), outcomes, 0.05)
        assert new == stream.tested(new, outcomes, 0.05)  # replayed
        assert stream.after(outcomes) == stream.after(outcomes + outcomes)  # a merge may double lines
        outcomes.append(new)
    backwards, now = stream.after(outcomes[::-1]), stream.after(outcomes)  # or put them in another order
    assert (backwards.tests, backwards.found.keys(), backwards.looks) == (now.tests, now.found.keys(), now.looks)
    found = [stream.pair(outcome) for outcome in outcomes if outcome.stream_discovery]
    assert len(found) == len(set(found))
    for outcome in outcomes:
        open_before = stream.pair(outcome) not in stream.after(outcomes[: outcomes.index(outcome)]).found
        assert outcome.tested == open_before == (outcome.alpha_now is not None)
        small = outcome.alpha_now is not None and outcome.p_value is not None and outcome.p_value <= outcome.alpha_now
        assert outcome.stream_discovery == small


def test_a_clone_a_kill_and_a_replay_give_the_same(workspace: Path) -> None:
    outcomes = [look(number, [1e-9, 0.5, 0.004, 1e-5][number % 4], f"{number % 3}") for number in range(12)]
    noted(*outcomes[:8])
    shutil.copy(history.FILE, "clone.jsonl")
    history.FILE.write_bytes(history.FILE.read_bytes()[:-9])  # killed while it wrote the last
    noted(*outcomes[7:])
    noted(*outcomes[8:], file=Path("clone.jsonl"))
    noted(*outcomes, file=Path("replayed.jsonl"))
    found = History().outcomes
    for other in ("clone.jsonl", "replayed.jsonl"):
        assert levels(History(Path(other)).outcomes) == levels(found)
    assert any(one.stream_discovery for one in found) and any(one.alpha_now is None for one in found)


# --- a year of audits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("leaked", "shift"), [(0.0, 0.0), (0.1, 5.5)])
def test_nine_hundred_audits_through_the_history(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, leaked: float, shift: float
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a disk takes 10 ms for each line; no power fails here
    pairs, members, p_values = simulated.year(np.random.default_rng(5), leaked, shift, 0.5, 0.2)
    outcomes = noted(
        *(
            look(number, p, f"training-{pair // simulated.BENCHMARKS}", f"set-{pair % simulated.BENCHMARKS}")
            for number, (pair, p) in enumerate(zip(pairs.tolist(), p_values.tolist(), strict=True))
        )
    )
    assert History().outcomes == outcomes
    again = noted(*outcomes, file=Path("replayed.jsonl"))
    assert levels(again) == levels(outcomes)
    found = {pair for pair, outcome in zip(pairs.tolist(), outcomes, strict=True) if outcome.stream_discovery}
    assert found == simulated.discoveries(pairs, p_values)  # what the simulations below count
    assert found == set(np.flatnonzero(members).tolist())


@pytest.mark.parametrize("correlation", simulated.CORRELATIONS)
def test_the_chance_of_any_false_alarm_in_a_year(correlation: tuple[float, float]) -> None:
    rng, repeats = np.random.default_rng(1), 2000
    shares = 0.05 * np.array(simulated.SHARES)  # with nothing found before, the levels are known
    alarms = [bool((simulated.year(rng, 0, 0, *correlation)[2] <= shares).any()) for _ in range(repeats)]
    assert np.mean(alarms) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert 0 < np.mean(alarms) < 0.03  # the levels of 900 tests sum to 0.0138


@pytest.mark.parametrize("correlation", simulated.CORRELATIONS)
def test_what_leaked_is_found_and_little_else(correlation: tuple[float, float]) -> None:
    rng, found = np.random.default_rng(2), []
    for _ in range(200):
        pairs, members, p_values = simulated.year(rng, 0.1, 5.5, *correlation)
        found.append(simulated.rates(simulated.discoveries(pairs, p_values), members))
    _, false, true = np.mean(found, axis=0)
    assert true >= 0.95 and false <= 0.02

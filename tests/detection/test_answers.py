"""Prompts and answers in which a leak could not be seen: never NO EVIDENCE, always with the reason."""

from typing import Any

import pytest

from tbd.detection.decisions import decide
from tbd.detection.verdict import judge
from tests.detection.test_decisions import DECISION, evidence
from tests.detection.test_verdict import DECISION as EASY
from tests.detection.test_verdict import LOW, MIXED, audit, both, detector, table

BLIND: list[tuple[dict[str, Any], str]] = [
    ({"short": 0.11}, "11% of the answers to a set have fewer than the 100 tokens"),
    ({"short": 1.0}, "100% of the answers"),
    ({"unscored": 0.11}, "11% of the questions of a set have no score"),
    ({"same_frame": False}, "another text (a system prompt, a thinking switch)"),
]


@pytest.mark.parametrize(("answers", "why"), BLIND)
def test_silence_says_nothing_where_a_leak_could_not_be_seen(answers: dict[str, Any], why: str) -> None:
    verdict, reasons = decide(evidence(answers=answers), DECISION)
    assert verdict == "INCONCLUSIVE" and why in reasons[-1]
    foreign = DECISION.model_copy(update={"allow_foreign_power": True})
    assert decide(evidence(answers=answers), foreign)[0] == "INCONCLUSIVE"
    assert decide(evidence(answers=answers, p_value=0.001), DECISION)[0] == "CONTAMINATED"  # what is found is found


def test_up_to_the_bound_it_does() -> None:
    assert decide(evidence(answers={"short": 0.1, "unscored": 0.1}), DECISION)[0] == "NO EVIDENCE"


@pytest.mark.parametrize("p_value", [1e-9, 0.5])
def test_a_template_that_looks_at_the_question_makes_any_comparison_void(p_value: float) -> None:
    verdict, reasons = decide(evidence(answers={"odd_prompts": 3}, p_value=p_value), DECISION)
    assert verdict == "INCONCLUSIVE" and "3 of the questions" in reasons[0]


def said(scores: Any, made: Any = None, **how: Any) -> Any:
    return judge("a", audit(), table(both(scores), **how), made or detector(), EASY, 0).verdict


def test_the_answers_of_an_audit_are_looked_at() -> None:
    assert said(LOW).verdict == "NO EVIDENCE" and said(LOW).warnings == []
    ended = said(LOW, tokens=1)  # 10 are looked at
    assert ended.verdict == "INCONCLUSIVE" and ended.answers.short == 1.0 and ended.answers.looked_at == 10
    assert any("80 answers have fewer than the 10 tokens" in line for line in ended.warnings)
    assert said(MIXED, tokens=1).verdict == "CONTAMINATED"
    assert said(LOW, tokens=10).verdict == "NO EVIDENCE"
    assert said(LOW, odd_prompts=1).verdict == said(LOW, frame="other").verdict == "INCONCLUSIVE"
    assert said(LOW, detector(frame="same"), frame="same").verdict == "NO EVIDENCE"
    found = said(MIXED, frame="other")  # what is found is found, and what was otherwise is said
    assert found.verdict == "CONTAMINATED" and "another text around the questions than" in found.warnings[-1]


def test_unscored_questions_of_either_set_count() -> None:
    few = [float("nan")] * 5
    for benchmark, unseen in ((few + LOW[5:], LOW), (LOW, few + LOW[5:])):
        found = judge("a", audit(), table(both(benchmark, unseen)), detector(), EASY, 0).verdict
        assert found.verdict == "INCONCLUSIVE" and found.answers.unscored == 0.125
        assert any("5 of 40" in line for line in found.warnings)


def test_how_the_answers_were_made_otherwise_than_the_references_is_said() -> None:
    (line,) = said(LOW, detector(engine_version="0", batch_size=8)).warnings
    assert "engine_version (0, here 1), batch_size (8, here 16)" in line
    (line,) = said(LOW, device_asked="auto").warnings
    assert "the answers were computed on the CPU" in line
    assert said(LOW, device_asked="cpu").warnings == []


def test_a_server_that_contradicts_itself_is_a_warning() -> None:
    noise = {"questions": 16, "diverged": 3, "tokens": 200, "median": 0.004, "largest": 0.3}
    found = said(LOW, noise=noise)
    assert found.generation.noise.diverged == 3 and found.warnings == []
    for median in (0.15, None):
        (line,) = said(LOW, noise=noise | {"median": median}).warnings
        assert "asked again, which hides small leaks" in line
    (line,) = said(LOW, noise=noise | {"diverged": 9, "tokens": 79}).warnings  # 10 are looked at
    assert "9 of 16 answers of the server become others when asked again, mostly early among the 10 tokens" in line
    for few in ({"diverged": 8, "tokens": 79}, {"diverged": 16, "tokens": 80}):
        assert said(LOW, noise=noise | few).warnings == []

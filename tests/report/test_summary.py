"""Verdicts in few words, from the verdicts of a real workspace."""

from typing import Any

import pytest

from tbd.detection.results import Power, read_verdict
from tbd.history import FAILED, WORKS
from tbd.report import summary
from tbd.report.explain import explain
from tests import results
from tests.outcomes import again, failure, verdict
from tests.workspace import finished


@pytest.mark.slow
def test_a_line_an_audit() -> None:
    workspace = finished()[0]
    read = [read_verdict(workspace.root / f"audits/{audit}/verdict.json") for audit in ("reference", "base")]
    lines = summary.table(read).splitlines()
    assert lines[0].split()[:3] == ["audit", "verdict", "flagged"] and len(lines) == 4
    assert (
        lines[2].startswith("reference  CONTAMINATED")
        and lines[3].startswith("base       NO EVIDENCE")
        and "of 40" in lines[2]
    )


def test_what_is_not_known_is_not_made_up() -> None:
    found = results.verdict(power=None)
    row = summary.row(found)
    assert row["finds from"] == "unknown" and row["AUC (labels)"] == ""
    assert row["in the data"] == "at least 25%, estimate 49%"
    assert "| AUC" not in summary.verdict_markdown(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "0.16 [0.11, 0.22]"),
        ({"mde80_high": None}, "0.16 [0.11, more]"),
        ({"same_base": False}, "0.16 [0.11, 0.22] (reference: other base)"),
        ({"same_base": None}, "0.16 [0.11, 0.22] (reference: base not known)"),
        ({"mde80": None, "mde80_high": None}, "not even 1.00"),
    ],
)
def test_from_which_share_on_an_audit_finds_a_leak(changes: dict[str, Any], said: str) -> None:
    assert summary.finds_from(Power.model_validate(results.POWER | changes)) == said


def test_markdown_for_prefect() -> None:
    found = results.verdict(labelled=results.LABELLED)
    text = summary.verdict_markdown(found)
    assert "\n\n".join(explain(found).paragraphs) in text
    assert text.startswith("# CONTAMINATED\n") and "`checkpoints/release-7`" in text
    assert "audits/release-7/report.html" in text and "| finds from | 0.16 [0.11, 0.22] |" in text
    text = summary.detector_markdown(results.detector())
    assert text.startswith("# Detector 0123456789ab") and "TPR at 5% FPR" in text and "checkpoint alone" in text
    assert "checkpoint and base" not in text
    both = {"alone": results.choice(), "with_base": results.choice(results.WITH_BASE)}
    assert "checkpoint and base" in summary.detector_markdown(results.detector(choices=both))


def test_what_stands_now_is_the_latest_of_every_place_and_benchmark() -> None:
    source = {"what": "source", "place": "models:/M"}
    outcomes = [
        failure(1),
        verdict(2),
        verdict(3, on="physics"),
        failure(4, **source),
        verdict(1, "INCONCLUSIVE"),  # the failure is over
        verdict(2, "CONTAMINATED"),
        verdict(2, on="physics"),
        failure(3),  # whatever was known of it, this is what there is now
        failure(4, outcome=WORKS, **source),
        failure(2, benchmark={"name": "physics", "md5": "", "n": 0}),
    ]
    assert summary.latest(outcomes) == [outcomes[4], outcomes[5], outcomes[7], outcomes[9]]
    rows = summary.standing(outcomes)
    assert [(row["checkpoint"], row["benchmark"], row["outcome"]) for row in rows] == [
        ("model-2", "physics", FAILED),
        ("model-3", "", FAILED),
        ("model-2", "maths", "CONTAMINATED"),
        ("model-1", "maths", "INCONCLUSIVE"),
    ]


def test_the_history_fits_the_terminal() -> None:
    first = verdict(
        1, "CONTAMINATED", share=0.38, checkpoint="org/" + "long-" * 20 + "step-100", audit="a" * 53 + "-xdeadbeef"
    )
    table = summary.history_table(
        [first, again(2, first), failure(3, reason="No room. " * 50), verdict(4, recovered=True)]
    )
    lines = table.splitlines()
    assert max(map(len, lines)) == summary.WIDTH and len(lines) == 6
    assert " ".join(lines[0].split()) == "time checkpoint benchmark outcome in the data audit detail"
    assert (
        lines[2].startswith("2026-11-23 09:30  …")
        and "step-100  maths" in lines[2]
        and "-xdeadbeef  p = 0.25" in lines[2]
    )
    assert "at least 28%, estimate 38%" in lines[2]
    assert "same weights as aaa" in lines[3]
    assert "FAILED" in lines[4] and lines[4].endswith("…")
    assert summary.history_table([verdict(4, recovered=True)]).endswith("p = 0.25, 8 of 160 flagged; had failed before")
    found = verdict(5, "CONTAMINATED", id="5", p_value=1e-5, tested=True, alpha_now=0.0025, stream_discovery=True)
    assert summary.history_table([found]).endswith("8 of 160 flagged; a discovery of the stream")
    assert summary.history_table([]) == ""


def test_where_the_stream_stands() -> None:
    found = verdict(5, "CONTAMINATED", p_value=1e-5, tested=True, alpha_now=0.0025, stream_discovery=True)
    assert summary.spent([verdict(1), found, verdict(6, tested=True, alpha_now=0.0011)], 0.05) == (
        "stream of checks: 2 tests, 1 discovery; the next verdict CONTAMINATED is one if its p-value is at most 0.00093"
    )


def test_nothing_reaches_the_terminal_that_is_not_text() -> None:
    bad = "x\x1b]0;title\x07\x9b31m\u202ey\nz"
    poison = dict.fromkeys(("checkpoint", "outcome", "audit", "reason", "same_as"), bad)
    table = summary.history_table([verdict(1, on=bad, **poison), failure(2, reason=bad, checkpoint=bad)])
    assert not set("\x1b\x07\x9b\u202e") & set(table) and len(table.splitlines()) == 4

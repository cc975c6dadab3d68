"""Verdicts in few words, from the verdicts of a real workspace."""

import pytest

from tbd import records
from tbd.history import FAILED, WORKS
from tbd.report import summary
from tests.outcomes import again, failure, verdict
from tests.workspace import finished


@pytest.mark.slow
def test_a_line_an_audit() -> None:
    workspace = finished()[0]
    lines = summary.table([workspace.verdict("reference"), workspace.verdict("base")]).splitlines()
    assert lines[0].split()[:3] == ["audit", "verdict", "flagged"] and len(lines) == 4
    assert lines[2].startswith("reference  CONTAMINATED") and lines[3].startswith("base       NO EVIDENCE") and "of 40" in lines[2]


@pytest.mark.slow
def test_what_is_not_known_is_not_made_up() -> None:
    verdict = finished()[0].verdict("base") | {"power": None, "power_low": None, "power_high": None}
    del verdict["labelled"]
    row = summary.row(verdict)
    assert row["power"] == "unknown" and row["AUC (labels)"] == ""
    assert "AUC" not in summary.verdict_markdown(verdict)


@pytest.mark.slow
def test_markdown_for_prefect() -> None:
    workspace = finished()[0]
    text = summary.verdict_markdown(workspace.verdict("reference"))
    assert text.startswith("# CONTAMINATED\n") and "`checkpoints/reference`" in text and "audits/reference/report.html" in text
    detector = records.read_json(workspace.root / "detector/detector.json")
    text = summary.detector_markdown(detector)
    assert text.startswith(f"# Detector {detector['version']}") and "TPR at 5% FPR" in text and "checkpoint alone" in text
    detector["choices"]["with_base"] = None
    assert "checkpoint and base" not in summary.detector_markdown(detector)


def test_an_interval() -> None:
    assert summary.interval({"auc": 0.9412, "auc_low": 0.88, "auc_high": 0.98}, "auc") == "0.94 [0.88, 0.98]"


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
    first = verdict(1, "CONTAMINATED", share=0.38, checkpoint="org/" + "long-" * 20 + "step-100", audit="a" * 53 + "-xdeadbeef")
    table = summary.history_table([first, again(2, first), failure(3, reason="No room. " * 50), verdict(4, recovered=True)])
    lines = table.splitlines()
    assert max(map(len, lines)) == summary.WIDTH and len(lines) == 6
    assert lines[0].split() == ["time", "checkpoint", "benchmark", "outcome", "contaminated", "share", "audit", "detail"]
    assert lines[2].startswith("2026-11-23 09:30  …") and "step-100  maths" in lines[2] and "-xdeadbeef  p = 0.25" in lines[2]
    assert "0.38 [0.28, 0.50]" in lines[2]
    assert "same weights as aaa" in lines[3]
    assert "FAILED" in lines[4] and lines[4].endswith("…")
    assert summary.history_table([verdict(4, recovered=True)]).endswith("p = 0.25, 8 of 160 flagged; had failed before")
    assert summary.history_table([]) == ""


def test_nothing_reaches_the_terminal_that_is_not_text() -> None:
    bad = "x\x1b]0;title\x07\x9b31m\u202ey\nz"
    poison = dict.fromkeys(("checkpoint", "outcome", "audit", "reason", "same_as"), bad)
    table = summary.history_table([verdict(1, on=bad, **poison), failure(2, reason=bad, checkpoint=bad)])
    assert not set("\x1b\x07\x9b\u202e") & set(table) and len(table.splitlines()) == 4

"""Verdicts in few words, from the verdicts of a real workspace."""

from tbd import records, summary
from tests.workspace import finished


def test_a_line_an_audit() -> None:
    workspace = finished()[0]
    lines = summary.table([workspace.verdict("reference"), workspace.verdict("base")]).splitlines()
    assert lines[0].split()[:3] == ["audit", "verdict", "flagged"] and len(lines) == 4
    assert lines[2].startswith("reference  CONTAMINATED") and lines[3].startswith("base       NO EVIDENCE") and "of 40" in lines[2]


def test_what_is_not_known_is_not_made_up() -> None:
    verdict = finished()[0].verdict("base") | {"power": None, "power_low": None, "power_high": None}
    del verdict["labelled"]
    row = summary.row(verdict)
    assert row["power"] == "unknown" and row["AUC (labels)"] == ""
    assert "AUC" not in summary.verdict_markdown(verdict)


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

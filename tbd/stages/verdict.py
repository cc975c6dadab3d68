"""Stage `verdict@A`: verdict.json, the table of questions, the plots and the report of one audit."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tbd import audits, params, records, stages
from tbd.audits import Audit
from tbd.detection import metrics, results
from tbd.detection.results import Detector
from tbd.detection.verdict import Judgement, judge
from tbd.report import audit as report
from tbd.report import plots
from tbd.scores.table import ScoreTable
from tbd.sets import blind
from tbd.workspace import AUDITS, DETECTOR, set_path


def main(name: str) -> None:
    p = params.load()
    audit = audits.get(name)
    detector = results.read_detector(DETECTOR)
    scored = ScoreTable(name)
    asked, unseen = (records.read_table(set_path(name), records.QUESTIONS) for name in (audit.benchmark, audit.unseen))
    texts = blind.texts(asked, unseen, p.decision.blind, p.calibrate.seed)
    judgement = judge(name, audit, scored, detector, p.decision, p.calibrate.seed, texts)
    write(name, audit, judgement, scored.labels(audit.benchmark), detector)
    print(f"{name}: {judgement.verdict.verdict}. {' '.join(judgement.verdict.reasons)}", flush=True)


def write(name: str, audit: Audit, judgement: Judgement, known: NDArray[np.int8] | None, detector: Detector) -> None:
    """Everything a reader looks at, verdict.json last."""
    folder, verdict = AUDITS / name, judgement.verdict
    questions = records.read_table(set_path(audit.benchmark), records.QUESTIONS)
    columns = {
        "question_id": questions["question_id"],
        "score": judgement.scores,
        "p_value": judgement.p_values,
        "flagged": judgement.flagged,
        "at_least": judgement.at_least,
        "label": questions["label"],
    }
    table = pa.table(columns, schema=records.VERDICT_QUESTIONS)
    records.write_table(folder / "questions.parquet", table)
    benchmark, unseen, p_values = judgement.scores, judgement.unseen_scores, judgement.p_values
    method = verdict.detector.id
    drawn = {"scores": folder / "plots" / "scores.png", "p_values": folder / "plots" / "p_values.png"}
    plots.scores(drawn["scores"], benchmark, unseen, known, verdict.threshold, method)
    plots.p_values(drawn["p_values"], p_values, verdict.fpr)
    if verdict.power:
        drawn["power"] = folder / "plots" / "power.png"
        powers = [verdict.power, *verdict.other_powers]
        plots.power(drawn["power"], powers, verdict.share_at_least, verdict.contamination_rate)
    if known is not None:
        scored = ~np.isnan(benchmark)
        drawn["roc"] = folder / "plots" / "roc.png"
        plots.roc(drawn["roc"], {method: metrics.roc(benchmark[scored], known[scored])[:2]}, verdict.fpr)
    plots.interactive_audit(
        folder / "plots" / "interactive.html",
        questions["question_id"],
        benchmark,
        p_values,
        unseen,
        known,
        verdict.threshold,
        verdict.fpr,
        method,
    )
    report.write(
        folder / "report.html", verdict, detector, table.append_column("question", questions["question"]), drawn
    )
    results.write(folder / "verdict.json", verdict)


if __name__ == "__main__":
    stages.run(main)

"""Stage `calibrate`: choose the detector, and measure it, on the reference audit alone."""

import csv

from tbd import audits, params, scores, stages
from tbd.detection import results
from tbd.detection.detector import Calibration, calibrate
from tbd.report import plots
from tbd.scores.table import ScoreTable
from tbd.workspace import DETECTOR

OUT = DETECTOR.parent


def main() -> None:
    p = params.load()
    reference = p.calibrate.reference
    found = calibrate(ScoreTable(reference), audits.get(reference), p.calibrate, p.decision)
    write(found)
    fpr = found.detector.fpr
    for name, choice in found.detector.choices:
        if choice:
            print(
                f"{name}: {choice.id}: AUC {choice.auc:.3f} [{choice.auc_low:.3f}, {choice.auc_high:.3f}], TPR at "
                f"{fpr:.0%} FPR {choice.tpr_at_fpr:.2f} [{choice.tpr_low:.2f}, {choice.tpr_high:.2f}]",
                flush=True,
            )


def write(found: Calibration) -> None:
    """The tables and plots first, detector.json last: where that is, everything is."""
    detector, curves = found.detector, found.curves
    OUT.mkdir(exist_ok=True)
    methods = [
        {"method": key, "with_base": scores.parse(key).with_base, **measured.model_dump()}
        for key, measured in found.methods.items()
    ]
    points = [
        {"choice": choice, "fpr": f, "tpr": t, "lowest": s}
        for choice, curve in curves.items()
        for f, t, s in zip(*curve, strict=True)
    ]
    for name, rows in (("methods.csv", methods), ("roc.csv", points)):
        with (OUT / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    named = {chosen.id: curves[choice][:2] for choice, chosen in detector.choices if chosen}
    plots.roc(OUT / "plots" / "roc.png", named, detector.fpr)
    plots.interactive_roc(OUT / "plots" / "interactive.html", named, detector.fpr)
    results.write(DETECTOR, detector)


if __name__ == "__main__":
    stages.run(main)

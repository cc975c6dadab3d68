"""Stage `calibrate`: choose the detector, and measure it, on the reference audits alone."""

import csv
from pathlib import Path

import yaml

from tbd import audits, params, scores, stages
from tbd.detection import results
from tbd.detection.detector import Calibration, calibrate
from tbd.errors import InputError
from tbd.report import plots
from tbd.scores.table import ScoreTable
from tbd.workspace import DETECTOR

OUT = DETECTOR.parent


def main() -> None:
    p = params.load()
    names = p.calibrate.references
    _declared(len(names))
    found = calibrate([(ScoreTable(name), audits.get(name)) for name in names], p.calibrate, p.decision)
    write(found)
    fpr = found.detector.fpr
    for name, choice in found.detector.choices.made().items():
        for reference in found.detector.references:
            figures = reference.figures(name)
            print(
                f"{name}: {choice.id} on {reference.name}: AUC {figures.auc:.3f} [{figures.auc_low:.3f}, "
                f"{figures.auc_high:.3f}], TPR at {fpr:.0%} FPR {figures.tpr_at_fpr:.2f} [{figures.tpr_low:.2f}, "
                f"{figures.tpr_high:.2f}]",
                flush=True,
            )
    for saved in found.detector.cascade.saved if found.detector.cascade else ():
        print(
            f"cascade: {saved.reference}'s answers need {1 - saved.members:.0%} of their tokens for members, "
            f"{1 - saved.others:.0%} for others and {1 - saved.unseen:.0%} for unseen questions",
            flush=True,
        )


def _declared(references: int) -> None:
    """DVC must know of every reference: it cannot make dependencies out of a list."""
    declared = yaml.safe_load(Path("dvc.yaml").read_text("utf-8"))["stages"]["calibrate"]["deps"]
    for at in range(references):
        line = f"audits/${{calibrate.references[{at}]}}/scores.parquet"
        if line not in declared:
            raise InputError(f"dvc.yaml: stages.calibrate.deps: not every reference is there. Add the line - {line}")


def write(found: Calibration) -> None:
    """The tables and plots first, detector.json last: where that is, everything is."""
    detector, curves = found.detector, found.curves
    OUT.mkdir(exist_ok=True)
    methods = [
        {"reference": reference, "method": key, "with_base": scores.parse(key).with_base, **measured.model_dump()}
        for reference, of in found.methods.items()
        for key, measured in of.items()
    ]
    points = [
        {"reference": reference, "choice": choice, "fpr": f, "tpr": t}
        for reference, of in curves.items()
        for choice, curve in of.items()
        for f, t in zip(*curve, strict=True)
    ]
    for name, rows in (("methods.csv", methods), ("roc.csv", points)):
        with (OUT / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    ids = {choice: chosen.id for choice, chosen in detector.choices.made().items()}
    named = {f"{ids[choice]} on {reference}": curve for reference, of in curves.items() for choice, curve in of.items()}
    plots.roc(OUT / "plots" / "roc.png", named, detector.fpr)
    plots.interactive_roc(OUT / "plots" / "interactive.html", named, detector.fpr)
    results.write(DETECTOR, detector)


if __name__ == "__main__":
    stages.run(main)

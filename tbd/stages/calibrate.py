"""Stage `calibrate`: the detector, chosen and measured on the reference audit alone."""

import csv
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from tbd import audits, params, records, scores, stages
from tbd.detection import calibration, metrics
from tbd.detection.decisions import negatives_needed
from tbd.errors import InputError
from tbd.report import plots
from tbd.scores.table import ScoreTable
from tbd.workspace import DETECTOR

OUT = DETECTOR.parent


def main() -> None:
    everything = params.load()
    p, decision = everything.calibrate, everything.decision
    entry = audits.get(p.reference)
    reference = ScoreTable(p.reference)
    labels = reference.labels(entry.benchmark)
    if labels is None:
        raise InputError(f"benchmark {entry.benchmark!r} of the reference: needs labels, 1 and 0. Import it with --label-column.")
    fewest = min(int((labels == label).sum()) for label in (0, 1))
    if fewest < 2:
        raise InputError(
            f"benchmark {entry.benchmark!r} of the reference: {fewest} of its questions has the rarer label. One half of the labelled "
            "questions chooses, the other measures: at least 2 members and 2 others are needed."
        )
    unseen = reference.sets[entry.unseen]
    if unseen["n"] < negatives_needed(decision.fpr):
        raise InputError(
            f"params.yaml: decision.fpr: {decision.fpr:g} needs {negatives_needed(decision.fpr)} unseen questions and "
            f"{entry.unseen!r} has {unseen['n']}: add {negatives_needed(decision.fpr) - unseen['n']} or raise the rate."
        )
    rng = np.random.default_rng(p.seed)
    chooses = calibration.halves(labels, rng)
    table = {}
    for key in reference.methods():
        table[key] = calibration.performance(
            reference.scores(key, entry.benchmark),
            labels,
            chooses,
            fpr=decision.fpr,
            confidence=decision.confidence,
            resamples=p.bootstrap,
            rng=rng,
        )
    needs_base = {key: scores.parse(key).needs_base for key in table}
    if all(needs_base.values()):
        raise InputError("params.yaml: score.methods: every method needs a base model. Add one that does not.")
    alone = calibration.choose({key: value for key, value in table.items() if not needs_base[key]})
    best: dict[str, str | None] = {"alone": alone, "with_base": calibration.choose(table) if any(needs_base.values()) else None}
    choices: dict[str, Any] = {}
    curves = {}
    unscored = np.zeros(len(labels), bool)
    for choice, identity in best.items():
        if identity is None:
            choices[choice] = None
            continue
        s = reference.scores(identity, entry.benchmark)
        unscored |= np.isnan(s)
        rest = ~chooses
        found = calibration.at_work(
            s[rest & (labels == 1)],
            s[rest & (labels == 0)],
            reference.scores(identity, entry.unseen),
            decision.fpr,
            decision.confidence,
        )
        method = scores.parse(identity)
        measured = {key: value for key, value in asdict(table[identity]).items() if key != "unscored"}
        choices[choice] = {
            "method": method.name,
            "id": identity,
            "parameters": {"m": method.m, **dict(method.parameters)},
            **measured,
            **asdict(found),
        }
        scored = rest & ~np.isnan(s)
        curves[choice] = metrics.roc(s[scored], labels[scored])
    provenance = {
        "checkpoint": entry.checkpoint,
        "base": entry.base,
        "benchmark": reference.sets[entry.benchmark],
        "unseen": unseen,
        **reference.generation,
    }
    detector = {
        "fpr": decision.fpr,
        "confidence": decision.confidence,
        "reference": p.reference,
        "seed": p.seed,
        "provenance": provenance,
        "choices": choices,
        "questions": {
            half: {"members": int((rows & (labels == 1)).sum()), "others": int((rows & (labels == 0)).sum())}
            for half, rows in (("choice", chooses), ("evaluation", ~chooses))
        }
        | {"unscored": int(unscored.sum())},
        "warnings": [f"{unscored.sum()} of {len(labels)} labelled questions have no score and are left out."]
        if unscored.any()
        else [],
    }
    detector["version"] = records.sha256(json.dumps(detector, sort_keys=True))[:12]
    write(detector, table, needs_base, curves, decision.fpr)
    for choice, chosen in choices.items():
        if chosen:
            print(
                f"{choice}: {chosen['id']}: AUC {chosen['auc']:.3f} [{chosen['auc_low']:.3f}, {chosen['auc_high']:.3f}], TPR at "
                f"{decision.fpr:.0%} FPR {chosen['tpr_at_fpr']:.2f} [{chosen['tpr_low']:.2f}, {chosen['tpr_high']:.2f}]",
                flush=True,
            )


def write(
    detector: dict[str, Any],
    table: dict[str, calibration.Performance],
    needs_base: dict[str, bool],
    curves: dict[str, Any],
    fpr: float,
) -> None:
    """The tables and plots first, detector.json last: where it is, all of it is."""
    OUT.mkdir(exist_ok=True)
    with (OUT / "methods.csv").open("w", newline="") as file:
        rows = [{"method": key, "needs_base": needs_base[key], **asdict(value)} for key, value in table.items()]
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with (OUT / "roc.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["choice", "fpr", "tpr", "threshold"])
        writer.writeheader()
        for choice, points in curves.items():
            writer.writerows({"choice": choice, "fpr": f, "tpr": t, "threshold": s} for f, t, s in zip(*points, strict=True))
    named = {detector["choices"][choice]["id"]: points[:2] for choice, points in curves.items()}
    plots.roc(OUT / "plots" / "roc.png", named, fpr)
    plots.interactive_roc(OUT / "plots" / "interactive.html", named, fpr)
    records.write_json(DETECTOR, detector)


if __name__ == "__main__":
    stages.run(main)

"""The detector: the best method of params.yaml on the reference audit, and all that `detector.json` says of it."""

import json
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbd import scores as registry
from tbd.audits import Audit
from tbd.detection.calibration import at_work, choose, halves, performance
from tbd.detection.decisions import negatives_needed
from tbd.detection.metrics import roc
from tbd.detection.results import Choice, Choices, Counts, Detector, LabelledQuestions, Performance, Provenance
from tbd.errors import InputError
from tbd.params import Calibrate, Decision
from tbd.records import sha256
from tbd.scores.table import ScoreTable

Array = NDArray[np.float64]
Curve = tuple[Array, Array, Array]
"""see `metrics.roc`"""


class Calibration(NamedTuple):
    """The detector, and what it was chosen among."""

    detector: Detector
    methods: dict[str, Performance]
    """every method by its id, in the order of params.yaml"""
    curves: dict[str, Curve]
    """by choice, on the half that measures"""


def calibrate(reference: ScoreTable, entry: Audit, p: Calibrate, decision: Decision) -> Calibration:
    """Choose the detector on the reference audit `entry` and measure it there. A pure function of its arguments.

    Raises InputError if the reference has too few labels or unseen questions, or if every method needs a base model.
    """
    labels = _labels(reference, entry)
    _enough_unseen(reference, entry, decision.fpr)
    rng = np.random.default_rng(p.seed)
    chooses = halves(labels, rng)
    methods = {
        key: performance(
            reference.scores(key, entry.benchmark),
            labels,
            chooses,
            fpr=decision.fpr,
            confidence=decision.confidence,
            resamples=p.bootstrap,
            rng=rng,
        )
        for key in reference.methods()
    }
    of_both = [key for key in methods if registry.parse(key).with_base]
    if len(of_both) == len(methods):
        raise InputError("params.yaml: score.methods: every method needs a base model. Add one that does not.")
    chosen = {"alone": choose({key: value for key, value in methods.items() if key not in of_both})}
    if of_both:
        chosen["with_base"] = choose(methods)
    unscored = np.zeros(len(labels), bool)
    choices, curves = {}, {}
    for name, key in chosen.items():
        s = reference.scores(key, entry.benchmark)
        unscored |= np.isnan(s)
        choices[name] = _choice(key, methods[key], s, labels, ~chooses, reference.scores(key, entry.unseen), decision)
        measured = ~chooses & ~np.isnan(s)
        curves[name] = roc(s[measured], labels[measured])
    left_out = int(unscored.sum())
    warning = f"{left_out} of {len(labels)} labelled questions have no score and are left out."
    detector = Detector(
        version="",
        fpr=decision.fpr,
        confidence=decision.confidence,
        reference=p.reference,
        seed=p.seed,
        provenance=Provenance.model_validate(
            {
                "checkpoint": entry.checkpoint,
                "base": entry.base,
                "benchmark": reference.sets[entry.benchmark],
                "unseen": reference.sets[entry.unseen],
                **reference.generation,
            }
        ),
        choices=Choices(alone=choices["alone"], with_base=choices.get("with_base")),
        questions=LabelledQuestions(
            choice=_counts(labels[chooses]), evaluation=_counts(labels[~chooses]), unscored=left_out
        ),
        warnings=[warning] if left_out else [],
    )
    everything = detector.model_dump(mode="json", exclude={"version"})
    version = sha256(json.dumps(everything, sort_keys=True))[:12]
    return Calibration(detector.model_copy(update={"version": version}), methods, curves)


def _labels(reference: ScoreTable, entry: Audit) -> NDArray[np.int8]:
    """The labels of the reference's benchmark, enough of both kinds to halve them."""
    where = f"benchmark {entry.benchmark!r} of the reference"
    labels = reference.labels(entry.benchmark)
    if labels is None:
        raise InputError(f"{where}: needs labels, 1 and 0. Import it with --label-column.")
    fewest = min(int((labels == label).sum()) for label in (0, 1))
    if fewest < 2:
        raise InputError(
            f"{where}: {fewest} of its questions has the rarer label. One half of the labelled "
            "questions chooses, the other measures: at least 2 members and 2 others are needed."
        )
    return labels


def _enough_unseen(reference: ScoreTable, entry: Audit, fpr: float) -> None:
    have, need = reference.sets[entry.unseen]["n"], negatives_needed(fpr)
    if have < need:
        raise InputError(
            f"params.yaml: decision.fpr: {fpr:g} needs {need} unseen questions and "
            f"{entry.unseen!r} has {have}: add {need - have} or raise the rate."
        )


def _choice(
    key: str,
    measured: Performance,
    s: Array,
    labels: NDArray[np.int8],
    evaluation: NDArray[np.bool_],
    negatives: Array,
    decision: Decision,
) -> Choice:
    """The chosen method of id `key`, at work on the `evaluation` half of its scores `s`."""
    members, others = (s[evaluation & (labels == label)] for label in (1, 0))
    found = at_work(members, others, negatives, decision.fpr, decision.confidence)
    figures = measured.model_dump(exclude={"unscored"}) | found.model_dump()
    method = registry.parse(key)
    return Choice(method=method.name, id=key, parameters={"m": method.m, **dict(method.parameters)}, **figures)


def _counts(labels: NDArray[np.int8]) -> Counts:
    return Counts(members=int((labels == 1).sum()), others=int((labels == 0).sum()))

"""Choosing the detector where contamination is known: half of the questions choose, every figure is from the others."""

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbd import scores as registry
from tbd.audits import Audit
from tbd.detection.decisions import conformal_p_values, negatives_needed
from tbd.detection.intervals import bootstrap, delong, proportion
from tbd.detection.metrics import auc, roc, tpr_at_fpr
from tbd.detection.results import Choice, Choices, Counts, Detector, LabelledQuestions, Provenance
from tbd.errors import InputError
from tbd.params import Calibrate, Decision
from tbd.records import sha256
from tbd.scores.table import ScoreTable

Array = NDArray[np.float64]
Curve = tuple[Array, Array, Array]
"""see `metrics.roc`"""


@dataclass(frozen=True)
class Performance:
    """One method on the labelled questions. Rates in [0, 1]; intervals at the stated confidence."""

    auc_choice: float
    """on the half that chooses"""
    auc: float
    """on the other half, like everything below"""
    auc_low: float
    auc_high: float
    tpr_at_fpr: float
    tpr_low: float
    tpr_high: float
    tpr_paper_convention: float
    """as the script of arXiv 2510.04850 reads the ROC curve, for comparison"""
    unscored: int
    """labelled questions without a score, left out of all of this"""


@dataclass(frozen=True)
class Found:
    """The detector at work on the reference: conformal p-values against the reference's own unseen questions."""

    threshold: float | None
    """a question is flagged if its score is strictly above it; None if none can be"""
    power: float
    """share of the members that are flagged"""
    power_low: float
    power_high: float
    others_flagged: float
    """share of the others that are flagged"""
    member_p_values: list[float]
    negatives: list[float]


class Calibration(NamedTuple):
    """The detector, and what it was chosen among."""

    detector: Detector
    methods: dict[str, Performance]
    """every method by its id, in the order of params.yaml"""
    curves: dict[str, Curve]
    """by choice, on the half that measures"""


def halves(labels: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) True for the half that chooses, False for the half that evaluates; members and others are split evenly."""
    chooses = np.zeros(len(labels), bool)
    for label in (0, 1):
        rows = rng.permutation(np.nonzero(labels == label)[0])
        chooses[rows[: len(rows) // 2]] = True
    return chooses


def performance(
    scores: Array,
    labels: NDArray[np.int8],
    chooses: NDArray[np.bool_],
    *,
    fpr: float,
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> Performance:
    """AUC with DeLong's interval, TPR at `fpr` with a bootstrap interval stratified by label."""
    scored = ~np.isnan(scores)
    choice, rest = scored & chooses, scored & ~chooses
    s, y = scores[rest], labels[rest]
    low, high = delong(s, y, confidence)

    def rate(members: Array, others: Array) -> float:
        return tpr_at_fpr(np.r_[members, others], np.r_[np.ones(len(members)), np.zeros(len(others))], fpr)

    point = tpr_at_fpr(s, y, fpr)
    tpr_low, tpr_high = bootstrap(rate, [s[y == 1], s[y == 0]], rng, resamples, confidence)
    if point in (0.0, 1.0):  # every resample says the same, which is not certainty
        members = int((y == 1).sum())
        tpr_low, tpr_high = proportion(round(point * members), members, confidence)
    return Performance(
        auc_choice=auc(scores[choice], labels[choice]),
        auc=auc(s, y),
        auc_low=low,
        auc_high=high,
        tpr_at_fpr=point,
        tpr_low=tpr_low,
        tpr_high=tpr_high,
        tpr_paper_convention=tpr_at_fpr(s, y, fpr, "first above"),
        unscored=int((~scored).sum()),
    )


def at_work(members: Array, others: Array, negatives: Array, fpr: float, confidence: float) -> Found:
    """What flagging at conformal p <= `fpr` finds among evaluation members, and wrongly flags among evaluation
    others."""
    negatives = np.sort(negatives[~np.isnan(negatives)])
    p_members = conformal_p_values(members[~np.isnan(members)], negatives)
    p_others = conformal_p_values(others[~np.isnan(others)], negatives)
    hits = int((p_members <= fpr).sum())
    low, high = proportion(hits, len(p_members), confidence)
    return Found(
        threshold=threshold(negatives, fpr),
        power=hits / len(p_members),
        power_low=low,
        power_high=high,
        others_flagged=float((p_others <= fpr).mean()),
        member_p_values=sorted(p_members.tolist()),
        negatives=negatives.tolist(),
    )


def threshold(negatives: Array, fpr: float) -> float | None:
    """The score above which (strictly) a question is flagged at conformal p-value <= `fpr`; None if none can be."""
    ordered = np.sort(negatives)
    allowed = int(np.floor(fpr * (len(ordered) + 1) + 1e-9)) - 1  # negatives that may score at least as high
    return None if allowed < 0 else float(ordered[len(ordered) - 1 - allowed])


def choose(performances: dict[str, Performance]) -> str:
    """The method id with the highest AUC on the choosing half; the first named in params.yaml where several tie."""
    return max(performances, key=lambda key: performances[key].auc_choice)


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
    figures = {name: value for name, value in asdict(measured).items() if name != "unscored"} | asdict(found)
    method = registry.parse(key)
    return Choice(method=method.name, id=key, parameters={"m": method.m, **dict(method.parameters)}, **figures)


def _counts(labels: NDArray[np.int8]) -> Counts:
    return Counts(members=int((labels == 1).sum()), others=int((labels == 0).sum()))

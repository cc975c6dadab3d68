"""The detector: the best method of params.yaml on the reference audits, and all that `detector.json` says of it."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbd import params
from tbd import scores as registry
from tbd.audits import Audit
from tbd.detection import calibration, cascade
from tbd.detection.calibration import Known, Rates
from tbd.detection.decisions import negatives_needed
from tbd.detection.intervals import proportion
from tbd.detection.results import (
    Cascade,
    ChoiceName,
    Choices,
    Chosen,
    Detector,
    Figures,
    LabelledQuestions,
    Performance,
    Provenance,
    Reference,
    Saved,
)
from tbd.errors import InputError
from tbd.params import Calibrate, Decision
from tbd.records import sha256
from tbd.scores.table import ScoreTable

Array = NDArray[np.float64]


class Calibration(NamedTuple):
    """The detector, and what it was chosen among."""

    detector: Detector
    methods: dict[str, dict[str, Performance]]
    """by reference, then every method by its id, in the order of params.yaml"""
    curves: dict[str, dict[ChoiceName, tuple[Array, Array]]]
    """by reference and choice: false- and true-positive rates, see `calibration.mean_curve`"""


def calibrate(references: Sequence[tuple[ScoreTable, Audit]], p: Calibrate, decision: Decision) -> Calibration:
    """Choose the detector on the reference audits and measure it there. A pure function of its arguments.

    With a cascade every score is that of `cascade.ranked`, so all figures are those of a detector that is used with it.

    Raises InputError if a reference has too few labels or unseen questions, or if every method needs a base model.
    """
    ids = [key for key in references[0][0].methods() if all(key in table.methods() for table, _ in references)]
    if p.cascade is not None:
        ids = [key for key in ids if registry.parse(key).m > p.cascade.m]
    alone = [not registry.parse(key).with_base for key in ids]
    if not any(alone):
        raise InputError("params.yaml: score.methods: every method needs a base model. Add one that does not.")
    among: dict[ChoiceName, list[bool]] = {"alone": alone}
    if not all(alone):
        among["with_base"] = [True] * len(ids)
    steps = _first_step(references, ids, p.cascade, decision.fpr) if p.cascade is not None else None
    known = [_known(table, entry, ids, decision.fpr, steps) for table, entry in references]
    rng = np.random.default_rng(p.seed)
    tried, splits = calibration.repeated(known, p.repeats, decision.fpr, rng)
    drawn = calibration.resampled(known, p.repeats, p.bootstrap, decision.fpr, rng)
    methods = [calibration.performance(one, decision.confidence, decision.fpr, p.bootstrap, rng) for one in known]
    areas = np.array([[found.auc for found in of.values()] for of in methods])
    columns = {name: int(calibration.best(areas.mean(axis=0, keepdims=True), of)[0]) for name, of in among.items()}
    halves = {name: tried.chosen(of) for name, of in among.items()}
    measured, curves = [], {}
    for at, ((table, entry), one) in enumerate(zip(references, known, strict=True)):
        split = splits[one.benchmark]
        figures = {
            name: _figures(
                one,
                ids[column],
                float(areas[at, column]),
                (halves[name] == column).mean(),
                (tried.held_out(among[name], at), drawn.held_out(among[name], at)),
                calibration.places(one, halves[name][:2], split[:2]),
                decision,
            )
            for name, column in columns.items()
        }
        measured.append(_reference(table, entry, one, [ids[column] for column in columns.values()], figures))
        curves[table.audit] = {name: calibration.mean_curve(one, chosen, split) for name, chosen in halves.items()}
    chosen = {name: _chosen(ids[column]) for name, column in columns.items()}
    choices = Choices(alone=chosen["alone"], with_base=chosen.get("with_base"))
    tokens = max(one.parameters["m"] for one in (choices.alone, choices.with_base) if one)
    if steps is not None:
        saved = [
            _saved(table, entry, one.labels, steps, tokens)
            for (table, entry), one in zip(references, known, strict=True)
        ]
        steps = steps.model_copy(update={"saved": saved})
    detector = Detector(
        version="",
        fpr=decision.fpr,
        confidence=decision.confidence,
        choices=choices,
        tokens=tokens,
        cascade=steps,
        references=measured,
        warnings=[
            f"{one.questions.unscored} of {one.questions.unscored + one.questions.members + one.questions.others} "
            f"labelled questions of {one.name!r} have no score and are left out."
            for one in measured
            if one.questions.unscored
        ],
    )
    everything = detector.model_dump(mode="json", exclude={"version"} if steps else {"version", "cascade"})
    version = sha256(json.dumps(everything, sort_keys=True))[:12]
    by_name = {table.audit: found for (table, _), found in zip(references, methods, strict=True)}
    return Calibration(detector.model_copy(update={"version": version}), by_name, curves)


def _first_step(
    references: Sequence[tuple[ScoreTable, Audit]], methods: Sequence[str], p: params.Cascade, fpr: float
) -> Cascade:
    """The method that tells most in the first step, of those of `methods` that need no base, by AUC on average over the
    references; and the cut."""
    tried = [one.id for one in registry.first_steps([registry.parse(key) for key in methods], p.m)]
    known = [_known(table, entry, tried, fpr, None) for table, entry in references]
    areas = [calibration.rates(one, np.ones((1, len(one.labels)), int), fpr).auc for one in known]
    best = tried[int(calibration.best(np.mean(areas, axis=0), [True] * len(tried))[0])]
    return Cascade(id=best, m=p.m, keep=p.keep, cut=cascade.cut((one.unseen[best] for one in known), p.keep), saved=[])


def _saved(table: ScoreTable, entry: Audit, labels: NDArray[np.int8], steps: Cascade, tokens: int) -> Saved:
    """`labels`: of the benchmark; `tokens`: that the detector looks at of an answer that goes on."""
    shares = []
    for name, rows in ((entry.benchmark, labels == 1), (entry.benchmark, labels == 0), (entry.unseen, slice(None))):
        written, lengths = cascade.looked_at(table, name, tokens, steps), table.lengths(name)
        spared = np.minimum(lengths, tokens) - np.minimum(lengths, written)
        shares.append(float(spared[rows].sum() / np.minimum(lengths, tokens)[rows].sum()))
    return Saved(reference=table.audit, members=shares[0], others=shares[1], unseen=shares[2])


def _known(table: ScoreTable, entry: Audit, methods: Sequence[str], fpr: float, steps: Cascade | None) -> Known:
    """A reference's labelled and unseen questions. Raises InputError if there are too few of either."""
    where = f"benchmark {entry.benchmark!r} of the reference {table.audit!r}"
    labels = table.labels(entry.benchmark)
    if labels is None:
        raise InputError(f"{where}: needs labels, 1 and 0. Import it with --label-column.")
    fewest = min(int((labels == label).sum()) for label in (0, 1))
    if fewest < 2:
        raise InputError(
            f"{where}: {fewest} of its questions has the rarer label. One half of the labelled "
            "questions chooses, the other measures: at least 2 members and 2 others are needed."
        )
    have, need = table.sets[entry.unseen]["n"], negatives_needed(fpr)
    if have < need:
        raise InputError(
            f"params.yaml: decision.fpr: {fpr:g} needs {need} unseen questions and "
            f"{entry.unseen!r} has {have}: add {need - have} or raise the rate."
        )
    return Known(
        benchmark=table.sets[entry.benchmark]["md5"],
        labels=labels,
        scores={key: cascade.scores(table, key, entry.benchmark, steps) for key in methods},
        unseen={key: cascade.scores(table, key, entry.unseen, steps) for key in methods},
    )


def _figures(
    known: Known,
    method: str,
    auc_choice: float,
    agreement: float,
    rates: tuple[Rates, Rates],
    p_values: Array,
    decision: Decision,
) -> Figures:
    """What a choice is worth on a reference. `rates`: on the halves of the questions as they are, and of resamples;
    `p_values`: of the labelled questions, held out."""
    auc, tpr, paper = (float(np.nanmean(one)) for one in rates[0])
    drawn_auc, drawn_tpr, _ = (np.nanmean(one.reshape(-1, len(rates[0].auc)), axis=1) for one in rates[1])
    members, others = (np.sort(p_values[(known.labels == label) & ~np.isnan(p_values)]) for label in (1, 0))
    confidence, fewest = decision.confidence, min(len(members), len(others))
    auc_low, auc_high = calibration.interval(auc, drawn_auc, fewest, confidence)
    tpr_low, tpr_high = calibration.interval(tpr, drawn_tpr, len(members), confidence)
    hits = int((members <= decision.fpr).sum())
    low, high = proportion(hits, len(members), confidence)
    negatives = np.sort(known.unseen[method][~np.isnan(known.unseen[method])])
    return Figures(
        auc=auc,
        auc_low=auc_low,
        auc_high=auc_high,
        tpr_at_fpr=tpr,
        tpr_low=tpr_low,
        tpr_high=tpr_high,
        tpr_paper_convention=paper,
        auc_choice=auc_choice,
        agreement=agreement,
        threshold=calibration.threshold(negatives, decision.fpr),
        members_flagged=hits / len(members),
        members_flagged_low=low,
        members_flagged_high=high,
        others_flagged=float((others <= decision.fpr).mean()),
        member_p_values=members.tolist(),
        other_p_values=others.tolist(),
        negatives=negatives.tolist(),
    )


def _reference(
    table: ScoreTable, entry: Audit, known: Known, methods: Sequence[str], figures: dict[ChoiceName, Figures]
) -> Reference:
    unscored = np.any([np.isnan(known.scores[method]) for method in methods], axis=0)
    counts = [int((~unscored & (known.labels == label)).sum()) for label in (1, 0)]
    provenance = {
        "checkpoint": entry.checkpoint,
        "base": entry.base,
        "benchmark": table.sets[entry.benchmark],
        "unseen": table.sets[entry.unseen],
        **table.generation,
    }
    return Reference(
        name=table.audit,
        provenance=Provenance.model_validate(provenance),
        questions=LabelledQuestions(members=counts[0], others=counts[1], unscored=int(unscored.sum())),
        alone=figures["alone"],
        with_base=figures.get("with_base"),
    )


def _chosen(key: str) -> Chosen:
    method = registry.parse(key)
    return Chosen(method=method.name, id=key, parameters={"m": method.m, **dict(method.parameters)})

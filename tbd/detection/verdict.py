"""The verdict on one audit, from its scores and the detector: everything `verdict.json` says."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tbd.audits import Audit
from tbd.detection import calibration, decisions
from tbd.detection.decisions import Evidence
from tbd.detection.intervals import delong, proportion
from tbd.detection.metrics import auc
from tbd.detection.results import (
    Choice,
    Detector,
    DetectorUsed,
    Estimate,
    Generation,
    Labelled,
    Power,
    QuestionSet,
    Verdict,
)
from tbd.errors import InputError
from tbd.params import Calibrate, Decision
from tbd.scores.table import ScoreTable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """`verdict.json`, and the arrays behind it, in the order of the benchmark's questions."""

    verdict: Verdict
    scores: Array
    p_values: Array
    flagged: NDArray[np.bool_]
    unseen_scores: Array


def judge(
    name: str, audit: Audit, scored: ScoreTable, detector: Detector, decision: Decision, calibrate: Calibrate
) -> Judgement:
    """Decide on the audit `name`. A pure function of its arguments.

    Of `calibrate` it takes what an interval by the bootstrap is drawn with: `bootstrap` and `seed`.

    Raises InputError if the target FPR is too small for the number of unseen questions.
    """
    fpr = audit.fpr if audit.fpr is not None else decision.fpr
    warnings: list[str] = []
    choice, chosen = _choice(audit, scored, detector, warnings)
    scores = scored.scores(chosen.id, audit.benchmark)
    negatives_all = scored.scores(chosen.id, audit.unseen)
    benchmark, negatives = scores[~np.isnan(scores)], negatives_all[~np.isnan(negatives_all)]
    if len(negatives) < decisions.negatives_needed(fpr):
        need = decisions.negatives_needed(fpr)
        raise InputError(
            f"audit {name!r}: a false-positive rate of {fpr:g} needs {need} unseen questions with a score and "
            f"{audit.unseen!r} has "
            f"{len(negatives)}: add {need - len(negatives)} or raise the rate."
        )
    unscored = len(scores) - len(benchmark)
    if not len(benchmark):
        raise InputError(
            f"audit {name!r}: no question of {audit.benchmark!r} has a score. Look at audits/{name}/scores.parquet."
        )
    if unscored:
        warnings.append(f"{unscored} of {len(scores)} benchmark questions have no score and were left out.")
    p_values = decisions.conformal_p_values(scores, negatives)
    flagged = p_values <= fpr  # False for NaN
    discoveries = int(decisions.benjamini_hochberg(p_values, decision.level / 2).sum())
    exchangeability = _base_check(audit, scored, detector, warnings)
    power = _power(audit, scored, detector, chosen, fpr, decision.confidence, warnings)
    p_value = decisions.exceeds(benchmark, negatives)
    verdict, reasons = decisions.decide(
        Evidence(p_value, discoveries, exchangeability, power.estimate if power else None, len(negatives)),
        fpr=fpr,
        level=decision.level,
        exchangeability_level=decision.exchangeability,
        min_power=decision.min_power,
    )
    low, high = decisions.contamination_interval(
        benchmark,
        negatives,
        decision.storey_lambda,
        np.random.default_rng(calibrate.seed),
        calibrate.bootstrap,
        decision.confidence,
    )
    rate = decisions.contamination_rate(benchmark, negatives, decision.storey_lambda)
    labels = scored.labels(audit.benchmark)
    labelled = None
    if labels is not None:
        seed = detector.seed if _chose_the_detector(audit, scored, detector) else None
        labelled = _labelled(labels, scores, flagged, seed, decision.confidence)
        if labelled is None:
            warnings.append(
                "Of the labelled questions with a score all are members or none is, "
                "so how right scores are is not known."
            )
    used = {key: getattr(chosen, key) for key in ("method", "id", "parameters")}
    made = {key: value for key, value in scored.generation.items() if key not in ("fingerprint", "base_fingerprint")}
    found = Verdict(
        audit=name,
        verdict=verdict,
        reasons=reasons,
        warnings=warnings,
        checkpoint=audit.checkpoint,
        checkpoint_fingerprint=scored.generation["fingerprint"],
        base=audit.base,
        base_fingerprint=scored.generation["base_fingerprint"],
        benchmark=QuestionSet.model_validate(scored.sets[audit.benchmark]),
        unseen=QuestionSet.model_validate(scored.sets[audit.unseen]),
        detector=DetectorUsed(version=detector.version, choice=choice, **used),
        fpr=fpr,
        level=decision.level,
        confidence=decision.confidence,
        threshold=calibration.threshold(negatives, fpr),
        flagged=int(flagged.sum()),
        discoveries=discoveries,
        unscored=unscored,
        contamination_rate=Estimate(estimate=rate, low=low, high=high),
        p_value=p_value,
        power=power,
        exchangeability=exchangeability,
        generation=Generation.model_validate(made),
        labelled=labelled,
    )
    return Judgement(found, scores, p_values, flagged, negatives_all)


def _choice(
    audit: Audit, scored: ScoreTable, detector: Detector, warnings: list[str]
) -> tuple[Literal["alone", "with_base"], Choice]:
    """Which of the detector's choices applies: the one with the base only where there is one to compare with."""
    best = detector.choices.with_base
    if audit.base is None or best is None:
        return "alone", detector.choices.alone
    if best.id in scored.methods():
        return "with_base", best
    warnings.append(
        "The base model has another vocabulary, so no score compares the two; the base serves for the check only."
    )
    return "alone", detector.choices.alone


def _base_check(audit: Audit, scored: ScoreTable, detector: Detector, warnings: list[str]) -> float | None:
    """p-value of "the base tells benchmark from unseen", on the base's own answers; None without a base."""
    if audit.base is None:
        warnings.append(
            "No base model was given, so it was not checked that benchmark and unseen questions are of one kind."
        )
        return None
    method = detector.choices.alone.id
    benchmark, unseen = (scored.scores(method, name, "base") for name in (audit.benchmark, audit.unseen))
    return decisions.differs(benchmark[~np.isnan(benchmark)], unseen[~np.isnan(unseen)])


def _power(
    audit: Audit,
    scored: ScoreTable,
    detector: Detector,
    chosen: Choice,
    fpr: float,
    confidence: float,
    warnings: list[str],
) -> Power | None:
    """Share of the reference's held-out members found at `fpr`; None where the reference cannot say."""
    have, need = len(chosen.negatives), decisions.negatives_needed(fpr)
    if have < need:
        warnings.append(
            f"Power is not known: at a rate of {fpr:g} the reference needs {need} unseen questions and has {have}."
        )
    same_base = _same_base(audit, scored, detector, warnings)
    if have < need:
        return None
    p_values = np.asarray(chosen.member_p_values)
    hits = int((p_values <= fpr).sum())
    low, high = proportion(hits, len(p_values), confidence)
    return Power(estimate=hits / len(p_values), low=low, high=high, audit=detector.reference, same_base=same_base)


def _same_base(audit: Audit, scored: ScoreTable, detector: Detector, warnings: list[str]) -> bool | None:
    """Whether the reference was distilled from the model this checkpoint was, or is; None if not known."""
    provenance, own = detector.provenance, scored.generation
    differing = [key for key in ("engine", "dtype", "device", "max_new_tokens") if getattr(provenance, key) != own[key]]
    if differing:
        warnings.append(f"Power was measured with another {', '.join(differing)} than this audit's.")
    if provenance.base_fingerprint == (own["base_fingerprint"] or own["fingerprint"]):
        return True
    what = "another model than this checkpoint" if audit.base else "what may be another model than this checkpoint"
    warnings.append(
        f"Power was measured on {provenance.checkpoint}, which was distilled from {what}. "
        "For a reference of your own: tbd distill."
    )
    return False if audit.base else None


def _chose_the_detector(audit: Audit, scored: ScoreTable, detector: Detector) -> bool:
    """Whether these are the reference's answers to the labelled questions, whatever the audit is called."""
    provenance = detector.provenance
    own = scored.generation["fingerprint"], scored.sets[audit.benchmark]["md5"]
    return own == (provenance.fingerprint, provenance.benchmark.md5)


def _labelled(
    labels: NDArray[np.int8], scores: Array, flagged: NDArray[np.bool_], seed: int | None, confidence: float
) -> Labelled | None:
    """How right the scores were, by the benchmark's own labels; None where one kind has no score."""
    used = ~np.isnan(scores)
    which: Literal["all", "evaluation half"] = "all"
    if seed is not None:  # of the half split: half of these questions chose the detector and do not count
        used &= ~calibration.halves(labels, np.random.default_rng(seed))
        which = "evaluation half"
    y, s = labels[used], scores[used]
    if len(np.unique(y)) < 2:
        return None
    low, high = delong(s, y, confidence)
    members, others = flagged[used][y == 1], flagged[used][y == 0]
    members_low, members_high = proportion(int(members.sum()), len(members), confidence)
    return Labelled(
        questions=which,
        members=len(members),
        others=len(others),
        auc=auc(s, y),
        auc_low=low,
        auc_high=high,
        members_flagged=float(members.mean()),
        members_flagged_low=members_low,
        members_flagged_high=members_high,
        others_flagged=float(others.mean()),
    )

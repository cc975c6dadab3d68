"""The verdict on one audit, from its scores and the detector: everything `verdict.json` says."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd.audits import Audit
from tbd.detection import calibration, decisions
from tbd.detection.decisions import Evidence
from tbd.detection.intervals import delong, proportion
from tbd.detection.metrics import auc
from tbd.errors import InputError
from tbd.params import Decision
from tbd.scores.table import ScoreTable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """`verdict.json`, and the arrays behind it, in the order of the benchmark's questions."""

    verdict: dict[str, Any]
    scores: Array
    p_values: Array
    flagged: NDArray[np.bool_]
    unseen_scores: Array


def judge(name: str, audit: Audit, scored: ScoreTable, detector: dict[str, Any], decision: Decision, seed: int) -> Judgement:
    """Decide on the audit `name`. A pure function of its arguments and of the question sets.

    Raises InputError if the target FPR is too small for the number of unseen questions.
    """
    fpr = audit.fpr if audit.fpr is not None else decision.fpr
    warnings: list[str] = []
    choice = _choice(audit, scored, detector, warnings)
    chosen = detector["choices"][choice]
    scores = scored.scores(chosen["id"], audit.benchmark)
    negatives_all = scored.scores(chosen["id"], audit.unseen)
    benchmark, negatives = scores[~np.isnan(scores)], negatives_all[~np.isnan(negatives_all)]
    if len(negatives) < decisions.negatives_needed(fpr):
        need = decisions.negatives_needed(fpr)
        raise InputError(
            f"audit {name!r}: a false-positive rate of {fpr:g} needs {need} unseen questions with a score and {audit.unseen!r} has "
            f"{len(negatives)}: add {need - len(negatives)} or raise the rate."
        )
    unscored = len(scores) - len(benchmark)
    if not len(benchmark):
        raise InputError(f"audit {name!r}: no question of {audit.benchmark!r} has a score. Look at audits/{name}/scores.parquet.")
    if unscored:
        warnings.append(f"{unscored} of {len(scores)} benchmark questions have no score and were left out.")
    p_values = decisions.conformal_p_values(scores, negatives)
    flagged = p_values <= fpr  # False for NaN
    discoveries = int(decisions.benjamini_hochberg(p_values, decision.level / 2).sum())
    exchangeability = _base_check(audit, scored, detector, warnings)
    power, power_low, power_high = _power(chosen, fpr, decision.confidence, warnings)
    same_base = _same_base(audit, scored, detector, warnings)
    p_value = decisions.exceeds(benchmark, negatives)
    verdict, reasons = decisions.decide(
        Evidence(p_value, discoveries, exchangeability, power, len(negatives)),
        fpr=fpr,
        level=decision.level,
        exchangeability_level=decision.exchangeability,
        min_power=decision.min_power,
    )
    rng = np.random.default_rng(seed)
    low, high = decisions.rate_interval(benchmark, negatives, rng, 2000, decision.confidence)
    found: dict[str, Any] = {
        "audit": name,
        "verdict": verdict,
        "reasons": reasons,
        "warnings": warnings,
        "checkpoint": audit.checkpoint,
        "checkpoint_fingerprint": scored.generation["fingerprint"],
        "base": audit.base,
        "base_fingerprint": scored.generation["base_fingerprint"],
        "benchmark": scored.sets[audit.benchmark],
        "unseen": scored.sets[audit.unseen],
        "detector": {key: chosen[key] for key in ("method", "id", "parameters")} | {"version": detector["version"], "choice": choice},
        "fpr": fpr,
        "level": decision.level,
        "confidence": decision.confidence,
        "threshold": float(scores[flagged].min()) if flagged.any() else None,
        "flagged": int(flagged.sum()),
        "discoveries": discoveries,
        "unscored": unscored,
        "rate": {"estimate": decisions.contamination_rate(benchmark, negatives), "low": low, "high": high},
        "p_value": p_value,
        "power": power,
        "power_low": power_low,
        "power_high": power_high,
        "power_reference": {"audit": detector["reference"], "same_base": same_base},
        "exchangeability": exchangeability,
        "generation": {"torch_version": None}  # not every engine has one
        | {key: value for key, value in scored.generation.items() if key not in ("fingerprint", "base_fingerprint")},
    }
    labels = scored.labels(audit.benchmark)
    if labels is not None:
        chose = _chose_the_detector(audit, scored, detector)
        labelled = _labelled(labels, scores, flagged, detector["seed"] if chose else None, decision.confidence)
        if labelled is None:
            warnings.append("Of the labelled questions with a score all are members or none is, so how right scores are is not known.")
        else:
            found["labelled"] = labelled
    return Judgement(found, scores, p_values, flagged, negatives_all)


def _choice(audit: Audit, scored: ScoreTable, detector: dict[str, Any], warnings: list[str]) -> str:
    """Which of the detector's two methods applies: the one that needs the base only where there is one to compare with."""
    best = detector["choices"]["with_base"]
    if audit.base is None or best is None:
        return "alone"
    if best["id"] in scored.methods():
        return "with_base"
    warnings.append("The base model has another vocabulary, so no score compares the two; the base serves for the check only.")
    return "alone"


def _base_check(audit: Audit, scored: ScoreTable, detector: dict[str, Any], warnings: list[str]) -> float | None:
    """p-value of "the base tells benchmark from unseen", on the base's own answers; None without a base."""
    method = detector["choices"]["alone"]["id"]
    if audit.base is None:
        warnings.append("No base model was given, so it was not checked that benchmark and unseen questions are of one kind.")
        return None
    benchmark, unseen = (scored.scores(method, name, "base") for name in (audit.benchmark, audit.unseen))
    return decisions.differs(benchmark[~np.isnan(benchmark)], unseen[~np.isnan(unseen)])


def _power(
    chosen: dict[str, Any], fpr: float, confidence: float, warnings: list[str]
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Share of the reference's held-out members found at `fpr`, with its interval; None where the reference cannot say."""
    have, need = len(chosen["negatives"]), decisions.negatives_needed(fpr)
    if have < need:
        warnings.append(f"Power is not known: at a rate of {fpr:g} the reference needs {need} unseen questions and has {have}.")
        return None, None, None
    p_values = np.asarray(chosen["member_p_values"])
    hits = int((p_values <= fpr).sum())
    return hits / len(p_values), *proportion(hits, len(p_values), confidence)


def _same_base(audit: Audit, scored: ScoreTable, detector: dict[str, Any], warnings: list[str]) -> bool | None:
    """Whether the reference behind the power was distilled from the model this checkpoint was, or is; None if not known."""
    provenance, own = detector["provenance"], scored.generation
    differing = [key for key in ("engine", "dtype", "device", "max_new_tokens") if provenance[key] != own[key]]
    if differing:
        warnings.append(f"Power was measured with another {', '.join(differing)} than this audit's.")
    same: bool | None = provenance["base_fingerprint"] == (own["base_fingerprint"] or own["fingerprint"])
    if same:
        return True
    what = "another model than this checkpoint" if audit.base else "what may be another model than this checkpoint"
    warnings.append(
        f"Power was measured on {provenance['checkpoint']}, which was distilled from {what}. For a reference of your own: tbd distill."
    )
    return False if audit.base else None


def _chose_the_detector(audit: Audit, scored: ScoreTable, detector: dict[str, Any]) -> bool:
    """Whether these are the reference's answers to the labelled questions, whatever the audit is called."""
    provenance = detector["provenance"]
    own = scored.generation["fingerprint"], scored.sets[audit.benchmark]["md5"]
    return own == (provenance["fingerprint"], provenance["benchmark"]["md5"])


def _labelled(
    labels: NDArray[np.int8], scores: Array, flagged: NDArray[np.bool_], seed: int | None, confidence: float
) -> dict[str, Any] | None:
    """How right the scores were, where the benchmark says which questions are members; None where one kind has no score."""
    used = ~np.isnan(scores)
    which = "all"
    if seed is not None:  # of the half split: half of these questions chose the detector and do not count
        used &= ~calibration.halves(labels, np.random.default_rng(seed))
        which = "evaluation half"
    y, s = labels[used], scores[used]
    if len(np.unique(y)) < 2:
        return None
    low, high = delong(s, y, confidence)
    tpr = proportion(int(flagged[used][y == 1].sum()), int((y == 1).sum()), confidence)
    return {
        "auc": auc(s, y),
        "auc_low": low,
        "auc_high": high,
        "tpr_at_fpr": float(flagged[used][y == 1].mean()),
        "tpr_low": tpr[0],
        "tpr_high": tpr[1],
        "fpr_observed": float(flagged[used][y == 0].mean()),
        "members": int((y == 1).sum()),
        "others": int((y == 0).sum()),
        "questions": which,
    }

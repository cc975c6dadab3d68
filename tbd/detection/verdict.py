"""The verdict on one audit, from its scores and the detector: everything `verdict.json` says."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from tbd.audits import Audit
from tbd.detection import calibration, cascade, decisions, minimum, power
from tbd.detection.decisions import Evidence
from tbd.detection.global_test import GlobalTest
from tbd.detection.intervals import delong, proportion
from tbd.detection.metrics import auc
from tbd.detection.results import (
    Answers,
    Blind,
    Chance,
    ChoiceName,
    Chosen,
    Clusters,
    Detector,
    DetectorUsed,
    Generation,
    Labelled,
    Power,
    QuestionSet,
    Reference,
    SameKind,
    Share,
    Stopped,
    Verdict,
)
from tbd.errors import InputError
from tbd.params import Decision
from tbd.scores.table import ScoreTable

Array = NDArray[np.float64]
HOW = ("engine", "engine_version", "torch_version", "dtype", "device", "batch_size")
"""what of an audit's answers may make its scores others than the reference's"""
NOISY = 0.05
"""nats; a server's log-probs that differ by more from one time to the next are worth a warning"""


@dataclass(frozen=True)
class Judgement:
    """`verdict.json`, and the arrays behind it, in the order of the benchmark's questions."""

    verdict: Verdict
    scores: Array
    p_values: Array
    flagged: NDArray[np.bool_]
    at_least: NDArray[np.int64]
    """of this question and those that score higher, at least so many were in the data; 0 where that is not known"""
    unseen_scores: Array


@dataclass(frozen=True)
class Texts:
    """What the questions themselves say about an audit, in the order of the sets."""

    sources: tuple[ArrayLike, ArrayLike]
    """a number or name of where each question comes from, of the benchmark and of the unseen set"""
    blind: Blind | None


def judge(
    name: str,
    audit: Audit,
    scored: ScoreTable,
    detector: Detector,
    decision: Decision,
    seed: int,
    texts: Texts | None = None,
) -> Judgement:
    """Decide on the audit `name`. A pure function of its arguments.

    `seed` draws permutations and simulated audits. Without `texts` every question counts by itself and wording is not
    checked.

    Raises InputError if the target FPR is too small for the number of unseen questions.
    """
    decision = decision.model_copy(update={"fpr": audit.fpr if audit.fpr is not None else decision.fpr})
    fpr, confidence = decision.fpr, decision.confidence
    warnings: list[str] = []
    choice, chosen = _choice(audit, scored, detector, warnings)
    scores, negatives_all = (
        cascade.scores(scored, chosen.id, one, detector.cascade) for one in (audit.benchmark, audit.unseen)
    )
    known, known_negatives = ~np.isnan(scores), ~np.isnan(negatives_all)
    benchmark, negatives = scores[known], negatives_all[known_negatives]
    if len(negatives) < decisions.negatives_needed(fpr):
        need = decisions.negatives_needed(fpr)
        raise InputError(
            f"audit {name!r}: a false-positive rate of {fpr:g} needs {need} unseen questions with a score and "
            f"{audit.unseen!r} has "
            f"{len(negatives)}: add {need - len(negatives)} or raise the rate."
        )
    if not len(benchmark):
        raise InputError(
            f"audit {name!r}: no question of {audit.benchmark!r} has a score. Look at audits/{name}/scores.parquet."
        )
    unscored = len(scores) - len(benchmark)
    for what, missing, all_ in (("benchmark", ~known, scores), ("unseen", ~known_negatives, negatives_all)):
        if missing.any():
            warnings.append(f"{missing.sum()} of {len(all_)} {what} questions have no score and were left out.")
    p_values = decisions.conformal_p_values(scores, negatives)
    flagged = p_values <= fpr  # False for NaN
    test = _test(texts, known, known_negatives, decision, seed)
    p_value = test.p_value(benchmark, negatives)
    needed = test.shift_needed(benchmark, negatives, decision.level) if p_value <= decision.level else None
    checks = _same_kind(audit, scored, detector, texts, needed, decision, seed, warnings)
    counts = next((one for one in detector.references if _same_base(audit, scored, one)), detector.reference)
    unanswered = max(1 - known.mean(), 1 - known_negatives.mean())
    answers = _answers(audit, scored, detector, counts, chosen, unanswered, warnings)
    seen, others, more_unseen = _power(audit, scored, detector, counts, choice, decision, test.units, seed, warnings)
    evidence = Evidence(p_value, len(negatives), min(test.units), checks, answers, seen, more_unseen)
    verdict, reasons = decisions.decide(evidence, decision)
    at_least = np.zeros(len(scores), np.int64)
    if test.clustered:
        warnings.append(
            f"Sources repeat, so {test.units[0]} benchmark and {test.units[1]} unseen units were compared instead of "
            "questions; how many questions were in the data at least cannot be said."
        )
    else:
        bounds = minimum.members_at_least(benchmark, negatives, confidence)
        at_least[known] = bounds[rankdata(-benchmark, method="max").astype(int) - 1]
    mean, high = minimum.flags_by_chance(len(benchmark), len(negatives), fpr, confidence)
    rate = decisions.contamination_rate(benchmark, negatives, decision.storey_lambda)
    labels = scored.labels(audit.benchmark)
    labelled = None
    if labels is not None:
        chose = _chose_the_detector(audit, scored, detector)
        labelled = (
            _cross_validated(chose, choice, fpr, confidence)
            if chose
            else _labelled(labels, scores, flagged, confidence)
        )
        if labelled is None:
            warnings.append(
                "The labelled questions with a score are all members, or none of them is, so it is not known how well "
                "scores tell them apart."
            )
    used = {key: getattr(chosen, key) for key in ("method", "id", "parameters")}
    made = {key: value for key, value in scored.generation.items() if key not in ("fingerprint", "base_fingerprint")}
    certain = None if test.clustered else int(bounds[-1])
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
        exchangeability=decision.exchangeability,
        confidence=confidence,
        p_value=p_value,
        clusters=Clusters(benchmark=test.units[0], unseen=test.units[1]) if test.clustered else None,
        members_at_least=certain,
        share_at_least=None if certain is None else certain / len(benchmark),
        contamination_rate=rate,
        threshold=calibration.threshold(negatives, fpr),
        flagged=int(flagged.sum()),
        flagged_by_chance=Chance(mean=mean, high=high),
        flagged_false=min(1.0, (1 - rate) * mean / flagged.sum()) if flagged.any() else None,
        unscored=unscored,
        answers=answers,
        stopped=_stopped(audit, scored, detector),
        power=seen,
        other_powers=others,
        same_kind=checks,
        generation=Generation.model_validate(made),
        labelled=labelled,
    )
    return Judgement(found, scores, p_values, flagged, at_least, negatives_all)


def _choice(audit: Audit, scored: ScoreTable, detector: Detector, warnings: list[str]) -> tuple[ChoiceName, Chosen]:
    """Which of the detector's choices applies: the one with the base only where there is one to compare with."""
    best = detector.choices.with_base
    if audit.base is None or best is None:
        return "alone", detector.choices.alone
    if best.id in scored.methods():
        return "with_base", best
    warnings.append(
        "The base has another vocabulary, or its engine does not say how likely these tokens are to it, so no score "
        "compares the two; the base only checks that both sets are of one kind."
    )
    return "alone", detector.choices.alone


def _test(
    texts: Texts | None, benchmark: NDArray[np.bool_], unseen: NDArray[np.bool_], decision: Decision, seed: int
) -> GlobalTest:
    """The test of those questions that have a score."""
    sources = texts and (np.asarray(texts.sources[0])[benchmark], np.asarray(texts.sources[1])[unseen])
    permutations = decision.permutations
    return GlobalTest(
        int(benchmark.sum()), int(unseen.sum()), permutations=permutations, seed=seed, sources=sources or None
    )


def _same_kind(
    audit: Audit,
    scored: ScoreTable,
    detector: Detector,
    texts: Texts | None,
    needed: float | None,
    decision: Decision,
    seed: int,
    warnings: list[str],
) -> SameKind:
    """What the wording and the base's own answers say about the two sets.

    A score that compares with the base is the same for all of the base's own answers, so the best score without a base
    is taken of those.
    """
    blind = texts.blind if texts else None
    if audit.base is None:
        warnings.append(
            "No base model was given, so it was not checked that benchmark and unseen questions are of one kind."
        )
        return SameKind(blind=blind, base_p_value=None, base_shift_bound=None, shift_needed=needed)
    asked, new = (
        cascade.scores(scored, detector.choices.alone.id, name, detector.cascade, "base")
        for name in (audit.benchmark, audit.unseen)
    )
    known, known_new = ~np.isnan(asked), ~np.isnan(new)
    if not known.any() or not known_new.any():
        raise InputError(f"audit {scored.audit!r}: the base's answers have no score. Use another base, or none.")
    if np.ptp(np.concatenate([asked[known], new[known_new]])) == 0:
        warnings.append("The base model scores all of its answers alike, so it cannot check what kind they are.")
        return SameKind(blind=blind, base_p_value=None, base_shift_bound=None, shift_needed=needed)
    test = _test(texts, known, known_new, decision, seed)
    return SameKind(
        blind=blind,
        base_p_value=decisions.differs(asked[known], new[known_new]),
        base_shift_bound=test.shift_possible(asked[known], new[known_new], decision.level),
        shift_needed=needed,
    )


def _answers(
    audit: Audit,
    scored: ScoreTable,
    detector: Detector,
    reference: Reference,
    chosen: Chosen,
    unscored: float,
    warnings: list[str],
) -> Answers:
    """What prompts and answers were like, beside what the detector needs and the reference's were."""
    provenance, own = reference.provenance, scored.generation
    looked_at = min(int(chosen.parameters["m"]), provenance.max_new_tokens)
    short = [
        scored.lengths(name) < cascade.looked_at(scored, name, looked_at, detector.cascade)
        for name in (audit.benchmark, audit.unseen)
    ]
    if few := sum(int(each.sum()) for each in short):
        warnings.append(f"{few} answers have fewer than the {looked_at} tokens that the detector looks at.")
    same_frame = provenance.frame == own.get("frame")
    if not same_frame:
        warnings.append("The chat template puts another text around the questions than on the reference.")
    if own.get("device_asked") == "auto" and own["device"] == "cpu":
        warnings.append("generate.device is auto and no GPU was found: the answers were computed on the CPU.")
    if own.get("served"):
        warnings.append(
            "The checkpoint is only on a server: it is known by what that says of itself and by its answers to a few "
            "fixed prompts, which is weaker than a fingerprint of its weights."
        )
    if noise := own.get("noise"):
        if noise["median"] is None or noise["median"] > NOISY:
            warnings.append(
                "The server gives other log-probs when the same questions are asked again, which hides small leaks. "
                "Let it compute in float32 or batch-invariantly (docs/engines.md)."
            )
        elif noise["diverged"] > noise["questions"] / 2 and noise["tokens"] < noise["questions"] * looked_at / 2:
            warnings.append(
                f"{noise['diverged']} of {noise['questions']} answers of the server become others when asked again, "
                f"mostly early among the {looked_at} tokens that the detector looks at. Let it compute in float32 or "
                "batch-invariantly (docs/engines.md), and see that all addresses serve the same model."
            )
    return Answers(
        looked_at=looked_at,
        short=max(float(each.mean()) for each in short),
        unscored=float(unscored),
        odd_prompts=own.get("odd_prompts", 0),
        same_frame=same_frame,
    )


def _stopped(audit: Audit, scored: ScoreTable, detector: Detector) -> Stopped | None:
    """How many answers the cascade ended; None: there is none."""
    found = detector.cascade
    if found is None:
        return None
    asked, new = (int(cascade.stopped(scored, name, found).sum()) for name in (audit.benchmark, audit.unseen))
    return Stopped(m=found.m, benchmark=asked, unseen=new)


def _power(
    audit: Audit,
    scored: ScoreTable,
    detector: Detector,
    counts: Reference,
    choice: ChoiceName,
    decision: Decision,
    units: tuple[int, int],
    seed: int,
    warnings: list[str],
) -> tuple[Power | None, list[Power], int | None]:
    """What this audit can see by the reference that counts, and by the others, and how many more unseen questions would
    let it see enough; None where the reference cannot say."""
    _whose_power(audit, scored, counts, warnings)
    need, with_base = decisions.negatives_needed(decision.fpr), audit.base is not None
    found: dict[str, Power] = {}
    more = None
    for reference in detector.references:
        figures = reference.figures(choice)
        if len(figures.negatives) < need:
            warnings.append(
                f"Power on {reference.name!r} is not known: at a rate of {decision.fpr:g} that reference needs {need} "
                f"unseen questions and has {len(figures.negatives)}."
            )
            continue
        places = power.measured(figures)
        curve = power.curve(places, *units, with_base=with_base, decision=decision, seed=seed)
        if reference is counts and curve.mde80.high > decision.detectable_share:
            more = power.more_unseen(places, *units, with_base=with_base, decision=decision, seed=seed)
        hits = int((np.asarray(figures.member_p_values) <= decision.fpr).sum())
        low, high = proportion(hits, len(figures.member_p_values), decision.confidence)
        flagged = Share(estimate=hits / len(figures.member_p_values), low=low, high=high)
        found[reference.name] = curve.result(reference.name, _same_base(audit, scored, reference), flagged)
    return found.pop(counts.name, None), list(found.values()), more


def _same_base(audit: Audit, scored: ScoreTable, reference: Reference) -> bool | None:
    """Whether the reference was distilled from the model this checkpoint was, or is; None if not known."""
    own = scored.generation["base_fingerprint"] or scored.generation["fingerprint"]
    if reference.provenance.base_fingerprint == own:
        return True
    return False if audit.base else None


def _whose_power(audit: Audit, scored: ScoreTable, reference: Reference, warnings: list[str]) -> None:
    """What is to be said of the reference that counts."""
    provenance, own = reference.provenance, scored.generation
    differing = {key: (getattr(provenance, key), own.get(key)) for key in HOW}
    others = [f"{key} ({then}, here {here})" for key, (then, here) in differing.items() if then != here]
    if others:
        warnings.append(f"Power was measured with another {', '.join(others)} than this audit's.")
    if not _same_base(audit, scored, reference):
        what = "another model than this checkpoint" if audit.base else "what may be another model than this checkpoint"
        warnings.append(
            f"Power was measured on {provenance.checkpoint}, which was distilled from {what}. "
            "For a reference of your own: tbd distill."
        )


def _chose_the_detector(audit: Audit, scored: ScoreTable, detector: Detector) -> Reference | None:
    """The reference whose answers to the labelled questions these are, whatever the audit is called."""
    own = scored.generation["fingerprint"], *(scored.sets[name]["md5"] for name in (audit.benchmark, audit.unseen))
    for reference in detector.references:
        of = reference.provenance
        if own == (of.fingerprint, of.benchmark.md5, of.unseen.md5):
            return reference
    return None


def _cross_validated(reference: Reference, choice: ChoiceName, fpr: float, confidence: float) -> Labelled:
    """How right the choice is on the reference, where it was not made."""
    figures = reference.figures(choice)
    members, others = np.asarray(figures.member_p_values), np.asarray(figures.other_p_values)
    low, high = proportion(int((members <= fpr).sum()), len(members), confidence)
    return Labelled(
        questions="cross-validated",
        members=len(members),
        others=len(others),
        auc=figures.auc,
        auc_low=figures.auc_low,
        auc_high=figures.auc_high,
        members_flagged=float((members <= fpr).mean()),
        members_flagged_low=low,
        members_flagged_high=high,
        others_flagged=float((others <= fpr).mean()),
    )


def _labelled(
    labels: NDArray[np.int8], scores: Array, flagged: NDArray[np.bool_], confidence: float
) -> Labelled | None:
    """How right the scores were, by the benchmark's own labels; None where one kind has no score."""
    used = ~np.isnan(scores)
    y, s = labels[used], scores[used]
    if len(np.unique(y)) < 2:
        return None
    low, high = delong(s, y, confidence)
    members, others = flagged[used][y == 1], flagged[used][y == 0]
    members_low, members_high = proportion(int(members.sum()), len(members), confidence)
    return Labelled(
        questions="all",
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

"""Verdicts on hand-made tables of scores: every branch, and `verdict.json` as it goes to disk."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbd import records
from tbd.audits import Audit
from tbd.detection.decisions import conformal_p_values
from tbd.detection.results import Detector, Verdict
from tbd.detection.verdict import Texts, judge
from tbd.errors import InputError
from tbd.params import Decision
from tbd.scores.table import ScoreTable
from tests import results
from tests.detection import test_decisions

ALONE, RATIO = "mean_logprob(m=20)", "logprob_ratio(m=10)"
DECISION = test_decisions.DECISION.model_copy(update={"detectable_share": 0.8})
LOW = np.linspace(-2, -1, 40).tolist()
"""scores of 40 questions that were not in the data"""
MIXED = [*np.linspace(-0.5, -0.1, 20), *np.linspace(-2, -1, 20)]
"""a benchmark of which the first half was"""
MADE = {"engine": "fake", "engine_version": "1", "device": "cpu", "dtype": "float32", "template": "none",
        "vocabulary": "bytes", "decoding": "greedy", "end_token": "included", "max_new_tokens": 20,
        "batch_size": 16}  # fmt: skip
IDENTITY = {**MADE, "fingerprint": "c" * 64, "base_fingerprint": "b" * 64}


def audit(**changes: Any) -> Audit:
    entry = {
        "checkpoint": "m",
        "base": "n",
        "benchmark": "asked",
        "unseen": "new",
        "fpr": None,
        "checkpoint_fingerprint": None,
        "base_fingerprint": None,
    }
    return Audit(**entry | changes)


def reference(members: Sequence[float], name: str = "reference", **provenance: Any) -> dict[str, Any]:
    """One whose members score so, among unseen questions that score LOW."""
    of_members, of_others = (sorted(conformal_p_values(np.array(s), np.array(LOW)).tolist()) for s in (members, LOW))
    figures = results.figures(member_p_values=of_members, other_p_values=of_others, negatives=sorted(LOW))
    made_by = results.provenance(torch_version=None, **IDENTITY | provenance)
    return results.reference(name=name, provenance=made_by, alone=figures, with_base=figures)


def detector(
    members: Sequence[float] = (-0.5,) * 9 + (-1.5,),
    with_base: bool = True,
    others: Sequence[dict[str, Any]] = (),
    **provenance: Any,
) -> Detector:
    """One that finds nine of ten planted members, unless told otherwise; `others`: more references."""
    return results.detector(
        choices={"alone": results.choice(ALONE), "with_base": results.choice(RATIO) if with_base else None},
        references=[reference(members, **provenance), *others],
    )


def table(
    scores: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]],
    labels: Sequence[int] | None = None,
    tokens: int = 20,
    **identity: Any,
) -> ScoreTable:
    """Scores of (benchmark, unseen) by (whose answers, method)."""
    rows = []
    for (of, method), sets in scores.items():
        for name, values in zip(("asked", "new"), sets, strict=True):
            for row, value in enumerate(values):
                label = labels[row] if labels is not None and name == "asked" else None
                reason = "no token generated" if math.isnan(value) else None
                rows.append((name, f"{name}{row}", of, label, method, value, reason, tokens))
    columns = [list(column) for column in zip(*rows, strict=True)]
    asked, new = next(iter(scores.values()))
    sets = {
        "asked": {"name": "asked", "md5": "1" * 32, "n": len(asked)},
        "new": {"name": "new", "md5": "2" * 32, "n": len(new)},
    }
    metadata = json.dumps({**IDENTITY, **identity, "sets": sets})
    return ScoreTable("a", pa.table(columns, schema=records.SCORES.with_metadata({"tbd": metadata})))


def both(benchmark: Sequence[float], unseen: Sequence[float] = LOW, base: Sequence[float] = LOW) -> dict[Any, Any]:
    """The same scores for both methods, and answers of the base."""
    return {
        ("checkpoint", ALONE): (benchmark, unseen),
        ("checkpoint", RATIO): (benchmark, unseen),
        ("base", ALONE): (base, LOW),
    }


def decided(
    scored: ScoreTable,
    found: Detector | None = None,
    name: str = "a",
    decision: Decision = DECISION,
    texts: Texts | None = None,
    **entry: Any,
) -> Any:
    """The verdict as it goes to disk."""
    verdict = judge(name, audit(**entry), scored, found or detector(), decision, 0, texts).verdict
    tree = verdict.model_dump(mode="json")
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree  # nothing that JSON does not have
    return tree


def test_half_of_the_benchmark_was_in_the_data() -> None:
    found = decided(table(both(MIXED)))
    assert found["verdict"] == "CONTAMINATED"
    assert found["detector"] == {
        "method": "logprob_ratio",
        "id": RATIO,
        "parameters": {"m": 10},
        "version": "0123456789ab",
        "choice": "with_base",
    }
    # 40 negatives: p <= 0.05 allows one of them to score as high, so the threshold is the second highest
    assert found["flagged"] == 21 and found["threshold"] == sorted(LOW)[-2] and found["unscored"] == 0
    assert found["flagged_by_chance"] == {"mean": pytest.approx(40 * 2 / 41), "high": 6}  # beta-binomial(40, 2, 39)
    assert found["contamination_rate"] > 0.3 and 0 < found["flagged_false"] < 0.1
    assert 10 <= found["members_at_least"] <= 20 and found["share_at_least"] == found["members_at_least"] / 40
    assert found["p_value"] < 1e-4 and found["clusters"] is None
    checks = found["same_kind"]
    assert checks["base_p_value"] == 1.0 and checks["blind"] is None
    assert 0 < checks["base_shift_bound"] < 0.5 < checks["shift_needed"]
    power = found["power"]
    assert power["members_flagged"]["estimate"] == 0.9 and power["curve"][-1]["estimate"] > 0.95
    assert power["mde80_low"] <= power["mde80"] <= power["mde80_high"] < 0.8
    assert power["reference"] == "reference" and power["same_base"] is True
    assert found["benchmark"] == {"name": "asked", "md5": "1" * 32, "n": 40} and found["fpr"] == 0.05
    assert found["checkpoint_fingerprint"] == "c" * 64 and found["base_fingerprint"] == "b" * 64
    unknown = {"torch_version": None, "frame": None, "odd_prompts": 0, "device_asked": None, "noise": None}
    assert found["generation"] == unknown | MADE
    assert found["warnings"] == [] and len(found["reasons"]) >= 1 and found["labelled"] is None


def test_none_of_it_was() -> None:
    found = decided(table(both(LOW)))
    assert found["verdict"] == "NO EVIDENCE" and found["p_value"] > 0.3
    assert found["members_at_least"] == 0 and found["same_kind"]["shift_needed"] is None


def test_without_a_base_the_checkpoint_stands_alone_and_the_report_says_so() -> None:
    found = decided(table({("checkpoint", ALONE): (MIXED, LOW)}, base_fingerprint=None), base=None)
    assert (
        found["verdict"] == "CONTAMINATED"
        and found["detector"]["choice"] == "alone"
        and found["detector"]["id"] == ALONE
    )
    assert found["base"] is None and found["power"]["same_base"] is None
    assert found["same_kind"]["base_p_value"] is found["same_kind"]["base_shift_bound"] is None
    assert any("No base model was given" in line for line in found["warnings"])
    assert any("what may be another model" in line for line in found["warnings"])


def test_the_untouched_base_itself_is_of_the_references_base() -> None:
    found = decided(table({("checkpoint", ALONE): (LOW, LOW)}, fingerprint="b" * 64, base_fingerprint=None), base=None)
    assert found["power"]["same_base"] is True and len(found["warnings"]) == 1


def test_a_base_with_another_vocabulary_serves_for_the_check_only() -> None:
    scores = both(MIXED)
    del scores["checkpoint", RATIO]
    found = decided(table(scores))
    assert found["detector"]["choice"] == "alone" and found["same_kind"]["base_p_value"] == 1.0
    assert any("the base only checks that both sets are of one kind" in line for line in found["warnings"])


def test_a_detector_without_a_base_method_is_used_alone() -> None:
    found = decided(table(both(MIXED)), detector(with_base=False))
    assert found["detector"]["choice"] == "alone" and found["warnings"] == []


def test_power_from_another_base_or_another_machine_is_said() -> None:
    found = decided(table(both(LOW)), detector(base_fingerprint="d" * 64, dtype="bfloat16"))
    assert found["power"]["same_base"] is False and found["verdict"] == "INCONCLUSIVE"
    allowed = DECISION.model_copy(update={"allow_foreign_power": True})
    found = decided(table(both(LOW)), detector(base_fingerprint="d" * 64, dtype="bfloat16"), decision=allowed)
    assert found["verdict"] == "NO EVIDENCE"
    assert any("another dtype" in line for line in found["warnings"])
    assert any(
        "distilled from another model than this checkpoint" in line and "tbd distill" in line
        for line in found["warnings"]
    )


def test_a_base_that_tells_the_sets_apart_makes_it_inconclusive() -> None:
    found = decided(table(both(MIXED, base=np.add(LOW, 2).tolist())))
    assert found["verdict"] == "INCONCLUSIVE" and found["same_kind"]["base_p_value"] < 0.01
    assert "base model" in found["reasons"][0]


def test_a_base_that_scores_everything_alike_checks_nothing() -> None:
    found = decided(table({**both(MIXED, base=[-1.0] * 40), ("base", ALONE): ([-1.0] * 40, [-1.0] * 40)}))
    assert found["verdict"] == "CONTAMINATED" and found["same_kind"]["base_shift_bound"] is None
    assert any("scores all of its answers alike" in line for line in found["warnings"])


def test_a_detector_that_finds_little_cannot_say_there_is_nothing() -> None:
    found = decided(table(both(LOW)), detector((-0.5, *[-1.9] * 9)))
    assert found["verdict"] == "INCONCLUSIVE" and found["power"]["members_flagged"]["estimate"] == 0.1
    assert found["power"]["mde80_high"] is None
    assert (
        decided(table(both(MIXED)), detector((-0.5, *[-1.9] * 9)))["verdict"] == "CONTAMINATED"
    )  # what is found is found


def test_a_reference_with_too_few_unseen_questions_for_this_rate_has_no_power() -> None:
    many = np.linspace(-2, -1, 120).tolist()
    found = decided(table(both(LOW, many)), fpr=0.01)  # the reference's 40 cannot resolve 1 %, the audit's 120 can
    assert found["power"] is None and found["verdict"] == "INCONCLUSIVE" and found["fpr"] == 0.01
    assert any("needs 99 unseen questions and has 40" in line for line in found["warnings"])


def test_unscored_questions_are_counted_and_left_out() -> None:
    scored = table(both([math.nan, math.nan, *MIXED[2:]], [math.nan, *LOW[1:]]))
    judgement = judge("a", audit(), scored, detector(), DECISION, 0)
    found = judgement.verdict
    assert found.unscored == 2 and any("2 of 40" in line for line in found.warnings) and found.verdict == "CONTAMINATED"
    assert np.isnan(judgement.p_values[:2]).all() and not judgement.flagged[:2].any()
    np.testing.assert_array_equal(np.isnan(judgement.scores), np.isnan(judgement.p_values))
    assert len(judgement.unseen_scores) == 40


@pytest.mark.parametrize(
    ("benchmark", "unseen", "message"),
    [
        (MIXED, LOW[:18], r"0\.05 needs 19 unseen questions with a score and 'new' has 18: add 1 or raise the rate"),
        (MIXED, [*LOW[:18], math.nan], "has 18"),
        ([math.nan] * 3, LOW, "no question of 'asked' has a score"),
    ],
)
def test_what_cannot_be_decided_is_refused(benchmark: list[float], unseen: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decided(table(both(benchmark, unseen)))


def test_the_rate_of_the_audit_goes_before_that_of_the_parameters() -> None:
    assert decided(table(both(MIXED)), fpr=0.2)["flagged"] > decided(table(both(MIXED)))["flagged"]
    with pytest.raises(InputError, match=r"0\.01 needs 99"):
        decided(table(both(MIXED)), fpr=0.01)


# --- labels -----------------------------------------------------------------------------------------------------------

LABELS = [1] * 20 + [0] * 20


def test_with_labels_every_question_counts_except_on_the_reference() -> None:
    found = decided(table(both(MIXED), LABELS))["labelled"]
    assert found["questions"] == "all" and (found["members"], found["others"]) == (20, 20)
    assert found["auc"] == 1.0 and found["members_flagged"] == 1.0 and found["others_flagged"] == pytest.approx(1 / 20)
    assert found["members_flagged_low"] < 1.0 == found["members_flagged_high"] and found["auc_low"] < 1.0

    # the same answers, whatever the audit is called: those questions chose, so the detector's own figures are told
    asked, new = {"name": "asked", "md5": "1" * 32, "n": 40}, {"name": "new", "md5": "2" * 32, "n": 40}
    for chose in (
        detector(benchmark=asked, unseen=new),
        detector(
            others=[reference((-0.5,) * 9 + (-1.5,), "weaker", benchmark=asked, unseen=new)], fingerprint="e" * 64
        ),
    ):
        told = decided(table(both(MIXED), LABELS), chose, name="under-another-name")["labelled"]
        assert told["questions"] == "cross-validated" and (told["members"], told["others"]) == (10, 40)
        assert (told["auc"], told["auc_low"], told["members_flagged"]) == (0.94, pytest.approx(0.88), 0.9)
        assert told["others_flagged"] == pytest.approx(1 / 40, abs=1 / 40)
    elsewhere = detector(benchmark=asked, unseen=new | {"md5": "9" * 32})  # other answers to compare with
    assert decided(table(both(MIXED), LABELS), elsewhere)["labelled"]["questions"] == "all"


def test_the_reference_of_the_same_base_counts_and_the_others_are_told() -> None:
    weak = reference((-0.5,) * 5 + (-1.5,) * 5, "weak")
    found = decided(table(both(MIXED)), detector(others=[weak]))
    assert found["power"]["reference"] == "reference" and [one["reference"] for one in found["other_powers"]] == [
        "weak"
    ]
    assert found["power"]["members_flagged"]["estimate"] == 0.9
    assert found["other_powers"][0]["members_flagged"]["estimate"] == 0.5
    assert found["other_powers"][0]["mde80"] > found["power"]["mde80"]
    foreign = decided(table(both(MIXED)), detector(others=[weak], base_fingerprint="f" * 64))
    assert foreign["power"] == found["other_powers"][0] and foreign["power"]["same_base"] is True
    assert foreign["other_powers"][0]["reference"] == "reference" and not foreign["other_powers"][0]["same_base"]
    assert not any("distilled from another model" in line for line in foreign["warnings"])


@pytest.mark.parametrize("labels", [[1] * 40, [0] * 40])
def test_labels_that_are_all_the_same_say_nothing(labels: list[int]) -> None:
    assert decided(table(both(MIXED), labels))["labelled"] is None


def test_labels_whose_members_have_no_score_say_nothing() -> None:
    found = decided(table(both([math.nan, *LOW[1:]]), [1] + [0] * 39))
    assert found["labelled"] is None and any("labelled questions with a score" in line for line in found["warnings"])


# --- properties -------------------------------------------------------------------------------------------------------

VALUES = st.sampled_from([-3.0, -1.0, -0.5, 0.0]) | st.floats(-5, 0) | st.just(math.nan)


@settings(max_examples=8, deadline=None)
@given(benchmark=st.lists(VALUES, min_size=1, max_size=25), unseen=st.lists(st.floats(-5, 0), min_size=19, max_size=30))
def test_whatever_the_scores_the_verdict_is_whole(benchmark: list[float], unseen: list[float]) -> None:
    if all(math.isnan(value) for value in benchmark):
        benchmark = [*benchmark, -1.0]
    judgement = judge("a", audit(), table(both(benchmark, unseen)), detector(), DECISION, 0)
    found = judgement.verdict
    assert found.flagged == judgement.flagged.sum() and found.unscored == sum(map(math.isnan, benchmark))
    np.testing.assert_array_equal(judgement.scores > found.threshold, judgement.flagged)  # NaN is above nothing
    assert found.reasons and Verdict.model_validate_json(found.model_dump_json()) == found


def test_the_parameters_decide() -> None:
    scored, entry = table(both(MIXED)), audit()
    away = DECISION.model_copy(update={"storey_lambda": 0.8})
    asked = [(DECISION, 0), (DECISION, 1), (away, 0)]
    one, other_seed, other_rate = (judge("a", entry, scored, detector(), *each).verdict for each in asked)
    assert one.contamination_rate == other_seed.contamination_rate != other_rate.contamination_rate
    assert one.power != other_seed.power and one == judge("a", entry, scored, detector(), DECISION, 0).verdict


# --- questions that are not independent ------------------------------------------------------------------------------


def sources(benchmark: int, unseen: int) -> Texts:
    """So many sources a set, of as many questions each as it takes to make 40."""
    named = [[f"{kind}{i % n}" for i in range(40)] for kind, n in (("asked", benchmark), ("new", unseen))]
    return Texts(sources=(named[0], named[1]), blind=None)


def test_questions_of_one_source_are_permuted_together() -> None:
    found = decided(table(both(MIXED)), texts=sources(20, 20))
    assert found["clusters"] == {"benchmark": 20, "unseen": 20} and found["verdict"] == "CONTAMINATED"
    assert found["members_at_least"] is found["share_at_least"] is None
    assert any("20 benchmark and 20 unseen units" in line for line in found["warnings"])
    assert decided(table(both(MIXED)), texts=sources(40, 40))["clusters"] is None  # no source repeats


def test_silence_of_few_sources_is_inconclusive() -> None:
    found = decided(table(both(LOW)), texts=sources(9, 20))
    assert found["verdict"] == "INCONCLUSIVE" and "smaller set has 9 independent" in found["reasons"][1]


# --- size and power, through the whole decision ----------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.3])
def test_an_equal_shift_of_checkpoint_and_base_is_rarely_called_contamination(shift: float) -> None:
    """Benchmark questions easier for both: what the base sees, the checkpoint may see too."""
    rng, runs, made = np.random.default_rng(int(10 * shift)), 100, detector()
    quick = DECISION.model_copy(update={"permutations": 200, "simulations": 20})  # the second: of power, not asked here
    found = 0
    for _ in range(runs):
        checkpoint, base = rng.normal(size=(2, 128)) + shift
        scored = table(both(checkpoint, rng.normal(size=100), base.tolist()))
        found += judge("a", audit(), scored, made, quick, 0).verdict.verdict == "CONTAMINATED"
    assert found / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)

"""The five sentences: right for every verdict and everything that may be missing, and nobody else's markup."""

import json
import re
import unicodedata
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tbd.detection import decisions
from tbd.detection.decisions import Evidence
from tbd.detection.results import Answers, Power, SameKind, Verdict
from tbd.params import Blind, Decision
from tbd.report.explain import Explanation, explain
from tests.results import ANSWERS, GENERATION, NO_BASE, POWER, SAME_KIND, verdict

QUIET = SAME_KIND | {"shift_needed": None}
CLEAN = {
    "p_value": 0.81, "members_at_least": 0, "share_at_least": 0.0, "contamination_rate": 0.02, "flagged": 8,
    "flagged_false": 0.95, "same_kind": QUIET,
}  # fmt: skip
UNKNOWN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "minimum, because sources repeat": {
        "members_at_least": None, "share_at_least": None, "clusters": {"benchmark": 14, "unseen": 12},
    },
    "a member for certain": {"members_at_least": 0, "share_at_least": 0.0},
    "flags": {"flagged": 0, "flagged_false": None, "threshold": None},
    "power": {"power": None},
    "a share that is found": {"power": POWER | {"mde80": None, "mde80_low": None, "mde80_high": None}},
    "the interval's upper end": {"power": POWER | {"mde80_high": None}},
    "whose power it is": {"power": POWER | {"same_base": None}},
    "base": NO_BASE,
    "wording": {"same_kind": SAME_KIND | {"blind": None}},
    "something to explain": {"same_kind": QUIET},
    "torch": {"generation": verdict().generation.model_dump() | {"torch_version": None}},
    "some scores": {"unscored": 3},
}  # fmt: skip


def said(kind: str = "CONTAMINATED", **changes: Any) -> list[str]:
    return [sentence.text for sentence in explain(verdict(kind, **changes)).sentences]


def whole(found: Explanation) -> str:
    return "\n".join([*found.paragraphs, *(str(each) for each in (*found.sentences, *found.checks))])


@pytest.mark.parametrize("kind", ["CONTAMINATED", "NO EVIDENCE", "INCONCLUSIVE"])
@pytest.mark.parametrize("missing", UNKNOWN)
def test_five_sentences_whatever_is_not_known(kind: str, missing: str) -> None:
    start = CLEAN if kind != "CONTAMINATED" else {}
    found = explain(verdict(kind, **start | UNKNOWN[missing]))
    assert len(found.sentences) == 5
    for sentence in found.sentences:
        assert re.fullmatch(r"[A-Z0-9].*[^.]\.", sentence.text) and not re.search(r"\.\s", sentence.text), sentence.text
        assert sentence.numbers
    text = whole(found)
    assert not re.search(r"None|nan|not available", text) and "  " not in text
    assert "power" not in text.lower()  # a word that reads like confidence


def test_contaminated() -> None:
    found, amount, flags, sight, basis = said()
    assert "were most likely in the data that `checkpoints/release-7` was distilled on" in found
    assert "p = 1.3 × 10⁻⁹; where nothing leaked, at most 5% of audits say this" in found
    assert "With 95% confidence at least 40 of the 160 questions (25%)" in amount
    assert "the estimate is 49%, which is no bound" in amount
    assert "33 of the 160 questions are flagged" in flags and "more than chance gives (about 7.9, up to 16)" in flags
    assert "about 12% of the flags are expected to be wrong" in flags
    assert "the estimate (49%, about 78) is another number because it also counts questions that look only" in flags
    assert "If 16% of the benchmark (95% interval 11% to 22%)" in sight and "four audits in five" in sight
    assert "`reference`, which comes from the same base model" in sight
    assert "the base model does not tell them apart (p = 0.42)" in basis
    assert "0.61 standard deviations" in basis and "at most 0.14 possible" in basis


def test_no_evidence_is_no_proof() -> None:
    found, amount, flags, *_ = said("NO EVIDENCE", **CLEAN)
    assert found.startswith("There is no sign that") and "p = 0.81" in found
    assert "No leaked question is certified" in amount and "often above zero where nothing leaked, is 2%" in amount
    assert "no more than chance may give" in flags and "because it leaves out what chance flags, " in flags
    told = explain(verdict("NO EVIDENCE", **CLEAN))
    assert "does not say that the benchmark was kept out" in told.unsaid and "reinforcement learning" in told.unsaid


def test_an_assumption_that_nothing_checked_is_said_first() -> None:
    for kind, changes in (("CONTAMINATED", {}), ("NO EVIDENCE", CLEAN)):
        found, *_, basis = said(kind, **changes | NO_BASE)
        assert found.startswith("If `benchmark` and `unseen` are of one kind, which no base model could check, ")
        assert basis.startswith("The verdict rests on an unchecked assumption (no base model was given)")
    told = explain(verdict(**NO_BASE))
    assert "with the base model" in told.now and "`tbd check --base`" in told.change
    assert [check.value for check in told.checks].count("not checked: no base model was given") == 2


def test_a_base_that_scores_all_alike_is_said_to_check_nothing() -> None:
    told = explain(verdict(same_kind=SAME_KIND | {"base_p_value": None, "base_shift_bound": None}))
    text = whole(told)
    assert "the base model could not check it, as it scores all of its answers alike" in text
    values = [check.value for check in told.checks]
    assert values.count("not checked: the base model scores all of its answers alike") == 2
    assert not re.search(r"None|not available|no base model was given", text + told.method)


@pytest.mark.parametrize(
    ("p_value", "changes", "why"),
    [
        (0.3, {}, "there is no sign of it (p = 0.3), but an audit like this one might not have noticed."),
        (1e-3, {}, "but a difference in kind between the two may explain that."),
        (1e-3, {"base_p_value": 1e-3}, "the base model, which saw neither set, already tells"),
        (0.3, {"base_p_value": 0.01}, "the base model, which saw neither set, already tells"),
    ],
)
def test_inconclusive_says_why(p_value: float, changes: dict[str, Any], why: str) -> None:
    found, amount, *_ = said("INCONCLUSIVE", p_value=p_value, same_kind=SAME_KIND | changes)
    assert found.startswith("This audit cannot tell whether") and why in found
    assert amount.startswith("Were both sets of one kind, ") == (p_value < 0.05 or bool(changes))


RULE = Decision(
    fpr=0.05, level=0.05, exchangeability=0.01, detectable_share=0.3, incomplete_share=0.1,
    allow_foreign_power=False, confidence=0.95,
    storey_lambda=0.5, permutations=1000, simulations=100, fewest_units=10,
    blind=Blind(folds=5, permutations=500, questions=2000),
)  # fmt: skip
OPEN: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"p_value": 0.3}, {"base_p_value": 0.001}, "Use unseen questions of the same kind."),
    ({"p_value": 0.001}, {"shift_needed": 0.1}, "More unseen questions of the same kind"),
    ({"p_value": 0.3, "units": 4}, {}, "smaller set has 4 independent questions"),
    ({"p_value": 0.3, "power": None}, {}, "its reference needs 19 unseen questions and has fewer"),
    ({"p_value": 0.3, "power": Power.model_validate(POWER | {"same_base": False})}, {}, "`tbd distill`"),
    ({"p_value": 0.3, "power": Power.model_validate(POWER | {"mde80_high": 0.4})}, {}, "60 more unseen questions"),
]


@pytest.mark.parametrize(("changes", "kind", "remedy"), OPEN)
def test_inconclusive_says_what_would_do(changes: dict[str, Any], kind: dict[str, Any], remedy: str) -> None:
    """The remedy is the decision's own, whichever of its conditions failed."""
    checks = SameKind.model_validate(SAME_KIND | kind)
    about = {"negatives": 120, "units": 120, "power": Power.model_validate(POWER), "more_unseen": 60} | changes
    ruling, reasons = decisions.decide(
        Evidence(same_kind=checks, answers=Answers.model_validate(ANSWERS), **about), RULE
    )
    assert ruling == "INCONCLUSIVE"
    told = explain(verdict(ruling, reasons=reasons, p_value=changes["p_value"], same_kind=checks.model_dump()))
    assert remedy in told.change and "as not audited" in told.now


def test_wording_that_tells_the_sets_apart_is_said() -> None:
    fired = SAME_KIND | {"blind": {"auc": 0.93, "p_value": 0.002}}
    told = explain(verdict(same_kind=fired))
    assert "their wording alone tells them apart (AUC 0.93, p = 0.002)" in told.sentences[-1].text
    assert told.checks[0].value.startswith("tells them apart") and "worded like the benchmark's" in told.change
    assert "their wording was not compared" in said(same_kind=SAME_KIND | {"blind": None})[-1]


def test_the_check_fires_where_the_decision_has_its_limit() -> None:
    at = SAME_KIND | {"blind": {"auc": 0.6, "p_value": 0.03}}
    assert "wording alone does not tell" in said(same_kind=at)[-1]
    assert "wording alone tells" in said(same_kind=at, exchangeability=0.03)[-1]


@pytest.mark.parametrize(
    ("power", "words"),
    [
        ({"same_base": False}, "which comes from another base model, so this may not carry over"),
        ({"same_base": None}, "it is not known whether it comes from the same base model"),
        ({"reference": "release-7"}, "which is this audit itself"),
        ({"mde80_high": None}, "(95% interval 11% to more than all of it)"),
        ({"mde80": None, "mde80_high": None}, "Even if the whole benchmark had leaked"),
    ],
)
def test_what_the_audit_can_see_says_whose_reference_that_is(power: dict[str, Any], words: str) -> None:
    assert words in said(power=POWER | power)[3]


def test_without_power_what_it_sees_is_not_known() -> None:
    assert "is not known" in said("INCONCLUSIVE", power=None)[3]


def test_a_minimum_beside_another_verdict_is_explained() -> None:
    assert "another test than the verdict's" in said("NO EVIDENCE", **CLEAN | {"members_at_least": 2})[1]
    assert "cannot be certified, because questions of one source" in said(members_at_least=None, share_at_least=None)[1]
    assert "although the benchmark as a whole stands out" in said(members_at_least=0, share_at_least=0.0)[1]


def test_questions_without_a_score_are_left_out_of_what_is_counted() -> None:
    _, amount, flags, *_ = said(unscored=3, contamination_rate=0.5)
    assert "of the 157 questions with a score" in amount and "of the 157 questions with a score" in flags
    assert "(50%, about 78)" in flags  # 78.5 of 157


def test_the_method_is_named() -> None:
    ratio = {
        "version": "0123456789ab", "choice": "with_base", "method": "logprob_ratio", "id": "logprob_ratio(m=32)",
        "parameters": {"m": 32},
    }  # fmt: skip
    text = explain(verdict(detector=ratio)).method
    assert "`logprob_ratio(m=32)` (not Token Probability Deviation)" in text
    for part in ("`0123456789ab`", "`checkpoints/release-7`", "`transformers` `5.23.0`", "`unseen` (120 questions)",
                 "base model `checkpoints/base`, which scores both sets at p = 0.42"):  # fmt: skip
        assert part in text
    assert "(Token Probability Deviation)" in explain(verdict()).method
    assert explain(verdict(**NO_BASE)).method.endswith("no base model.")
    noise = {"questions": 16, "diverged": 3, "tokens": 200, "median": 0.0041, "largest": 0.31}
    text = explain(verdict(generation=GENERATION | {"noise": noise})).method
    assert "3 of 16 answers differed, log-probs by 0.0041 nats in the middle and 0.31 at most)" in text
    only = explain(verdict(generation=GENERATION | {"served": "openai:m@http://host"})).method
    assert "known by the word of its server `openai:m@http://host` and a few of its answers alone, by" in only
    none = noise | {"tokens": 0, "median": None, "largest": None}
    assert "3 of 16 answers differed);" in explain(verdict(generation=GENERATION | {"noise": none})).method


HOSTILE = "x`](http://evil.example) **b** <script>alert(1)</script>\n\n# head \u202e\x1b[31m were"


def test_text_from_outside_is_never_more_than_text() -> None:
    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poisoned(v, k) for k, v in value.items()}
        names = key not in ("verdict", "choice", "questions", "reasons", "warnings")
        return HOSTILE if isinstance(value, str) and names else value

    found = explain(Verdict.model_validate(poisoned(verdict().model_dump())))
    for text in (*found.paragraphs, *(row.value for one in found.sentences for row in one.numbers)):
        outside = re.sub("`[^`]*`", "", text)
        assert text.count("`") % 2 == 0 and not re.search(r"[\[<*#]|evil|script", outside), outside
    printed = found.terminal()
    assert all(unicodedata.category(c) not in ("Cc", "Cf") for c in printed if c != "\n")


def test_the_same_verdict_gives_the_same_words() -> None:
    one, two = (explain(verdict(contamination_rate=float(np.float64(0.4875)))) for _ in range(2))
    assert one == two and json.dumps(asdict(one)) == json.dumps(asdict(two))


def test_the_terminal_has_every_sentence_in_lines_that_fit() -> None:
    found = explain(verdict())
    printed = found.terminal()
    assert max(map(len, printed.splitlines())) <= 100 and printed.startswith("release-7: CONTAMINATED\n")
    flowing = " ".join(printed.split())
    for text in (*(one.text for one in found.sentences), found.unsaid, found.change, found.now, found.method):
        assert " ".join(text.split()) in flowing

"""The report: everything said for every verdict, nothing believed of what it is given, the same bytes every time."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tbd import records
from tbd.detection.results import Detector, Power, Verdict
from tbd.report import audit as report
from tbd.report import plots, text
from tbd.report.explain import explain
from tests import results
from tests.results import LABELLED, detector

HOSTILE = '<script>alert("1")</script>\' onload="x" {{ 7*7 }} \u202egnp.exe\u202c \x00\x1b[31m \ud800 <img src=http://evil.example/x>'


SETS = {
    "benchmark": {"name": "maths", "md5": "1" * 32, "n": 80},
    "unseen": {"name": "maths-fresh", "md5": "2" * 32, "n": 79},
}


def verdict(kind: str = "CONTAMINATED", **changes: Any) -> Verdict:
    return results.verdict(kind, **SETS | {"flagged": 2} | changes)


def row(
    number: int,
    *,
    p: float = 0.5,
    flagged: bool = False,
    label: int | None = None,
    text: str = "How many?",
    score: float = -0.2,
):
    return {
        "question_id": f"{number:016x}",
        "question": text,
        "score": score,
        "p_value": p,
        "flagged": flagged,
        "at_least": 1 if flagged else 0,
        "label": label,
    }


def rows(label: bool = False) -> list[dict[str, Any]]:
    return [
        row(1, p=0.025, flagged=True, label=1 if label else None, text="The second worst?"),
        row(2, p=0.0125, flagged=True, label=0 if label else None, text="The worst?"),
        row(3, label=0 if label else None, text="Harmless?"),
    ]


COLUMNS = records.VERDICT_QUESTIONS.append(pa.field("question", pa.string()))


def questions(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, COLUMNS)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; refuses tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.pieces: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)


def shown(v: Verdict, asked: list[dict[str, Any]] | None = None, **kwargs: Any) -> str:
    return Page(report.render(v, kwargs.pop("detector", detector()), questions(asked or rows()), kwargs)).text


@pytest.mark.parametrize("kind", ["CONTAMINATED", "NO EVIDENCE", "INCONCLUSIVE"])
def test_the_first_screen_is_the_explanation(kind: str) -> None:
    v = verdict(kind)
    page, found = shown(v).replace("\u00a0", " "), explain(v)
    first = page[page.index(f" {kind} ") : page.index("Are both sets of one kind?")]
    for said in (*(one.text for one in found.sentences), found.unsaid, found.change, found.now):
        before, _, first = first.partition(as_shown(said))
        assert first, f"{said!r} is not there, or not behind {before!r}"
    assert "reinforcement-learning stage" in page and "AUC 0.50 to 0.55" in page
    assert not re.search(r"\bclean\b", page, re.IGNORECASE)


def as_shown(text: str) -> str:
    """A sentence as `Page.text` has it: what was between backticks is an element of its own."""
    return " ".join(text.replace("`", " ").split())


def test_the_numbers_behind_a_sentence_are_one_click_away() -> None:
    v = verdict()
    raw = report.render(v, detector(), questions(rows()), {})
    parts = raw.split("<details>")[1:]
    assert len(parts) == 5 and "<details open" not in raw
    for part, sentence in zip(parts, explain(v).sentences, strict=True):
        inside = Page(part[part.index("<table") : part.index("</table>") + len("</table>")]).text
        assert sentence.numbers
        for row in sentence.numbers:
            assert f"{row.what} {row.value.replace('`', '')} {row.how}" in inside


def test_the_checks_that_both_sets_are_of_one_kind_are_all_shown() -> None:
    page = shown(verdict())
    for row in explain(verdict()).checks:
        assert f"{row.check} {row.value} {row.excludes} {row.leaves}" in page
    assert page.count("not checked: no base model was given") == 0
    assert shown(verdict(**results.NO_BASE)).count("not checked: no base model was given") == 2


def test_a_figure_of_the_power_is_shown_where_there_is_one(tmp_path: Path) -> None:
    figure = plots.power(tmp_path / "power.png", [Power.model_validate(results.POWER)], 0.1, 0.2)
    assert "where it stands" in shown(verdict(), power=figure) and "where it stands" not in shown(verdict())


def test_how_to_re_run_it() -> None:
    page = shown(verdict(audit="a b"))
    assert "tbd verify 'a b'" in page and "dvc repro 'audits/a b/dvc.yaml'" in page
    made = "transformers 5.23.0 and torch 2.13.0"
    for value in ("c" * 64, "b" * 64, "1" * 32, "2" * 32, "0123456789ab", "bfloat16", made):
        assert value in page


@pytest.mark.parametrize("power", [None, *(results.POWER | {"same_base": same} for same in (False, None))])
def test_where_power_is_borrowed_or_missing_a_reference_of_ones_own_is_named(power: Any) -> None:
    assert "tbd distill" in shown(verdict(power=power)) and "tbd distill" not in shown(verdict())


def test_where_sources_repeat_no_row_claims_a_minimum() -> None:
    less = {"members_at_least": None, "share_at_least": None, "clusters": {"benchmark": 12, "unseen": 11}}
    assert "At least" in shown(verdict()) and "At least" not in shown(verdict(**less))


def test_flagged_questions_by_p_value() -> None:
    page = shown(verdict())
    assert page.index("The worst?") < page.index("The second worst?")
    assert "Harmless?" not in page and "Truth" not in page


def test_labels_show_the_truth_and_the_labelled_figures() -> None:
    page = shown(verdict(labelled=LABELLED), rows(label=True))
    assert "0.0125 1 not a member" in page and "0.025 1 member" in page
    assert "1 of the 2 flagged questions are members" in page
    assert (
        "AUC 0.94 (95% interval 0.880 to 0.980): how often a member" in page
        and "checked here, on 40 members and 40 others." in page
    )
    chose = "They also chose the detector"
    assert chose in page
    assert chose not in shown(verdict(labelled=LABELLED | {"questions": "all"}), rows(label=True))


def test_long_tables_and_long_questions_are_cut_and_say_so() -> None:
    many = [row(i, p=0.01, flagged=True, text=f"item {i} " + "x" * 500) for i in range(report.ROWS + 7)]
    page = shown(verdict(flagged=len(many)), many)
    assert page.count("item ") == report.ROWS and "And 7 more" in page
    assert "x" * text.SHORT not in page and "…" in page


def test_nothing_flagged() -> None:
    assert "No question was flagged." in shown(verdict("NO EVIDENCE", flagged=0), [row(1)])


def test_missing_scores_are_named_and_not_counted() -> None:
    page = shown(verdict(unscored=1), [*rows(), row(9, p=math.nan, score=math.nan, text="No answer?")])
    assert "No answer? 0000000000000009 not scored not scored" in page and "without a score 1 " in page
    assert "nan" not in page.lower().split()


def test_what_is_not_known_is_not_shown() -> None:
    less = {"power": None, "threshold": None, "flagged": 0, "flagged_false": None, **results.NO_BASE}
    generation = results.GENERATION | {"torch_version": None}
    page = shown(verdict("INCONCLUSIVE", **less, generation=generation), [])
    assert "None" not in page and "torch" not in page and "which is a score above" not in page


def test_the_threshold_is_the_score_above_which_a_question_is_flagged() -> None:
    assert "at a p-value of at most 0.05, which is a score above −0.120" in shown(verdict())


def test_found_and_false_alarms_on_the_labels() -> None:
    page = shown(verdict(labelled=LABELLED), rows(label=True))
    assert "Members found 70% (95% interval 55% to 82%)" in page and "False alarms 2.5% of the questions" in page


def test_warnings_of_verdict_and_detector_once_each() -> None:
    page = shown(verdict(warnings=["Few questions."]), detector=detector(warnings=["Few questions.", "Old torch."]))
    assert page.count("Few questions.") == 1 and "Old torch." in page
    assert "Warnings" not in shown(verdict())


def hostile() -> tuple[Verdict, Detector, pa.Table]:
    """Every text that reaches a report, hostile. No file can hold a lone surrogate."""

    def poison(value: Any, text: str, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, text, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, text) for v in value]
        closed = key in ("verdict", "choice") or (key == "questions" and value == LABELLED["questions"])
        return text if isinstance(value, str) and not closed else value

    told, made = verdict(labelled=LABELLED, warnings=["w"]), detector(warnings=["w"])
    text = HOSTILE.replace("\ud800", "")
    ours = [poison(each.model_dump(), text) for each in (told, made)]
    asked = questions(poison(rows(label=True), text))
    return Verdict.model_validate(ours[0]), Detector.model_validate(ours[1]), asked


def test_hostile_text_stays_text() -> None:
    raw = report.render(*hostile(), {})
    page = Page(raw)
    raw.encode("utf-8")
    assert "script" not in page.tags and "img" not in page.tags
    assert not {name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src")}
    assert '<script>alert("1")</script>' in page.text and "{{ 7*7 }}" in page.text
    assert "�gnp.exe� ��[31m" in page.text
    assert not set("\u202e\u202c\x00\x1b\ud800") & set(raw)


def test_no_network_and_no_script(tmp_path: Path) -> None:
    p = plots.p_values(tmp_path / "p_values.png", [0.1, 0.9], 0.05)
    raw = report.render(
        verdict(), detector(), questions(rows()), {"p_values": p, "interactive": tmp_path / "not shown.html"}
    )
    page = Page(raw)
    assert "script" not in page.tags and "link" not in page.tags and "://" not in raw
    sources = [value or "" for name, value in page.attributes if name == "src"]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,iVBOR")
    assert str(tmp_path) not in raw
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in ("one", "two"):
        figure = plots.scores(tmp_path / folder / "scores.png", [-0.1, -0.2], [-0.3], [1, 0], -0.15, "tbd(m=100)")
        path = report.write(
            tmp_path / folder / "report.html",
            verdict(labelled=LABELLED),
            detector(),
            questions(rows(True)),
            {"scores": figure},
        )
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["report.html", "scores.png"]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (0.004, "0.4%"),
        (0.0996, "10%"),
        (0.486, "49%"),
        (0.997, "99.7%"),
        (1.0, "100%"),
        (None, "not available"),
    ],
)
def test_percent(share: float | None, text: str) -> None:
    assert report.percent(share) == text


def test_joiners_survive_and_whitespace_folds() -> None:
    assert report.plain("می\u200cخواهم\n\t x\u2028y") == "می\u200cخواهم x y"
    assert report.plain("\u2066a\u200b\ufeff") == "\ufffda\ufffd\ufffd"

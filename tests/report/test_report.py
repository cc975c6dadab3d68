"""The report: everything said for every verdict, nothing believed of what it is given, the same bytes every time."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tbd.detection.results import Detector, Verdict
from tbd.report import audit as report
from tbd.report import plots, text
from tests import results
from tests.results import LABELLED, detector

HOSTILE = '<script>alert("1")</script>\' onload="x" {{ 7*7 }} \u202egnp.exe\u202c \x00\x1b[31m \ud800 <img src=http://evil.example/x>'


SETS = {
    "benchmark": {"name": "maths", "md5": "1" * 32, "n": 80},
    "unseen": {"name": "maths-fresh", "md5": "2" * 32, "n": 79},
}


def verdict(kind: str = "CONTAMINATED", **changes: Any) -> Verdict:
    return results.verdict(kind, **SETS | {"flagged": 2, "discoveries": 1} | changes)


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
        "label": label,
    }


def rows(label: bool = False) -> list[dict[str, Any]]:
    return [
        row(1, p=0.025, flagged=True, label=1 if label else None, text="The second worst?"),
        row(2, p=0.0125, flagged=True, label=0 if label else None, text="The worst?"),
        row(3, label=0 if label else None, text="Harmless?"),
    ]


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


def shown(v: Verdict, questions: list[dict[str, Any]] | None = None, **kwargs: Any) -> str:
    return Page(
        report.render(v, kwargs.pop("detector", detector()), rows() if questions is None else questions, kwargs)
    ).text


@pytest.mark.parametrize(
    ("kind", "line", "not_meant"),
    [
        ("CONTAMINATED", "were most likely in the data", "does not prove that any single question was in the data"),
        ("NO EVIDENCE", "found no evidence", "does not prove that the benchmark was kept out of the data"),
        ("INCONCLUSIVE", "cannot tell", "it was not ruled out"),
    ],
)
def test_every_verdict_says_what_it_means_and_what_not(kind: str, line: str, not_meant: str) -> None:
    page = shown(verdict(kind))
    assert kind in page and line in page and not_meant in page
    assert "The first reason." in page and "The second reason." in page
    assert "What it means." in page and "What it does not mean." in page
    assert "reinforcement-learning stage" in page and "AUC 0.50 to 0.55" in page
    assert not re.search(r"\bclean\b", page, re.IGNORECASE)


def test_headline_numbers() -> None:
    page = shown(verdict())
    assert "2 of 80" in page and "Up to about 4 would be flagged by chance" in page
    assert "49% 95% interval 35% to 60%" in page and "A lower estimate" in page
    assert "1.3 × 10⁻⁹" in page
    assert "70% Share of planted questions found on a labelled reference; 95% interval 53% to 83%" in page
    assert "p = 0.42" in page


def test_how_to_re_run_it() -> None:
    page = shown(verdict(audit="a b"))
    assert "tbd verify 'a b'" in page and "dvc repro 'verdict@a b'" in page
    made = "transformers 5.23.0 with torch 2.13.0"
    for value in ("c" * 64, "b" * 64, "1" * 32, "2" * 32, "0123456789ab", "bfloat16", made):
        assert value in page


def test_the_known_and_the_missing_base() -> None:
    assert "No base model was given" in shown(verdict(base=None, base_fingerprint=None, exchangeability=None))
    assert "gave no value" in shown(verdict(exchangeability=None))


def test_power_not_known() -> None:
    page = shown(verdict("INCONCLUSIVE", power=None))
    assert "Power not known" in page and "tbd distill" in page


@pytest.mark.parametrize(("same", "words"), [(False, "from another base model"), (None, "is not known")])
def test_power_from_another_base_is_said_beside_the_figure(same: bool | None, words: str) -> None:
    power = {"estimate": 0.7, "low": 0.53, "high": 0.83, "audit": "reference", "same_base": same}
    page = shown(verdict(power=power))
    card = page[page.index("Power 70%") : page.index("Why")]
    assert words in card and "may not carry over" in card
    assert "tbd distill" in page
    assert "may not carry over" not in shown(verdict())


def test_flagged_questions_by_p_value() -> None:
    page = shown(verdict())
    assert page.index("The worst?") < page.index("The second worst?")
    assert "Harmless?" not in page and "Truth" not in page


def test_labels_show_the_truth_and_the_labelled_figures() -> None:
    page = shown(verdict(labelled=LABELLED), rows(label=True))
    assert "0.0125 not a member" in page and "0.025 member" in page
    assert "1 of the 2 flagged questions are members" in page
    assert (
        "0.94 (95% interval 0.880 to 0.980)" in page
        and "the evaluation half of the labelled questions: 40 members and 40 others" in page
    )
    assert "chose the detector, and the figures below" not in page
    assert "all labelled questions" in shown(verdict(labelled=LABELLED | {"questions": "all"}), rows(label=True))


def test_the_reference_itself_says_which_half_is_shown() -> None:
    page = shown(verdict(audit="reference", labelled=LABELLED), rows(label=True))
    assert "half of its labelled questions chose the detector, and the figures below come from the other half" in page


def test_long_tables_and_long_questions_are_cut_and_say_so() -> None:
    many = [row(i, p=0.01, flagged=True, text=f"number {i} " + "x" * 500) for i in range(report.ROWS + 7)]
    page = shown(verdict(flagged=len(many)), many)
    assert page.count("number ") == report.ROWS and "And 7 more" in page
    assert "x" * text.SHORT not in page and "…" in page


def test_nothing_flagged() -> None:
    assert "No question was flagged." in shown(verdict("NO EVIDENCE", flagged=0), [row(1)])


def test_missing_scores_are_named_and_not_counted() -> None:
    page = shown(verdict(unscored=1), [*rows(), row(9, p=math.nan, score=math.nan, text="No answer?")])
    assert "No answer? 0000000000000009 not scored not scored" in page and "1 not scored." in page
    assert "nan" not in page.lower().split()


def test_what_is_not_known_is_not_shown() -> None:
    less = {"power": None, "threshold": None, "base": None, "base_fingerprint": None, "exchangeability": None}
    generation = results.GENERATION | {"torch_version": None}
    page = shown(verdict("INCONCLUSIVE", **less, generation=generation), [])
    assert "None" not in page and "torch" not in page and "which a score above" not in page


def test_the_threshold_is_the_score_above_which_a_question_is_flagged() -> None:
    assert "(conformal p-value at most 0.05, which a score above −0.120 has)" in shown(verdict())


def test_found_and_false_alarms_on_the_labels() -> None:
    page = shown(verdict(labelled=LABELLED), rows(label=True))
    assert "Members found 70% (95% interval 55% to 82%)" in page and "False alarms 2.5% of the questions" in page


def test_warnings_of_verdict_and_detector_once_each() -> None:
    page = shown(verdict(warnings=["Few questions."]), detector=detector(warnings=["Few questions.", "Old torch."]))
    assert page.count("Few questions.") == 1 and "Old torch." in page
    assert "Warnings" not in shown(verdict())


def hostile() -> tuple[Verdict, Detector, list[dict[str, Any]]]:
    """Every text that reaches a report, hostile. A file cannot hold a lone surrogate, and a model refuses it."""

    def poison(value: Any, text: str, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, text, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, text) for v in value]
        closed = key in ("verdict", "choice") or (key == "questions" and value == LABELLED["questions"])
        return text if isinstance(value, str) and not closed else value

    told, made = verdict(labelled=LABELLED, warnings=["w"]), detector(warnings=["w"])
    ours = [poison(each.model_dump(), HOSTILE.replace("\ud800", "")) for each in (told, made)]
    return Verdict.model_validate(ours[0]), Detector.model_validate(ours[1]), poison(rows(label=True), HOSTILE)


def test_hostile_text_stays_text() -> None:
    raw = report.render(*hostile(), {})
    page = Page(raw)
    raw.encode("utf-8")
    assert "script" not in page.tags and "img" not in page.tags
    assert not {name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src")}
    assert '<script>alert("1")</script>' in page.text and "{{ 7*7 }}" in page.text
    assert "�gnp.exe� ��[31m �" in page.text
    assert not set("\u202e\u202c\x00\x1b\ud800") & set(raw)


def test_no_network_and_no_script(tmp_path: Path) -> None:
    p = plots.p_values(tmp_path / "p_values.png", [0.1, 0.9], 0.05)
    raw = report.render(verdict(), detector(), rows(), {"p_values": p, "interactive": tmp_path / "not shown.html"})
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
            tmp_path / folder / "report.html", verdict(labelled=LABELLED), detector(), rows(True), {"scores": figure}
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

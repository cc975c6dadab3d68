"""The history's page: it counts what stands now, lists everything, believes nothing, and is the same bytes every
time."""

import re
from pathlib import Path

import pytest

from tbd.history import FAILED, WORKS, Outcome
from tbd.report import history_page, history_plot
from tests.outcomes import again, failure, verdict
from tests.report.test_report import HOSTILE, Page


def text(*outcomes: Outcome) -> str:
    return Page(history_page.render(outcomes)).text


def cards(page: str) -> dict[str, int]:
    return {
        kind: int(n) for kind, n in re.findall(r"[◆□●×] ([A-Z ]+?) (\d+) (?:Benchmark|The audit|Nothing|Could)", page)
    }


def row(page: str, time: str) -> str:
    """The table's row of an outcome, as text."""
    table = page[page.index("Every outcome") :]
    return re.split(r"2026-\d\d-\d\d \d\d:\d\d ", table[table.index(time) + len(time) + 1 :])[0]


def test_an_empty_history_says_how_to_begin() -> None:
    page = text()
    assert "Nothing was audited yet" in page and "tbd check CHECKPOINT" in page and "tbd watch" in page
    assert "Every outcome" not in page


def test_the_top_counts_what_stands_now() -> None:
    page = text(
        verdict(1),
        verdict(2),
        verdict(3, "INCONCLUSIVE"),
        failure(4),
        failure(5, what="source", checkpoint="models:/M", place="models:/M"),
        failure(6, what="source", checkpoint="hf://o/m", place="hf://o/m"),
        verdict(1, "CONTAMINATED", "physics", 0.4),
        verdict(2, "CONTAMINATED", share=0.5),  # what it was before no longer counts
        failure(6, outcome=WORKS, what="source", checkpoint="hf://o/m", place="hf://o/m"),
    )
    assert cards(page) == {"CONTAMINATED": 2, "INCONCLUSIVE": 1, "NO EVIDENCE": 1, FAILED: 2}
    top = page[: page.index("Benchmark maths")]
    assert "Where 4 checkpoints stand now" in top and "came at 2026-11-23 14:30 UTC" in top
    assert "model-2 on maths model-1 on physics" in top  # newest first
    assert "source models:/M model-4" in top
    assert "1 CONTAMINATED, 1 INCONCLUSIVE, 1 NO EVIDENCE now." in page[page.index("Benchmark maths") :]


def test_one_checkpoint_in_good_english() -> None:
    assert "Where 1 checkpoint stands now" in text(verdict(1))


def test_a_row_says_everything() -> None:
    page = text(
        verdict(1, "CONTAMINATED", share=0.38, p_value=4.2e-9, flagged=33, git_dirty=True), failure(2, transient=True)
    )
    said = row(page, "2026-11-23 09:30")
    for part in (
        "model-1 on maths",
        "◆ CONTAMINATED model-1-maths",
        "Reason 1.",
        "28%; 38%",
        "4.2 × 10⁻⁹",
        "33 of 160",
    ):
        assert part in said
    assert "detector 0123456789ab data bbbbbbbb unseen dddddddd tbd 0.2.0 eeeeeeee modified" in said
    assert row(page, "2026-11-23 10:30").startswith(
        "model-2 × FAILED model.safetensors: cut off. Copy it again. Tried again"
    )
    assert "modified" not in row(text(verdict(1), verdict(2)), "2026-11-23 10:30")


def test_copies_and_what_came_back_say_so() -> None:
    first = verdict(1, "CONTAMINATED", share=0.4)
    page = text(first, again(2, first), verdict(3, recovered=True))
    assert "same weights as model-1-maths" in row(page, "2026-11-23 10:30") and "Reason" not in row(
        page, "2026-11-23 10:30"
    )
    assert "Not drawn: 1 with weights that were audited under another name." in page
    assert "It had failed before." in row(page, "2026-11-23 11:30") and "Not drawn" not in text(first)


def test_reports_are_linked_beside_the_page() -> None:
    first = verdict(1)
    outcomes = [
        first,
        again(2, first),
        failure(3, audit="later", benchmark=first.benchmark),
        verdict(4, audit="../../x"),
    ]
    links = [value for name, value in Page(history_page.render(outcomes)).attributes if name == "href"]
    assert links == ["model-1-maths/report.html"] * 2  # none for what failed, none out of the folder


def test_newest_first_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_page, "ROWS", 3)
    page = text(*(verdict(n) for n in range(5)))
    table = page[page.index("Every outcome") :]
    assert "The newest 3; 2 older ones are in audits/history.jsonl" in table
    assert re.findall(r"Reason (\d)", table) == ["4", "3", "2"]
    assert "older ones" not in text(*(verdict(n) for n in range(3)))


def test_figures_are_explained_where_they_may_mislead() -> None:
    many = [verdict(n) for n in range(history_plot.NAMES)]
    page = text(*many)
    assert (
        "with 95% confidence" in page
        and "Not every name" not in page
        and "like with like" not in page
        and "cross" not in page
    )
    page = text(*many, failure(99), verdict(100, detector_version="ba9876543210", confidence=0.9))
    assert "Not every name has room" in page and "A cross on the axis" in page and "% confidence" not in page
    assert "2 versions of the detector and 1 of the question sets" in page


def test_positions_never_change_as_the_history_grows() -> None:
    first = verdict(1, "CONTAMINATED", share=0.4)
    source = failure(9, what="source", place="models:/M")
    outcomes = [
        failure(0),
        first,
        again(2, first),
        failure(3),
        source,
        verdict(4, on="physics"),
        failure(5),
        verdict(6),
    ]
    before: dict[str, list[Outcome]] = {}
    for n in range(len(outcomes) + 1):
        now = history_page.series(outcomes[:n])
        assert all(now[name][: len(drawn)] == drawn for name, drawn in before.items())
        before = now
    assert {name: [o.checkpoint for o in drawn] for name, drawn in before.items()} == {
        "maths": ["model-1", "model-3", "model-5", "model-6"],
        "physics": ["model-4", "model-5"],
    }


def test_hostile_text_stays_text() -> None:
    bad = HOSTILE.replace("\ud800", "")  # which no line of a history can hold
    sets = {key: {"name": bad, "md5": bad, "n": 1} for key in ("benchmark", "unseen")}
    keys = ("reason", "checkpoint", "place", "origin", "audit", "detector_version", "tbd_version", "git_commit", "what")
    poison = dict.fromkeys(keys, bad) | sets
    raw = history_page.render(
        [verdict(1, "CONTAMINATED", **poison), verdict(2, bad, same_as=bad, **poison), failure(3, **poison)]
    )
    page = Page(raw)
    raw.encode("utf-8")
    assert "script" not in page.tags and page.tags.count("img") == 1  # the figure
    assert not {name for name, _ in page.attributes if name.startswith("on") or name == "href"}
    assert '<script>alert("1")</script>' in page.text and "{{ 7*7 }}" in page.text
    assert not set("\u202e\u202c\x00\x1b") & set(raw)


def test_one_file_without_network_and_always_the_same(tmp_path: Path) -> None:
    outcomes = [verdict(1, "CONTAMINATED", share=0.4), failure(2), verdict(3)]
    one, two = (history_page.write(tmp_path / name, outcomes).read_bytes() for name in ("one.html", "two.html"))
    assert one == two and sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]
    page = Page(one.decode())
    assert "script" not in page.tags and "link" not in page.tags and b"://" not in one
    assert all(
        (value or "").startswith("data:image/png;base64,iVBOR") for name, value in page.attributes if name == "src"
    )
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_long_names_keep_their_end() -> None:
    label = history_page._label("organisation/a-very-long-name-of-a-model@step-15000")
    assert len(label) == history_page.LABEL and label.startswith("organisa") and label.endswith("@step-15000")
    assert history_page._label("short\x1b") == "short\ufffd"

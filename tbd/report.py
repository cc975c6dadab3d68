"""The report of one audit: a single HTML file that a person outside the team can read, offline, years later.

A pure function of its inputs: no date, no path of a machine, no network, no script. Every text in it (questions, names of sets and
checkpoints) is hostile until proven otherwise: escaped by the template, and stripped here of characters that only deceive.
"""

import base64
import math
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tbd.records import atomic

ROWS = 200
"""flagged questions listed; the rest is counted"""
UNSCORED_ROWS = 50
SHORT = 200
"""characters of a question shown"""
MISSING = "not available"
NOT_SCORED = "not scored"

FIGURES = {
    "scores": (
        "Scores of the benchmark's questions and of questions the checkpoint cannot have seen",
        "Further right is more member-like. Where the benchmark reaches further right than the unseen questions, "
        "the model is surer of it than of questions it never saw. Right of the dashed line a question is flagged.",
    ),
    "p_values": (
        "p-values of the benchmark's questions",
        "For an unseen benchmark the bars would follow the dashed line. A pile at the left means more member-like questions "
        "than chance explains.",
    ),
    "roc": (
        "Members found against false alarms, on the labelled questions",
        "Each step is one possible threshold. A curve on the diagonal is guessing; the dashed line is the false-positive rate "
        "at which questions were flagged here.",
    ),
}
"""plots shown, in this order: heading and how to read it"""

JOINERS = "\u200c\u200d"
"""invisible, but Persian, Indic scripts and emoji are spelt with them"""
DECEIVING = {"Cc", "Cf", "Cs"}
"""Unicode categories: control, format (bidi overrides among them), lone surrogates (which UTF-8 cannot hold)"""


def plain(text: str) -> str:
    """`text` on one line, with control, bidi-override and other invisible characters replaced by U+FFFD, so that they show.

    >>> plain("a\\n b\\u202ec")
    'a b\ufffdc'
    """
    folded = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(c) in DECEIVING and c not in JOINERS else c for c in folded)


def shorten(text: str) -> str:
    """The first SHORT characters of `plain(text)`, with an ellipsis where more followed."""
    text = plain(text)
    return text if len(text) <= SHORT else text[: SHORT - 1].rstrip() + "…"


def missing(value: float | None) -> bool:
    """True for None and NaN."""
    return value is None or math.isnan(value)


def number(value: float | None, absent: str = MISSING) -> str:
    """Three significant digits, with a true minus sign."""
    return absent if value is None or missing(value) else f"{value:.3g}".replace("-", "−")


def score(value: float | None, absent: str = MISSING) -> str:
    """A score with three significant digits, zeros kept, so that a column of them lines up."""
    return absent if value is None or missing(value) else f"{value:#.3g}".rstrip(".").replace("-", "−")


def p_value(value: float | None, absent: str = MISSING) -> str:
    """A p-value: three significant digits, below 0.001 two and a power of ten.

    >>> p_value(0.0123), p_value(4.2e-9), p_value(0.0)
    ('0.0123', '4.2 × 10⁻⁹', 'below 10⁻³⁰⁰')
    """
    if value is None or missing(value):
        return absent
    if value >= 0.001:
        return f"{value:.3g}"
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    if value < 1e-300:
        return "below 10" + "-300".translate(raised)
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10{str(int(exponent)).translate(raised)}"


def percent(share: float | None) -> str:
    """An estimated share in [0, 1] in percent: whole between 10 % and 99 %, else to a tenth.

    >>> percent(0.4875), percent(0.025), percent(0.996), percent(0.0)
    ('49%', '2.5%', '99.6%', '0%')
    """
    if share is None or missing(share):
        return MISSING
    return f"{round(100 * share, 0 if 0.0995 <= share <= 0.9905 else 1):g}%"


def level(share: float) -> str:
    """A chosen share, such as an error rate, in percent and not rounded.

    >>> level(0.125), level(0.07)
    ('12.5%', '7%')
    """
    return f"{100 * share:.9g}%"


def count(expected: float) -> str:
    """An expected number of questions: whole from 10 on, else to a tenth."""
    return f"{expected:.0f}" if expected >= 10 else f"{round(expected, 1):g}"


def span(low: float | None, high: float | None, as_percent: bool = True) -> str:
    """An interval in words, "35% to 60%"."""
    if low is None or high is None or missing(low) or missing(high):
        return "interval not available"
    return f"{percent(low)} to {percent(high)}" if as_percent else f"{low:.3f} to {high:.3f}"


def embedded(plot: Path) -> Markup:
    """A PNG file as a data address; base64 needs no escaping."""
    return Markup("data:image/png;base64,") + base64.b64encode(plot.read_bytes()).decode()


def _order(row: Mapping[str, Any]) -> tuple[float, float, str]:
    p, score = (math.inf if missing(row[key]) else row[key] for key in ("p_value", "score"))
    return p, -score, row["question_id"]


def environment() -> Environment:
    """Templates of this package, which escape and clean what they are given."""
    made = Environment(
        loader=PackageLoader("tbd", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # every value on its way into the page; Markup is what this module made itself
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    made.filters.update(number=number, score=score, p=p_value, percent=percent, level=level, count=count)
    made.filters.update(shorten=shorten, quote=shlex.quote)
    made.globals.update(span=span, NOT_SCORED=NOT_SCORED)
    return made


def render(
    verdict: Mapping[str, Any], detector: Mapping[str, Any], questions: Sequence[Mapping[str, Any]], plots: Mapping[str, Path]
) -> str:
    """The report as HTML5.

    Args:
        verdict: what `verdict.json` holds.
        detector: what `detector.json` holds.
        questions: the benchmark, one mapping a question: question_id, question, score, p_value, flagged, label (1, 0 or None).
        plots: PNG files by name, of `FIGURES`; other names are not shown.
    """
    flagged = sorted((row for row in questions if row["flagged"]), key=_order)
    unscored = sorted((row for row in questions if missing(row["score"]) or missing(row["p_value"])), key=_order)
    template = environment().get_template("report.html.j2")
    return template.render(
        v=verdict,
        n=verdict["benchmark"]["n"],
        detector=detector,
        choice=detector["choices"].get(verdict["detector"]["choice"]),
        warnings=list(dict.fromkeys([*verdict["warnings"], *detector["warnings"]])),
        flagged=flagged[:ROWS],
        more_flagged=len(flagged[ROWS:]),
        flagged_members=sum(row["label"] == 1 for row in flagged),
        unscored=unscored[:UNSCORED_ROWS],
        more_unscored=len(unscored[UNSCORED_ROWS:]),
        labels=any(not missing(row["label"]) for row in questions),
        on_reference=verdict["audit"] == detector["reference"],
        figures=[(*FIGURES[name], embedded(plots[name])) for name in FIGURES if name in plots],
    )


def write(
    path: Path,
    verdict: Mapping[str, Any],
    detector: Mapping[str, Any],
    questions: Sequence[Mapping[str, Any]],
    plots: Mapping[str, Path],
) -> Path:
    """`render` into a file, in one piece."""
    page = render(verdict, detector, questions, plots)
    with atomic(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path

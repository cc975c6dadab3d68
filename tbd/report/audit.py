"""The report of one audit: a single HTML file that a person outside the team can read, offline, years later.

A pure function of its inputs: no date, no path of a machine, no network, no script. Every text in it (questions, names
of sets and checkpoints) is hostile until proven otherwise: escaped by the template, and stripped here of characters
that only deceive.
"""

import base64
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tbd.detection.results import Detector, Verdict
from tbd.records import atomic
from tbd.report.explain import explain
from tbd.report.text import count, level, number, p_value, percent, plain, score, shorten, span

ROWS = 200
"""flagged questions listed; the rest is counted"""
UNSCORED_ROWS = 50
NOT_SCORED = "not scored"

FIGURES = {
    "scores": (
        "Scores of the benchmark's questions and of questions the checkpoint cannot have seen",
        "Further right is more member-like. Where the benchmark reaches further right than the unseen questions, "
        "the model is surer of it than of questions it never saw. Right of the dashed line a question is flagged.",
    ),
    "p_values": (
        "p-values of the benchmark's questions",
        "For an unseen benchmark the bars would follow the dashed line. A pile at the left means more "
        "member-like questions "
        "than chance explains.",
    ),
    "power": (
        "What this audit can see, and where it stands",
        "The curve says how many audits like this one would say CONTAMINATED, if so much of the benchmark had leaked "
        "as strongly as on the reference. The point is the smallest leak that four audits in five find. What this "
        "audit found is orange: solid the certified minimum, dotted the estimate.",
    ),
    "roc": (
        "Members found against false alarms, on the labelled questions",
        "Each step is one possible threshold. A curve on the diagonal is guessing; the dashed line is the "
        "false-positive rate "
        "at which questions were flagged here.",
    ),
}
"""plots shown, in this order: heading and how to read it"""


def embedded(plot: Path) -> Markup:
    """A PNG file as a data address; base64 needs no escaping."""
    return Markup("data:image/png;base64,") + base64.b64encode(plot.read_bytes()).decode()


def named(text: str) -> Markup:
    """A sentence of `tbd.report.explain`, escaped; what stands between backticks as a name."""
    escaped = str(escape(plain(text).replace("p = ", "p\u00a0=\u00a0")))
    return Markup(re.sub("`([^`]*)`", r'<bdi class="name">\1</bdi>', escaped))


def _first(rows: pa.Table, most: int) -> list[dict[str, Any]]:
    """The most suspicious first, at most so many."""
    order = [("p_value", "ascending"), ("score", "descending"), ("question_id", "ascending")]
    found: list[dict[str, Any]] = rows.take(pc.sort_indices(rows.drop_columns("question"), order)[:most]).to_pylist()
    return found


def environment() -> Environment:
    """Templates of this package, which escape and clean what they are given."""
    made = Environment(
        loader=PackageLoader("tbd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # every value on its way into the page; Markup is what this module made itself
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    made.filters.update(number=number, score=score, p=p_value, percent=percent, level=level, count=count)
    made.filters.update(shorten=shorten, quote=shlex.quote, named=named)
    made.globals.update(span=span, NOT_SCORED=NOT_SCORED)
    return made


def render(verdict: Verdict, detector: Detector, questions: pa.Table, plots: Mapping[str, Path]) -> str:
    """The report as HTML5.

    Args:
        verdict: what was decided.
        detector: what it was decided with.
        questions: the benchmark, rows of `records.VERDICT_QUESTIONS` with a column `question`.
        plots: PNG files by name, of `FIGURES`; other names are not shown.
    """
    flagged = questions.filter(questions["flagged"])
    unscored = questions.filter(pc.is_nan(questions["p_value"]))
    template = environment().get_template("report.html.j2")
    return template.render(
        v=verdict,
        explained=explain(verdict),
        n=verdict.benchmark.n,
        detector=detector,
        choice=verdict.detector.choice,
        warnings=list(dict.fromkeys([*verdict.warnings, *detector.warnings])),
        flagged=_first(flagged, ROWS),
        more_flagged=max(0, len(flagged) - ROWS),
        flagged_members=pc.sum(pc.equal(flagged["label"], 1)).as_py() or 0,
        unscored=_first(unscored, UNSCORED_ROWS),
        more_unscored=max(0, len(unscored) - UNSCORED_ROWS),
        labels=questions["label"].null_count < len(questions),
        on_reference=verdict.audit in {one.name for one in detector.references},
        figures=[(*FIGURES[name], embedded(plots[name])) for name in FIGURES if name in plots],
    )


def write(
    path: Path,
    verdict: Verdict,
    detector: Detector,
    questions: pa.Table,
    plots: Mapping[str, Path],
) -> Path:
    """`render` into a file, in one piece."""
    page = render(verdict, detector, questions, plots)
    with atomic(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path

"""The history as one HTML page for those who decide: where every checkpoint stands, how each benchmark fared, every
outcome.

A pure function of the outcomes, meant to lie beside the audits' folders, because it links to their reports. As in
`tbd.report.audit` every text is escaped, and the page fetches and runs nothing.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from tbd.history import FAILED, Outcome, stream
from tbd.records import atomic
from tbd.report import audit as report
from tbd.report import history_plot, summary
from tbd.report.text import plain
from tbd.workspace import NAME

ROWS = 500
"""outcomes listed; the rest is counted"""
NAMED = 5
"""checkpoints named beside a count"""
LABEL = 32
"""characters of a checkpoint's name along an axis"""
KINDS = {
    "CONTAMINATED": ("contaminated", "◆", "Benchmark questions were most likely in the data they were distilled on."),
    "INCONCLUSIVE": ("open", "□", "The audit cannot tell; the reason says what would help."),
    "NO EVIDENCE": ("none", "●", "Nothing was found. It is no proof that the benchmark was kept out."),
    FAILED: ("failed", "×", "Could not be audited or looked at, so nothing is known of them."),
}
"""by outcome: its colour, its mark (as in the figures) and what it means"""


class Benchmark(NamedTuple):
    """What is said of one benchmark."""

    name: str
    now: dict[str, int]
    """checkpoints by where they stand"""
    drawn: list[Outcome]
    copies: int
    """outcomes not drawn, because their weights were judged before"""
    figure: Markup
    thinned: bool
    sure: list[float]
    """confidences of the intervals"""
    detectors: int
    """different versions"""
    data: int
    """different versions of the question sets"""


def series(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """By benchmark, the checkpoints' outcomes in the order of their audits; a position stays as the history grows.

    A checkpoint that failed before any question was asked is in the series of every benchmark that has one by then.
    Left out are copies of weights judged before, audits that ran again with the same verdict, sources and flows.
    """
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.benchmark is not None:
            if outcome.same_as is None and not outcome.repeated:
                found.setdefault(outcome.benchmark.name, []).append(outcome)
        elif outcome.outcome == FAILED and outcome.what == "checkpoint":
            for each in found.values():
                each.append(outcome)
    return found


def render(outcomes: Sequence[Outcome], alpha: float = stream.ALPHA) -> str:
    """The page as HTML5, from every outcome of a history, oldest first. `alpha`: error rate of the stream."""
    now = summary.latest(outcomes)
    template = report.environment()
    template.filters.update(utc=_utc, said=stream.said)
    template.tests["a_name"] = lambda text: NAME.fullmatch(text) is not None
    return template.get_template("history.html.j2").render(
        last=outcomes[-1].time if outcomes else None,
        kinds=KINDS,
        now={kind: [o for o in reversed(now) if o.outcome == kind] for kind in KINDS},
        checkpoints=len({o.place for o in now if o.what == "checkpoint"}),
        named=NAMED,
        stream=stream.after(outcomes),
        alpha=alpha,
        benchmarks=[_benchmark(name, drawn, outcomes, now) for name, drawn in series(outcomes).items()],
        rows=list(reversed(outcomes[-ROWS:])),
        more=len(outcomes[:-ROWS]),
    )


def write(path: Path, outcomes: Sequence[Outcome], alpha: float = stream.ALPHA) -> Path:
    """`render` into a file, in one piece."""
    page = render(outcomes, alpha)
    with atomic(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def _benchmark(name: str, drawn: list[Outcome], outcomes: Sequence[Outcome], now: Sequence[Outcome]) -> Benchmark:
    with tempfile.TemporaryDirectory() as temporary:
        figure = history_plot.rates(
            Path(temporary) / "rates.png",
            [_label(o.checkpoint) for o in drawn],
            [o.outcome for o in drawn],
            [_drawn(o.contamination_rate) for o in drawn],
            [_drawn(o.share_at_least) for o in drawn],
        )
        embedded = report.embedded(figure)
    standing = Counter(o.outcome for o in now if o.benchmark and o.benchmark.name == name)
    return Benchmark(
        name=name,
        now={kind: standing[kind] for kind in KINDS if standing[kind]},
        drawn=drawn,
        copies=sum(o.same_as is not None for o in outcomes if o.benchmark and o.benchmark.name == name),
        figure=embedded,
        thinned=len(drawn) > history_plot.NAMES,
        sure=sorted({o.confidence for o in drawn if o.confidence is not None}),
        detectors=len({o.detector_version for o in drawn if o.detector_version}),
        data=len({(o.benchmark.md5, o.unseen.md5) for o in drawn if o.benchmark and o.unseen}),
    )


def _drawn(share: float | None) -> float:
    return math.nan if share is None else share


def _label(name: str) -> str:
    """The name; of a long one the middle is left out, because checkpoints of one training differ at the end."""
    name = plain(name)
    tail = LABEL * 2 // 3
    return name if len(name) <= LABEL else f"{name[: LABEL - tail - 1]}…{name[-tail:]}"


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M")

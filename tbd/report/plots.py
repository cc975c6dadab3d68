"""Figures as files: PNG for reports and records, one self-contained HTML file where hovering helps.

Plain arrays in, paths out; a file appears whole or not at all, and the same numbers give the same bytes. Scores: higher
= member. Scores that are not finite are not drawn and are counted in the legend. No figure shows a question's text.
"""

import html
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import plotly.graph_objects as go  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from tbd.detection.results import Power
from tbd.records import atomic

Array = NDArray[np.float64]
Curve = tuple[ArrayLike, ArrayLike]
"""false- and true-positive rates of a ROC curve, from (0, 0) to (1, 1)"""

MEMBER, OTHER, UNSEEN, INK = "#D55E00", "#0072B2", "#8C8C8C", "#222222"
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart"""
DASHES = ("-", "--", "-.", ":")

DASHED = {"line_dash": "dash", "line_color": INK, "line_width": 1.5, "opacity": 1}
BINS = 20
POINTS = 5000
"""questions of a group, and corners of a curve, drawn one by one: of more, so many at equal distances"""
DPI = 150
STYLE: Any = {
    "font.size": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar in a name is a dollar
}
SCORE_AXIS = "membership score (higher = more member-like)"


class Group(NamedTuple):
    """Scores drawn in one colour."""

    name: str
    colour: str
    at: NDArray[np.intp]
    """(k,) where the drawn scores stand in the array they came from"""
    scores: Array
    """(k,) finite"""
    left_out: int
    """scores that are not finite"""

    @property
    def dots(self) -> NDArray[np.intp]:
        """Places in `scores` of those that are drawn one by one."""
        return some(len(self.scores))

    @property
    def legend(self) -> str:
        return f"{self.name} ({len(self.scores)}{f', {self.left_out} not scored' if self.left_out else ''})"


def some(n: int) -> NDArray[np.intp]:
    """All of 0 to n - 1, or POINTS of them at equal distances, the first and the last among them."""
    return np.linspace(0, n - 1, min(n, POINTS)).round().astype(int)


def groups(benchmark_scores: ArrayLike, unseen_scores: ArrayLike, labels: ArrayLike | None) -> list[Group]:
    """The groups to draw, empty ones left out: benchmark (by label where there are labels: 1, 0, None), then unseen."""
    benchmark, unseen = np.asarray(benchmark_scores, float), np.asarray(unseen_scores, float)
    truth = (
        np.full(len(benchmark), np.nan) if labels is None else np.asarray(labels, float)  # None becomes NaN
    )
    unlabelled = "benchmark questions" if np.isnan(truth).all() else "benchmark, no label"
    parts = [
        ("members", MEMBER, benchmark, truth == 1),
        ("other benchmark questions", OTHER, benchmark, truth == 0),
        (unlabelled, OTHER if np.isnan(truth).all() else INK, benchmark, np.isnan(truth)),
        ("unseen questions", UNSEEN, unseen, np.ones(len(unseen), bool)),
    ]
    drawn = [
        (name, colour, scores, np.flatnonzero(of & np.isfinite(scores)), int(of.sum()))
        for name, colour, scores, of in parts
    ]
    return [Group(name, colour, index, scores[index], n - len(index)) for name, colour, scores, index, n in drawn if n]


def each_question(parts: Sequence[Group]) -> str:
    """What a dot is."""
    return f"{POINTS} questions each" if any(len(part.scores) > POINTS for part in parts) else "each question"


def edges(scores: Sequence[Array]) -> Array:
    """(BINS + 1,) bin edges common to several sets of finite scores; if all scores are equal, an interval around that
    value."""
    every = np.concatenate([*scores, np.zeros(0)])
    low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def spread(n: int) -> Array:
    """(n,) offsets in [-0.3, 0.3] that keep points of one row apart, the same ones every time."""
    golden: float = (5**0.5 - 1) / 2
    return np.asarray((np.arange(1, n + 1) * golden % 1 - 0.5) * 0.6, float)


def shares(scores: Array, bins: Array) -> Array:
    """(len(bins) - 1,) share of `scores` in each bin, in percent."""
    counts, _ = np.histogram(scores, bins)
    return np.asarray(100 * counts / max(len(scores), 1), float)


def p_value_counts(p_values: ArrayLike) -> NDArray[np.intp]:
    """(BINS,) how many p-values fall in each of the bins (i / BINS, (i + 1) / BINS]; NaN in none.

    Closed on the right, because a question is flagged at p <= the false-positive rate and conformal p-values fall on
    round numbers.
    """
    p = np.asarray(p_values, float)
    bins = np.ceil(p[np.isfinite(p)] * BINS - 1e-9).astype(int) - 1
    return np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)


def save(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> Path:
    # rc_context puts back what the caller has set; defaults first, so that a matplotlibrc does not change the bytes
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
        with atomic(path) as temporary, warnings.catch_warnings():
            # a name in a script the font lacks is drawn as boxes
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path


def scores(
    path: Path,
    benchmark_scores: ArrayLike,
    unseen_scores: ArrayLike,
    labels: ArrayLike | None,
    threshold: float | None,
    method_id: str,
) -> Path:
    """Distributions of the benchmark's and the unseen questions' scores, one dot a question below (POINTS of a group at
    most), and the flag threshold.

    `labels` (1 member, 0 not, None unknown) splits the benchmark. A question is flagged if its score is strictly above
    `threshold`; None draws no line.
    """
    parts = groups(benchmark_scores, unseen_scores, labels)

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 0.5 + 0.35 * len(parts)])
        bins = edges([part.scores for part in parts])
        for row, part in enumerate(parts):
            top.stairs(shares(part.scores, bins), bins, fill=True, color=part.colour, alpha=0.25)
            top.stairs(shares(part.scores, bins), bins, color=part.colour, linewidth=1.8, label=part.legend)
            x = part.scores[part.dots]
            bottom.scatter(x, spread(len(x)) - row, s=16, color=part.colour, alpha=0.6, linewidths=0)
        if threshold is not None and np.isfinite(threshold):
            for axes in (top, bottom):
                label = "flagged above this" if axes is top else None
                axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.5, label=label)
        top.set_ylabel("% of the group's questions")
        top.tick_params(bottom=False)
        bottom.set_ylim(0.6 - max(len(parts), 1), 0.6)
        bottom.set_yticks([])
        bottom.set_ylabel(each_question(parts))
        bottom.set_xlabel(f"{SCORE_AXIS}\n{method_id}")
        if parts:
            figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)

    return save(path, (8, 5.2), draw)


def p_values(path: Path, p_values: ArrayLike, fpr: float) -> Path:
    """Histogram of conformal p-values, the level line an unseen benchmark would follow, and the flagged region p <=
    fpr."""
    counts = p_value_counts(p_values)

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        axes.axvspan(0, fpr, color=MEMBER, alpha=0.15, linewidth=0, label=f"flagged: p-value at most {fpr:g}")
        axes.axvline(fpr, color=MEMBER, linewidth=1.5)
        axes.bar(
            (np.arange(BINS) + 0.5) / BINS,
            counts,
            width=0.92 / BINS,
            color=OTHER,
            label=f"benchmark questions ({counts.sum()})",
        )
        axes.axhline(
            counts.sum() / BINS, color=INK, linestyle="--", linewidth=1.5, label="expected if none had been seen"
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, max(1.0, counts.max() * 1.05))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("p-value of the question (small = unlike unseen questions)")
        axes.set_ylabel("questions")
        figure.legend(loc="outside upper left", ncols=2)

    return save(path, (8, 4.3), draw)


def roc(path: Path, curves: Mapping[str, Curve], target_fpr: float) -> Path:
    """ROC curves as the steps they are, the diagonal of guessing, and a line at the target false-positive rate."""

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=UNSEEN, linewidth=1, label="guessing")
        axes.axvline(
            target_fpr, color=INK, linestyle="--", linewidth=1.2, label=f"target false-positive rate {target_fpr:g}"
        )
        lines = []
        for k, (x, y) in enumerate(map(_finite, curves.values())):
            lines += axes.step(
                x, y, where="post", color=CURVES[k % len(CURVES)], linestyle=DASHES[k % len(DASHES)], linewidth=2.2
            )
        handles, names = axes.get_legend_handles_labels()
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_aspect("equal")
        axes.set_xlabel("false-positive rate (non-members flagged)")
        axes.set_ylabel("true-positive rate (members flagged)")
        axes.legend([*lines, *handles], [*curves, *names], loc="lower right")

    return save(path, (6, 6), draw)


def power(path: Path, powers: Sequence[Power], at_least: float | None, estimate: float) -> Path:
    """Probability of CONTAMINATED over the share of the benchmark that leaked, and where this audit stands.

    `powers`: the one that counts first, with its interval; the other references' as curves alone. `at_least` and
    `estimate`: shares of this audit.
    """
    counts, others = powers[0], powers[1:]
    smallest, first, last = (
        None if s is None else 100 * s for s in (counts.mde80, counts.mde80_low, counts.mde80_high)
    )
    right = min(100.0, max(10.0, 2.5 * (last or 100.0), 120 * estimate, 120 * (at_least or 0)))

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        x, y, below, above = (
            [100 * getattr(point, of) for point in counts.curve] for of in ("leaked", "estimate", "low", "high")
        )
        axes.fill_between(x, below, above, color=OTHER, alpha=0.2, linewidth=0)
        axes.plot(x, y, color=OTHER, linewidth=2.2, label=f"audits that say CONTAMINATED, by {counts.reference}")
        for one, dashes in zip(others, itertools.cycle(["-.", ":"]), strict=False):
            points = [(100 * point.leaked, 100 * point.estimate) for point in one.curve]
            label = f"by {one.reference}"
            axes.plot(*zip(*points, strict=True), color=OTHER, linewidth=1.6, linestyle=dashes, label=label)
        axes.axhline(80, color=INK, linestyle="--", linewidth=1.2, label="four audits in five")
        if smallest is not None:
            ends = [[smallest - (first or 0)], [(right if last is None else last) - smallest]]
            axes.errorbar([smallest], [80], xerr=ends, fmt="o", color=INK, capsize=4, zorder=4,
                          label="smallest leak they find")  # fmt: skip
        if at_least is not None:
            axes.axvline(100 * at_least, color=MEMBER, linewidth=2, clip_on=False, zorder=3,
                         label="this audit: at least so much leaked")  # fmt: skip
        axes.axvline(100 * estimate, color=MEMBER, linestyle=":", linewidth=2, clip_on=False, zorder=3,
                     label="this audit: estimate")  # fmt: skip
        axes.set_xlim(0, right)
        axes.set_ylim(0, 101)
        axes.set_xlabel("% of the benchmark that leaked as strongly as on that reference")
        axes.set_ylabel("% of audits like this one")
        figure.legend(loc="outside upper left", ncols=2)

    return save(path, (8, 4.6), draw)


def interactive_audit(
    path: Path,
    question_ids: Sequence[str],
    benchmark_scores: ArrayLike,
    p_values: ArrayLike,
    unseen_scores: ArrayLike,
    labels: ArrayLike | None,
    threshold: float | None,
    fpr: float,
    method_id: str,
) -> Path:
    """The scores and p-values of an audit in one HTML file; a benchmark question shows its id, score and p-value.

    `question_ids`, `benchmark_scores`, `p_values` and `labels` (if any) are parallel, (n,).
    """
    parts = groups(benchmark_scores, unseen_scores, labels)
    p = np.asarray(p_values, float)
    bins = edges([part.scores for part in parts])
    figure = make_subplots(
        rows=3,
        cols=1,
        row_heights=[0.4, 0.27, 0.33],
        vertical_spacing=0.14,
    )
    figure.update_xaxes(matches="x", row=2, col=1)
    for row, part in enumerate(parts):
        centres, width = (bins[1:] + bins[:-1]) / 2, bins[1] - bins[0]
        shown = {"name": part.legend, "legendgroup": part.name, "marker": {"color": part.colour}}
        hover = "%{y:.1f}% of the group<extra></extra>"
        figure.add_bar(
            x=centres,
            y=shares(part.scores, bins),
            width=width,
            opacity=0.45,
            hovertemplate=hover,
            row=1,
            col=1,
            **shown,
        )
        unseen = part.name == "unseen questions"
        each = [
            ["unseen", ""] if unseen else [html.escape(str(question_ids[i])), f"<br>p-value {p[i]:.4g}"]
            for i in part.at[part.dots].tolist()
        ]
        shown["marker"] = {"color": part.colour, "size": 8, "opacity": 0.65}
        figure.add_scatter(
            x=part.scores[part.dots],
            y=spread(len(each)) - row,
            mode="markers",
            customdata=each,
            hovertemplate="%{customdata[0]}<br>score %{x:.4g}%{customdata[1]}<extra></extra>",
            showlegend=False,
            row=2,
            col=1,
            **shown,
        )
    if threshold is not None and np.isfinite(threshold):
        for row in (1, 2):
            figure.add_vline(threshold, **DASHED, row=row, col=1)
    counts = p_value_counts(p)
    figure.add_bar(
        x=(np.arange(BINS) + 0.5) / BINS,
        y=counts,
        width=0.92 / BINS,
        marker={"color": OTHER},
        hovertemplate="%{y} questions<extra></extra>",
        showlegend=False,
        row=3,
        col=1,
    )
    figure.add_hline(counts.sum() / BINS, **DASHED, row=3, col=1)
    figure.add_vrect(0, fpr, fillcolor=MEMBER, opacity=0.15, line_width=0, row=3, col=1)
    reading = f"{SCORE_AXIS}<br>{html.escape(method_id)}; dashed: flagged above this"
    figure.update_xaxes(title_text=reading, row=2, col=1)
    figure.update_xaxes(
        title_text=f"p-value; shaded: flagged (at most {fpr:g}), dashed: expected if none had been seen", row=3, col=1
    )
    figure.update_xaxes(range=[0, 1], row=3, col=1)
    figure.update_yaxes(title_text="% of the group", row=1, col=1)
    figure.update_yaxes(title_text=each_question(parts), showticklabels=False, ticks="", row=2, col=1)
    figure.update_yaxes(title_text="benchmark questions", row=3, col=1)
    return _write_html(path, figure, "audit", "Scores and p-values", barmode="overlay", height=900)


def interactive_roc(path: Path, curves: Mapping[str, Curve], target_fpr: float) -> Path:
    """`roc` in one HTML file; a point shows its rates."""
    figure = go.Figure()
    for k, (name, curve) in enumerate(curves.items()):
        x, y = _finite(curve)
        figure.add_scatter(
            x=x,
            y=y,
            name=html.escape(name),
            line={"shape": "hv", "color": CURVES[k % len(CURVES)], "width": 2.5},
            mode="lines+markers",
            marker={"size": 4},
            hovertemplate="false-positive rate %{x:.3f}<br>true-positive rate %{y:.3f}",
        )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], name="guessing", mode="lines", line={"color": UNSEEN, "width": 1}, hoverinfo="skip"
    )
    figure.add_vline(target_fpr, **DASHED)
    figure.update_xaxes(title_text=f"false-positive rate (dashed: target {target_fpr:g})", range=[-0.01, 1.01])
    figure.update_yaxes(title_text="true-positive rate", range=[-0.01, 1.01])
    return _write_html(path, figure, "roc", "ROC", height=700)


def _finite(curve: Curve) -> tuple[Array, Array]:
    x, y = (np.asarray(values, float) for values in curve)
    drawn = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    drawn = drawn[some(len(drawn))]
    return x[drawn], y[drawn]


def _write_html(path: Path, figure: Any, div_id: str, title: str, **layout: Any) -> Path:
    figure.update_layout(
        template="simple_white",
        font={"size": 14, "color": INK},
        legend={"orientation": "h", "y": 1.06, "yanchor": "bottom"},
        **layout,
    )
    # a fixed id, or the bytes differ from one writing to the next
    body = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id=div_id,
        config={"displaylogo": False, "responsive": True},
        default_width="100%",
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta '
        f'charset="utf-8"><title>{title}</title></head>\n<body>{body}</body></html>\n'
    )
    with atomic(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path

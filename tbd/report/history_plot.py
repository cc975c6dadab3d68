"""The figure of the history page: contamination rates over checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from tbd.report.plots import INK, save

VERDICTS = {
    "CONTAMINATED": ("#D55E00", "D", True),
    "INCONCLUSIVE": ("#E69F00", "s", False),
    "NO EVIDENCE": ("#0072B2", "o", True),
}
"""colour, marker and whether it is filled, so that they can be told apart without colour"""
NAMES = 40
"""checkpoints named along an axis"""


def labelled(outcomes: Sequence[str]) -> list[int]:
    """Which points along an axis get a name if there is no room for all: CONTAMINATED before others, newer before
    older.

    >>> labelled(["NO EVIDENCE"] * 3)
    [0, 1, 2]
    """
    apart = -(-len(outcomes) // NAMES)
    chosen: list[int] = []
    for i in sorted(range(len(outcomes)), key=lambda i: (outcomes[i] != "CONTAMINATED", -i)):
        if all(abs(i - other) >= apart for other in chosen):
            chosen.append(i)
    return sorted(chosen)


def rates(path: Path, names: Sequence[str], outcomes: Sequence[str], rate: ArrayLike, at_least: ArrayLike) -> Path:
    """Estimated contamination rate over checkpoints, with a line down to the certified minimum, in the order given,
    marked by verdict; failures on the axis.

    All four are parallel, (n,); the rate and the minimum are shares, NaN if there are none. Names that do not fit are
    left out.
    """
    kinds = np.array(outcomes, dtype=object)
    at, y = np.arange(1, len(kinds) + 1), 100 * np.asarray(rate, float)
    below = np.nan_to_num(y - 100 * np.asarray(at_least, float)).clip(0)
    arms = np.array([below, np.zeros(len(y))])
    size = 8 if len(kinds) <= NAMES else 5.5
    shown = labelled(outcomes)
    longest = max((len(names[i]) for i in shown), default=0)

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        for verdict, (colour, marker, filled) in VERDICTS.items():
            mine = kinds == verdict
            here = mine & np.isfinite(y)
            if not mine.any():
                continue
            missing = f", {mine.sum() - here.sum()} without a rate" if here.sum() < mine.sum() else ""
            style: Any = {
                "color": colour,
                "marker": marker,
                "markersize": size,
                "markerfacecolor": colour if filled else "white",
            }
            axes.errorbar(
                at[here],
                y[here],
                arms[:, here],
                linestyle="",
                elinewidth=1.4,
                capsize=size / 4,
                clip_on=False,
                zorder=3,
                label=f"{verdict} ({mine.sum()}{missing})",
                **style,
            )
        failed = kinds == "FAILED"
        if failed.any():
            on_axis = axes.get_xaxis_transform()
            # not plot(), whose lines the legend puts first
            axes.errorbar(at[failed], np.zeros(failed.sum()), fmt="x", color=INK, markersize=size, markeredgewidth=2,
                          transform=on_axis, clip_on=False, zorder=4, label=f"FAILED ({failed.sum()})")  # fmt: skip
        axes.set_xlim(0.4, max(len(kinds), 5) + 0.6)
        axes.set_ylim(-4, 100)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="x")
        labels = [names[i] for i in shown]
        axes.set_xticks(
            at[shown] if shown else [], labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=9.5
        )
        axes.set_ylabel("contamination rate (estimate), %")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper left", ncols=4, handletextpad=0.3, columnspacing=1.4)

    return save(path, (10, 4.1 + 0.05 * longest), draw)

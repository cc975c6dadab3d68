"""Figures: they open, they are not blank, they are the same bytes twice, and missing or odd numbers do not break
them."""

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tbd.detection.results import Power
from tbd.report import history_plot, plots
from tests import results

RNG = np.random.default_rng(0)
MEMBERS, OTHERS, UNSEEN = RNG.normal(-0.1, 0.05, 30), RNG.normal(-0.25, 0.05, 30), RNG.normal(-0.25, 0.05, 60)
BENCHMARK = np.concatenate([MEMBERS, OTHERS])
LABELS = [1] * 30 + [0] * 30
P = np.array([(1 + (s <= UNSEEN).sum()) / 61 for s in BENCHMARK])
IDS = [f"{i:016x}" for i in range(60)]
RATES = (
    ["m-1", "m-2", "m-3", "m-4"],
    ["CONTAMINATED", "NO EVIDENCE", "FAILED", "INCONCLUSIVE"],
    [0.4, 0.0, np.nan, 0.05],
    [0.3, 0.0, np.nan, 0.0],
)
CURVES = {"alone": ([0, 0, 0.5, 1], [0, 0.5, 1, 1]), "with_base": ([0, 0, 1], [0, 1, 1])}


def power(mde80: tuple[float | None, float | None, float | None] = (0.2, 0.1, 0.3)) -> Power:
    return Power.model_validate(results.POWER | dict(zip(("mde80", "mde80_low", "mde80_high"), mde80, strict=True)))


PNG: dict[str, Callable[[Path], Path]] = {
    "scores": lambda path: plots.scores(path, BENCHMARK, UNSEEN, LABELS, -0.16, "tbd(m=100)"),
    "scores without labels": lambda path: plots.scores(path, BENCHMARK, UNSEEN, None, None, "tbd(m=100)"),
    "p_values": lambda path: plots.p_values(path, P, 0.05),
    "roc": lambda path: plots.roc(path, CURVES, 0.05),
    "power": lambda path: plots.power(path, [power(), power()], 0.15, 0.4),
    "rates": lambda path: history_plot.rates(path, *RATES),
}
HTML: dict[str, Callable[[Path], Path]] = {
    "audit": lambda path: plots.interactive_audit(path, IDS, BENCHMARK, P, UNSEEN, LABELS, -0.16, 0.05, "tbd(m=100)"),
    "roc": lambda path: plots.interactive_roc(path, CURVES, 0.05),
}


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and min(image.size) >= 600
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


@pytest.mark.parametrize("name", PNG)
def test_png_opens_is_not_blank_and_repeats(name: str, tmp_path: Path) -> None:
    one, two = PNG[name](tmp_path / "one.png"), PNG[name](tmp_path / "two.png")
    assert len(colours(one)) > 50
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]
    with Image.open(one) as image:
        assert set(image.info) <= {"dpi"}  # no date, no software


def test_labels_have_their_colours(tmp_path: Path) -> None:
    labelled = colours(PNG["scores"](tmp_path / "labelled.png"))
    assert {rgb(plots.MEMBER), rgb(plots.OTHER), rgb(plots.UNSEEN)} <= labelled
    assert rgb(plots.MEMBER) not in colours(PNG["scores without labels"](tmp_path / "unlabelled.png"))


def test_verdicts_have_their_colours(tmp_path: Path) -> None:
    marked = {"CONTAMINATED": "#D55E00", "INCONCLUSIVE": "#E69F00", "NO EVIDENCE": "#0072B2"}
    every = colours(history_plot.rates(tmp_path / "every.png", *RATES))
    assert {rgb(colour) for colour in marked.values()} <= every
    for verdict in (*marked, "FAILED"):
        alone = colours(history_plot.rates(tmp_path / "alone.png", ["m"], [verdict], [0.4], [0.3]))
        assert {name for name, colour in marked.items() if rgb(colour) in alone} == {verdict} & marked.keys()
    assert len({(marker, filled) for _, marker, filled in history_plot.VERDICTS.values()}) == 3  # without colour too


def test_failures_stand_on_the_axis(tmp_path: Path) -> None:
    def dark(path: Path) -> int:
        """Pixels of the cross's colour, which the rest of the figure has only in letters."""
        with Image.open(path) as image:
            return int((np.asarray(image.convert("RGB"))[250:] == rgb(plots.INK)).all(axis=2).sum())

    names, nothing = ["m", "m"], [np.nan, np.nan]
    failed = dark(history_plot.rates(tmp_path / "f.png", names, ["NO EVIDENCE", "FAILED"], nothing, nothing))
    assert (
        failed
        > dark(history_plot.rates(tmp_path / "n.png", names, ["NO EVIDENCE", "NO EVIDENCE"], nothing, nothing)) + 50
    )


@pytest.mark.parametrize("n", [0, 1, 5, 40])
def test_all_are_named_while_there_is_room(n: int) -> None:
    assert history_plot.labelled(["NO EVIDENCE"] * n) == list(range(n))


def test_where_names_are_thinned_out_the_contaminated_come_first() -> None:
    outcomes = ["CONTAMINATED" if i % 31 == 3 else "NO EVIDENCE" for i in range(200)]
    named = history_plot.labelled(outcomes)
    assert 20 <= len(named) <= history_plot.NAMES and {i for i in range(200) if i % 31 == 3} <= set(named)
    assert min(np.diff(named)) >= 5
    assert history_plot.labelled(["NO EVIDENCE"] * 200)[-1] == 199  # the newest always


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("outcomes", "rate", "at_least"),
    [
        ([], [], []),
        (["CONTAMINATED"], [np.nan], [np.nan]),
        (["CONTAMINATED"], [0.4], [np.nan]),
        (["NO EVIDENCE"], [0.4], [0.5]),
        (["of another version"], [0.4], [0.3]),
        (["FAILED", "FAILED"], [np.nan, 0.1], [np.nan, 0.1]),
    ],
)
def test_odd_rates_break_nothing(outcomes: list[str], rate: list[float], at_least: list[float], tmp_path: Path) -> None:
    names = ["a$b$_^ {m} 模型"] * len(outcomes)  # which the font does not have
    colours(history_plot.rates(tmp_path / "r.png", names, outcomes, rate, at_least))


def test_an_audit_stands_on_its_power_curve(tmp_path: Path) -> None:
    """Its certified minimum and its estimate are lines, as far to the right as they are large."""

    def marked(at_least: float | None, estimate: float) -> list[int]:
        path = plots.power(tmp_path / "p.png", [power((0.2, 0.1, 0.9))], at_least, estimate)
        with Image.open(path) as image:
            mine = (np.asarray(image.convert("RGB"))[200:-150] == rgb(plots.MEMBER)).all(axis=2).sum(axis=0)
        lines = np.flatnonzero(mine > 50)
        return [int(part[0]) for part in np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1) if len(part)]

    assert len(marked(None, 0.6)) == 1
    (at_least, estimate), (less, same) = marked(0.3, 0.6), marked(0.15, 0.6)
    assert less < at_least < estimate == same


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mde80", "at_least", "estimate"),
    [((None, None, None), None, 0.0), ((None, 0.4, None), 0.0, 1.0), ((0.2, 0.1, None), 1.0, 1.0)],
)
def test_odd_power_breaks_nothing(
    mde80: tuple[float | None, float | None, float | None], at_least: float | None, estimate: float, tmp_path: Path
) -> None:
    colours(plots.power(tmp_path / "p.png", [power(mde80), power()], at_least, estimate))


def test_settings_of_the_caller_neither_change_a_figure_nor_are_changed(tmp_path: Path) -> None:
    plain = PNG["roc"](tmp_path / "plain.png").read_bytes()
    with matplotlib.rc_context({"font.size": 33.0, "axes.facecolor": "red"}):
        assert PNG["roc"](tmp_path / "again.png").read_bytes() == plain
        assert matplotlib.rcParams["font.size"] == 33.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("benchmark", "unseen", "labels"),
    [
        ([np.nan, -0.1], [np.nan, -0.2, -np.inf], None),
        ([np.nan, np.nan], [np.nan], [1, 0]),
        ([-0.2, -0.2], [-0.2], [None, 1]),
        ([0.1, 0.1 + 2e-17, 0.10000000000000002], [0.1], None),
        ([], [], None),
        ([1e12, -1e12], [0.0], [0, None]),
    ],
)
def test_odd_scores_break_nothing(
    benchmark: list[float], unseen: list[float], labels: list[int | None] | None, tmp_path: Path
) -> None:
    p = np.where(np.isnan(benchmark), np.nan, 0.5)
    ids = [f"{i:016x}" for i in range(len(benchmark))]
    colours(plots.scores(tmp_path / "s.png", benchmark, unseen, labels, np.nan, "a$b$_^ {m}"))
    colours(plots.p_values(tmp_path / "p.png", p, 0.01))
    page = plots.interactive_audit(
        tmp_path / "i.html", ids, benchmark, p, unseen, labels, None, 0.05, "a$b$_^ {m}"
    ).read_text("utf-8")
    assert "NaN" not in page[page.index("Plotly.newPlot(") :]


def test_missing_scores_are_counted() -> None:
    parts = plots.groups([0.1, np.nan, 0.3], [0.2], [1, 1, 0])
    assert [part.legend for part in parts] == [
        "members (1, 1 not scored)",
        "other benchmark questions (1)",
        "unseen questions (1)",
    ]
    assert [part.at.tolist() for part in parts] == [[0], [2], [0]]
    assert [part.legend for part in plots.groups([0.1], [0.2], None)] == [
        "benchmark questions (1)",
        "unseen questions (1)",
    ]


def test_p_value_bins_are_closed_on_the_right() -> None:
    counts = plots.p_value_counts([0.05, 1 / 80, 0.0500001, 1.0, np.nan])
    assert counts.tolist() == [2, 1, *[0] * 17, 1]
    lattice = np.arange(1, 81) / 80  # what an unseen benchmark can get from 79 negatives
    assert set(plots.p_value_counts(lattice)) == {4}


def test_odd_curves(tmp_path: Path) -> None:
    odd = {"_hidden $x$": ([0, np.nan, 1], [0, 0.5, 1]), "": ([], [])}
    colours(plots.roc(tmp_path / "roc.png", odd, 0.01))
    plots.interactive_roc(tmp_path / "roc.html", odd, 0.01)
    colours(plots.roc(tmp_path / "none.png", {}, 0.01))


@pytest.mark.parametrize("name", HTML)
def test_interactive_is_one_file_and_repeats(name: str, tmp_path: Path) -> None:
    one, two = HTML[name](tmp_path / "one.html").read_bytes(), HTML[name](tmp_path / "two.html").read_bytes()
    assert one == two
    page = one.decode()
    assert not re.search(
        r"<(script|link|img|iframe)\b[^>]*\b(src|href)=", page[: page.index("<script")] + page[page.rindex("<script") :]
    )
    assert page.count('<div id="') == 1 and len(page) > 1_000_000  # the library is inside


def test_interactive_shows_the_id_score_and_p_value_of_a_question(tmp_path: Path) -> None:
    page = HTML["audit"](tmp_path / "i.html").read_text("utf-8")
    drawn = page[page.index("Plotly.newPlot(") :]
    assert all(identifier in drawn for identifier in IDS)
    assert f"p-value {P[0]:.4g}" in drawn and "score %{x:.4g}" in drawn


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script><a href='x'>"
    page = plots.interactive_audit(tmp_path / "i.html", [name], [0.1], [0.5], [0.2], None, None, 0.05, name).read_text(
        "utf-8"
    )
    assert "alert(1)" in page and "<script>alert(1)" not in page and "<a href='x'>" not in page
    page = plots.interactive_roc(tmp_path / "r.html", {name: CURVES["alone"]}, 0.05).read_text("utf-8")
    assert "<script>alert(1)" not in page

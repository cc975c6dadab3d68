"""Choosing the detector where contamination is known, by repeated halves: one half of the labelled questions chooses,
the other measures, and the other way round, many times. No figure is of the questions that chose.

Against one split in halves the figures vary by a third less (`benchmarks/choosing.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbd.detection.decisions import conformal_p_values
from tbd.detection.intervals import delong, proportion
from tbd.detection.metrics import read
from tbd.detection.results import Performance

Array = NDArray[np.float64]
Counts = NDArray[np.int_]
Splits = dict[str, NDArray[np.bool_]]
BLOCK = 200
"""resamples at a time: memory"""


@dataclass(frozen=True)
class Known:
    """The labelled questions of one reference, in an order of their own, and its unseen questions."""

    benchmark: str
    """which questions these are: references with the same ones are split and resampled alike"""
    labels: NDArray[np.int8]
    """(n,) 1 member, 0 other"""
    scores: dict[str, Array]
    """(n,) by method, NaN for a question without one; the same methods in every reference, in params.yaml's order"""
    unseen: dict[str, Array]
    """(N,) by method"""


class Rates(NamedTuple):
    """Of some methods on some halves: (halves, methods)."""

    auc: Array
    tpr: Array
    """largest rate whose false-positive rate is at most the target"""
    tpr_paper_convention: Array
    """at the first point whose false-positive rate reaches the target"""


class Tried(NamedTuple):
    """All methods on many splits of the labelled questions in halves."""

    choosing: Array
    """(halves, methods) AUC on the half that chooses, the mean over the references"""
    measuring: list[Rates]
    """of each reference, on the other half"""

    def chosen(self, methods: Sequence[bool]) -> NDArray[np.int_]:
        """(halves,) the column of the method that each half chooses among `methods`, the first named of equals."""
        return best(self.choosing, methods)

    def held_out(self, methods: Sequence[bool], reference: int) -> Rates:
        """Each half's choice on the other half of a reference: (halves,)."""
        column = self.chosen(methods)[:, None]
        return Rates(*(np.take_along_axis(one, column, axis=1)[:, 0] for one in self.measuring[reference]))


def curve(scores: Array, labels: NDArray[np.int8], counts: Counts) -> tuple[Array, Array]:
    """ROC curves, one a row of `counts`: false- and true-positive rates, each (rows, points), from (0, 0) to (1, 1).

    `counts`: (rows, n) how often each question is in the sample; unscored ones are left out. NaN without a member or
    without another question.
    """
    order = np.argsort(-scores, kind="stable")[: int((~np.isnan(scores)).sum())]
    if not len(order):
        return np.full((len(counts), 2), np.nan), np.full((len(counts), 2), np.nan)
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    rates = []
    for label in (0, 1):
        above = np.cumsum(counts[:, order] * (labels[order] == label), axis=1)[:, last]
        with np.errstate(invalid="ignore"):
            rates.append(np.pad(above / above[:, -1:], ((0, 0), (1, 0))))
    return rates[0], rates[1]


def rates(known: Known, counts: Counts, fpr: float) -> Rates:
    """Of every method on every row of `counts`."""
    found = []
    for scores in known.scores.values():
        x, y = curve(scores, known.labels, counts)
        found.append((np.trapezoid(y, x, axis=1), *(read(x, y, fpr, how) for how in ("at most", "first above"))))
    return Rates(*np.moveaxis(np.array(found), 0, -1))


def halves(labels: NDArray[np.int8], rng: np.random.Generator, repeats: int) -> NDArray[np.bool_]:
    """(2 x repeats, n) True for those who choose: every other row is the complement of the one before; members and
    others are split evenly."""
    split = np.zeros((repeats, len(labels)), bool)
    for row in split:
        for label in (0, 1):
            rows = rng.permutation(np.nonzero(labels == label)[0])
            row[rows[: len(rows) // 2]] = True
    return np.stack([split, ~split], axis=1).reshape(2 * repeats, len(labels))


def best(area: Array, methods: Sequence[bool]) -> NDArray[np.int_]:
    """(rows,) the column with the highest AUC among `methods`, the first of equals; `area`: (rows, methods)."""
    return np.asarray(np.argmax(np.where(methods, np.nan_to_num(area, nan=-1.0), -2.0), axis=1))


def cross_validate(
    references: Sequence[Known], splits: Mapping[str, NDArray[np.bool_]], counts: Mapping[str, Counts], fpr: float
) -> Tried:
    """`splits` and `counts`, by benchmark, are (halves, n): who chooses, and how often each is in the sample. What one
    half chooses is measured on its complement, which is the row before or after it."""
    each = [rates(known, counts[known.benchmark] * splits[known.benchmark], fpr) for known in references]
    complement = np.arange(len(each[0].auc)) ^ 1
    return Tried(np.mean([of.auc for of in each], axis=0), [Rates(*(one[complement] for one in of)) for of in each])


def repeated(references: Sequence[Known], repeats: int, fpr: float, rng: np.random.Generator) -> tuple[Tried, Splits]:
    """On `repeats` splits of the questions as they are; and the splits, by benchmark."""
    splits, counts = {}, {}
    for benchmark, labels in _benchmarks(references):
        splits[benchmark] = halves(labels, rng, repeats)
        counts[benchmark] = np.ones((1, len(labels)), int)
    return cross_validate(references, splits, counts, fpr), splits


def resampled(references: Sequence[Known], repeats: int, resamples: int, fpr: float, rng: np.random.Generator) -> Tried:
    """On `resamples` samples of the questions, drawn with replacement for each label, each split `repeats` times: the
    halves of a sample follow each other."""
    found = []
    for first in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - first)
        splits, counts = {}, {}
        for benchmark, labels in _benchmarks(references):
            splits[benchmark] = halves(labels, rng, repeats * rows)  # of questions, so that none is in both halves
            counts[benchmark] = np.repeat(resample(labels, rows, rng), 2 * repeats, axis=0)
        found.append(cross_validate(references, splits, counts, fpr))
    measuring = [
        Rates(*map(np.concatenate, zip(*of, strict=True))) for of in zip(*(one.measuring for one in found), strict=True)
    ]
    return Tried(np.concatenate([one.choosing for one in found]), measuring)


def resample(labels: NDArray[np.int8], rows: int, rng: np.random.Generator) -> Counts:
    """(rows, n) how often each question is drawn, with replacement, each label by itself."""
    counts = np.empty((rows, len(labels)), int)
    for label in (0, 1):
        of = labels == label
        counts[:, of] = rng.multinomial(int(of.sum()), np.full(int(of.sum()), 1 / of.sum()), rows)
    return counts


def _benchmarks(references: Sequence[Known]) -> list[tuple[str, NDArray[np.int8]]]:
    return list({known.benchmark: known.labels for known in references}.items())


def performance(
    known: Known, confidence: float, fpr: float, resamples: int, rng: np.random.Generator
) -> dict[str, Performance]:
    """Every method by itself on all labelled questions: DeLong's interval of the AUC, bootstrap of the rate."""
    point = rates(known, np.ones((1, len(known.labels)), int), fpr)
    drawn = rates(known, resample(known.labels, resamples, rng), fpr).tpr
    found = {}
    for column, (method, scores) in enumerate(known.scores.items()):
        scored = ~np.isnan(scores)
        low, high = delong(scores[scored], known.labels[scored], confidence)
        tpr = float(point.tpr[0, column])
        tpr_low, tpr_high = interval(tpr, drawn[:, column], int((known.labels[scored] == 1).sum()), confidence)
        found[method] = Performance(
            auc=float(point.auc[0, column]),
            auc_low=low,
            auc_high=high,
            tpr_at_fpr=tpr,
            tpr_low=tpr_low,
            tpr_high=tpr_high,
            tpr_paper_convention=float(point.tpr_paper_convention[0, column]),
            unscored=int((~scored).sum()),
        )
    return found


def interval(point: float, drawn: Array, questions: int, confidence: float) -> tuple[float, float]:
    """Percentile interval of a bootstrap, around `point`.

    Where a figure is 0 or 1 every resample says the same, which is no certainty: the exact interval of a proportion of
    so many `questions`.
    """
    if point in (0.0, 1.0):
        return proportion(round(point * questions), questions, confidence)
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), point), max(float(high), point)


def places(known: Known, chosen: NDArray[np.int_], split: NDArray[np.bool_]) -> Array:
    """(n,) conformal p-values against the unseen questions, each by the method that the half without it chose; NaN
    without a score. `chosen`, (2,), and `split`, (2, n): one split in halves."""
    methods, p = list(known.scores), np.full(len(known.labels), np.nan)
    for column, half in zip(chosen, split, strict=True):
        method = methods[column]
        negatives = known.unseen[method][~np.isnan(known.unseen[method])]
        p[~half] = conformal_p_values(known.scores[method][~half], negatives)
    return p


def mean_curve(known: Known, chosen: NDArray[np.int_], split: NDArray[np.bool_]) -> tuple[Array, Array]:
    """The ROC curve of a choice: at every false-positive rate the mean, over the halves, of the members found there
    (vertical averaging; Fawcett, Pattern Recognition Letters 27, 2006)."""
    grid = np.linspace(0, 1, 201)
    found = np.zeros_like(grid)
    for scores_of, half in zip(np.array(list(known.scores.values()))[chosen], split, strict=True):
        x, y = (one[0] for one in curve(scores_of, known.labels, (~half)[None].astype(int)))
        found += y[np.searchsorted(x, grid + 1e-12, side="right") - 1] / len(chosen)
    return grid, found


def threshold(negatives: Array, fpr: float) -> float | None:
    """The score above which (strictly) a question is flagged at conformal p-value <= `fpr`; None if none can be."""
    ordered = np.sort(negatives)
    allowed = int(np.floor(fpr * (len(ordered) + 1) + 1e-9)) - 1  # negatives that may score at least as high
    return None if allowed < 0 else float(ordered[len(ordered) - 1 - allowed])

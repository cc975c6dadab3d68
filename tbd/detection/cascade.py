"""A cascade: every answer is begun, and only one that begins as a member's may is written to its end.

The first m tokens of every answer are scored, and an answer whose score there is below a cut, which the references'
unseen questions fixed, stops. An answer has one score, `ranked`, a fixed function of that answer alone, the same for
benchmark and unseen questions. So where nothing leaked these scores are as exchangeable as any others, and conformal
p-values, the global test and the certified minimum hold as they do without a cascade, wherever the cut lies: a bad cut
costs power, never error rates. (Attentional cascade: Viola and Jones, IJCV 57, 2004.)
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tbd.detection.results import Cascade
from tbd.scores.table import ScoreTable

Array = NDArray[np.float64]


def cut(unseen: Iterable[Array], keep: float) -> float:
    """The highest score that at least a share `keep` of the unseen questions reaches, of each reference; NaN does not
    count."""
    ordered = [np.sort(scores[~np.isnan(scores)]) for scores in unseen]
    return float(min(scores[-math.ceil(keep * len(scores) - 1e-9)] for scores in ordered))


def stops(first: Array, cut: float) -> NDArray[np.bool_]:
    """Whether an answer that scores `first` in the first step ends there; not one without a score."""
    return first < cut


def ranked(first: Array, full: Array, cut: float) -> Array:
    """(n,) the score in the first step and that of the whole answer as one: in (-1, 1) by the whole answer, or in
    (-3, -1) by the first step for an answer that stops there. Each keeps its order: s / (1 + |s|)."""
    return np.where(stops(first, cut), _squeezed(first) - 2, _squeezed(full))


def _squeezed(scores: Array) -> Array:
    return np.asarray(scores / (1 + np.abs(scores)))


def scores(table: ScoreTable, method: str, name: str, cascade: Cascade | None, of: str = "checkpoint") -> Array:
    """`ScoreTable.scores`, with the first step counted in where there is one."""
    full = table.scores(method, name, of)
    return full if cascade is None else ranked(table.scores(cascade.id, name, of), full, cascade.cut)


def stopped(table: ScoreTable, name: str, cascade: Cascade) -> NDArray[np.bool_]:
    """(n,) whether the checkpoint's answer stops after the first step, in the order of the set `name`."""
    return stops(table.scores(cascade.id, name), cascade.cut)


def looked_at(table: ScoreTable, name: str, most: int, cascade: Cascade | None) -> NDArray[np.int_]:
    """(n,) tokens of the checkpoint's answers that count, where they have so many: `most`, or the first step's."""
    if cascade is None:
        return np.full(len(table.lengths(name)), most)
    return np.where(stopped(table, name, cascade), min(cascade.m, most), most)

"""Ragged token log-probs as one padded array."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Tokens:
    """Log-probs of n answers of different lengths, padded with NaN: a method reduces them with nan-aware functions."""

    logprobs: Matrix
    """(n, longest) nats, of the generated tokens under the checkpoint"""
    base_logprobs: Matrix | None = None
    """of the same tokens under the model that the checkpoint was distilled from; None without one"""

    def first(self, m: int) -> "Tokens":
        """The first m tokens of each answer; a shorter answer keeps what it has."""
        return Tokens(self.logprobs[:, :m], None if self.base_logprobs is None else self.base_logprobs[:, :m])


def pad(lists: pa.ChunkedArray | pa.ListArray | Sequence[ArrayLike]) -> Matrix:
    """A list column, or a sequence of sequences, as an (n, longest) float64 array padded with NaN.

    >>> pad([[-1.0, -2.0], []]).tolist()
    [[-1.0, -2.0], [nan, nan]]
    """
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    if not isinstance(lists, pa.Array):
        lists = pa.array([np.asarray(row, np.float64) for row in lists], pa.list_(pa.float64()))
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    padded = np.full((len(lengths), max(lengths, default=0)), np.nan)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return padded


def tokens(generations: pa.Table, m: int | None = None) -> Tokens:
    """The log-probs in a table of `records.GENERATIONS`, of the first `m` tokens; the base's if every row has them."""
    own, base = (pc.list_slice(generations[name], 0, m) for name in ("logprobs", "base_logprobs"))
    return Tokens(pad(own), pad(base) if len(base) and not base.null_count else None)

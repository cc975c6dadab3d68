"""An audit's scores as the arrays that a decision needs: of one method and one set, in the order of the set."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from tbd import records
from tbd.errors import InputError
from tbd.workspace import AUDITS

Array = NDArray[np.float64]


class ScoreTable:
    """The scores of one audit, by method id, question set, and whose answers they are of (`checkpoint` or `base`)."""

    def __init__(self, audit: str, table: pa.Table | Path | None = None) -> None:
        """`table` has rows of `records.SCORES`, or is a file of them, of which only what is asked for is read; None:
        what the pipeline stored. Raises InputError without any."""
        self.audit = audit
        self.table = (
            ds.dataset(table)
            if isinstance(table, pa.Table)
            else records.stored_table(table or AUDITS / audit / "scores.parquet", records.SCORES)
        )
        self.generation = records.metadata(self.table)
        """how the answers were made: `engines.Engine.identity` and the decoding parameters"""
        self.sets: dict[str, dict[str, Any]] = self.generation.pop("sets")
        """name, MD5 (as DVC records it) and size of each question set"""

    def methods(self, of: str = "checkpoint") -> list[str]:
        """Method ids, in the order of params.yaml."""
        found: dict[str, None] = {}
        for batch in self.table.to_batches(columns=["method"], filter=pc.field("of") == of):
            found |= dict.fromkeys(batch["method"].unique().to_pylist())
        return list(found)

    def scores(self, method: str, name: str, of: str = "checkpoint") -> Array:
        """(n,) scores of the set `name`, in the order of its questions; NaN for a question without one.

        Raises InputError if the table has none.
        """
        rows = self._column("score", method, name, of)
        if not len(rows):
            raise InputError(
                f"audit {self.audit!r}: no scores of {method} on {name} ({of}). "
                f"Run dvc repro {AUDITS}/{self.audit}/dvc.yaml:score."
            )
        return np.asarray(rows.to_numpy(), np.float64)

    def lengths(self, name: str) -> NDArray[np.int32]:
        """(n,) tokens in the checkpoint's answers to the set `name`, in the order of its questions."""
        return np.asarray(self._column("tokens", self.methods()[0], name).to_numpy(), np.int32)

    def labels(self, name: str) -> NDArray[np.int8] | None:
        """(n,) 1 member, 0 non-member, in the order of the set; None unless every question has one and both occur."""
        column = self._column("label", self.methods()[0], name)
        labels = None if column.null_count else column.to_numpy()
        return labels if labels is not None and len(np.unique(labels)) == 2 else None

    def _column(self, column: str, method: str, name: str, of: str = "checkpoint") -> pa.ChunkedArray:
        rows = (pc.field("of") == of) & (pc.field("method") == method) & (pc.field("set") == name)
        return self.table.to_table(columns=[column], filter=rows)[column]

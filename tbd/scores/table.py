"""An audit's scores as the arrays a decision needs: one method, one set, in the set's own order."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tbd import records
from tbd.errors import InputError
from tbd.workspace import AUDITS

Array = NDArray[np.float64]


class ScoreTable:
    """Scores of one audit, by whose answers (`checkpoint` or `base`), method id and set."""

    def __init__(self, audit: str, table: pa.Table | None = None) -> None:
        """`table`: rows of `records.SCORES`; by default those the pipeline stored.

        Raises InputError if there are none.
        """
        self.audit = audit
        self.table = records.read_table(AUDITS / audit / "scores.parquet", records.SCORES) if table is None else table
        self.generation = records.metadata(self.table)
        """how the answers were made: see `engines.Engine.identity`, and the decoding parameters"""
        self.sets: dict[str, dict[str, Any]] = self.generation.pop("sets")
        """name, MD5 (as DVC records it) and size of each question set"""

    def methods(self, of: str = "checkpoint") -> list[str]:
        """Method ids, in the order of params.yaml."""
        return list(dict.fromkeys(self.table.filter(pc.field("of") == of)["method"].to_pylist()))

    def scores(self, method: str, name: str, of: str = "checkpoint") -> Array:
        """(n,) scores of the set `name`, in the order of its questions; NaN where there is none.

        Raises InputError if absent.
        """
        rows = self.table.filter((pc.field("of") == of) & (pc.field("method") == method) & (pc.field("set") == name))
        if not len(rows):
            raise InputError(
                f"audit {self.audit!r}: no scores of {method} on {name} ({of}). Run dvc repro score@{self.audit}."
            )
        return np.asarray(rows["score"].to_numpy(), np.float64)

    def labels(self, name: str) -> NDArray[np.int8] | None:
        """(n,) 1 member, 0 non-member, in the order of the set; None unless every question has one and both occur."""
        rows = self.table.filter((pc.field("of") == "checkpoint") & (pc.field("set") == name))
        column = rows.filter(pc.field("method") == self.methods()[0])["label"]
        labels = None if column.null_count else column.to_numpy()
        return labels if labels is not None and len(np.unique(labels)) == 2 else None

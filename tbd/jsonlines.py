"""Append-only files of JSON lines that survive a kill: a line counts when its newline is on disk."""

import json
import os
from pathlib import Path
from typing import Any

from tbd.errors import InputError


class JsonLines:
    """One such file, read once; who shares it with others holds a lock meanwhile."""

    def __init__(self, path: Path, computed: bool = False) -> None:
        """Raises InputError naming a line that is not JSON.

        A last line that was cut off is dropped when the next is added.

        `computed`: what the lines hold can be computed again, so the file ends before the first that is not JSON, and
        numbers may be NaN or infinite.
        """
        self.path, self._computed = path, computed
        self.values: list[Any] = []
        self._whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else [], start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self.values.append(json.loads(line))
            except ValueError:
                if computed:
                    break
                raise InputError(f"{path}, line {number}: not JSON. Restore the file.") from None
            self._whole += len(line)

    def append(self, value: Any) -> None:
        """Add a line; it is on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(self._whole)
            file.write(json.dumps(value, ensure_ascii=False, allow_nan=self._computed).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
        self.values.append(value)

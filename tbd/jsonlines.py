"""Append-only files of JSON lines that survive a kill: a line counts when its newline is on disk."""

import json
import os
from pathlib import Path
from typing import Any

from tbd.errors import InputError, TransientFault
from tbd.records import on_disk


class JsonLines:
    """One such file, read once; who shares it with others holds a lock meanwhile."""

    def __init__(self, path: Path, computed: bool = False) -> None:
        """A last line that a kill, a full disk or a power cut left unfinished is dropped when the next is added.

        Raises InputError naming any other line that is not JSON.

        `computed`: what the lines hold can be computed again, so that is a TransientFault, and no checkpoint's fault;
        and numbers may be NaN or infinite.
        """
        self.path, self._computed = path, computed
        self.values: list[Any] = []
        self._whole = 0
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                torn = computed or not line.endswith(b"\n") or b"\0" in line  # what was never written reads as zeros
                if torn and number == len(lines):
                    break
                if computed:
                    why = "not JSON, so this disk or somebody damaged it. Remove the file: it is computed again."
                    raise TransientFault(f"{path}, line {number}: {why}") from None
                raise InputError(f"{path}, line {number}: not JSON. Restore the file.") from None
            if not line.endswith(b"\n"):
                break
            self.values.append(value)
            self._whole += len(line)

    def append(self, value: Any) -> None:
        """Add a line; it is on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("ab") as file:
            file.truncate(self._whole)
            file.write(json.dumps(value, ensure_ascii=False, allow_nan=self._computed).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
        if new:
            on_disk(self.path.parent, self.path.parent.parent)
        self.values.append(value)

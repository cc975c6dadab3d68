"""Append-only files of JSON lines that survive a kill: a line counts when its newline is on disk."""

import json
import os
from pathlib import Path
from typing import Any

from tbd.errors import InputError
from tbd.records import on_disk


class JsonLines:
    """One such file, read once; who shares it with others holds a lock meanwhile."""

    def __init__(self, path: Path) -> None:
        """A last line that a kill, a full disk or a power cut left unfinished is dropped when the next is added.

        Raises InputError naming any other line that is no JSON object.
        """
        self.path = path
        self.values: list[Any] = []
        self._whole = 0
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                if not isinstance(value := json.loads(line), dict):
                    raise ValueError
            except (ValueError, RecursionError):
                torn = not line.endswith(b"\n") or b"\0" in line  # what was never written reads as zeros
                if torn and number == len(lines):
                    break
                raise InputError(f"{path}, line {number}: no JSON object. Restore the file.") from None
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
            file.write(json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
        if new:
            on_disk(self.path.parent, self.path.parent.parent)
        self.values.append(value)

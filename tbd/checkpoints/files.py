"""The files of a checkpoint folder, looked at without opening any: what is no regular file may hang its reader."""

import os
import stat
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from tbd.errors import InputError, TransientFault, is_fault

MOST = 100_000
"""files; no checkpoint has as many"""
KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def shown(name: str) -> str:
    """The name of a file as text that every file can hold: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def scan(folder: Path, parts: tuple[str, ...] = ("*",)) -> list[tuple[str, os.stat_result]]:
    """The folder, its files that match one of the patterns `parts`, and the folders these lie in; sorted, with names.

    Links to files are followed, links to folders are not. Raises FileNotFoundError if something goes away meanwhile,
    InputError naming the first file that is not regular, may not be read, or has a name that is not UTF-8, and
    TransientFault if the disk fails.
    """
    found: dict[str, os.stat_result] = {}
    left, count, name = [""], 0, ""
    try:
        while left:
            within = name = left.pop()
            with os.scandir(folder / within) as entries:
                inside = sorted(entry.name for entry in entries)
            count += len(inside)
            if count > MOST:
                raise ValueError(f"more than {MOST} files, so not a checkpoint")
            if not within:
                found[""] = os.stat(folder)
            for entry in inside:
                name = os.path.join(within, entry)
                kind = _stat(folder / name)
                _refuse(kind, entry)
                if stat.S_ISDIR(kind.st_mode):
                    if not (folder / name).is_symlink():
                        left.append(name)
                elif any(fnmatch(entry, part) for part in parts):
                    found[name] = kind
                    found[within] = os.stat(folder / within)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        file = shown(str(folder / name))
        text = f"{file[:200]}{'...' if len(file) > 200 else ''}: {why}. Mend it, or take it away."
        raise (TransientFault if is_fault(error) else InputError)(text) from None
    return sorted(found.items())


def _stat(file: Path) -> os.stat_result:
    """Of the file that a link points to, or of the link itself if it points to nothing."""
    try:
        return os.stat(file)
    except FileNotFoundError:
        return os.lstat(file)


def _refuse(kind: os.stat_result, name: str) -> None:
    """Raise ValueError for what is not a regular file with a name in UTF-8."""
    for test, what in KINDS:
        if test(kind.st_mode):
            raise ValueError(f"{what}, not a regular file")
    if shown(name) != name:
        raise ValueError("a name that is not UTF-8")

"""Where things lie in a workspace, which is the folder that tbd runs in, and which names they may have."""

import os
import re
import shutil
from pathlib import Path

from tbd.errors import InputError, TransientFault

SETS = Path("data/sets")
AUDITS = Path("audits")
DETECTOR = Path("detector/detector.json")
STATE = Path(".tbd")
"""this workspace's own: locks, finished answers, what is to be told"""
UNITS = STATE / "units"
"""answers that models have finished, see `tbd.generation.store`"""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.IGNORECASE)
NUMBER = re.compile(r"\d[\d_]*e[\d_]+|0o[0-7_]+|0[\d_]*[89][\d_]*", re.IGNORECASE)
"""what DVC's YAML reader takes for a number and ours, which writes the audits, for a text"""


def check_name(name: str, what: str) -> str:
    """`name`, if it is a plain name. Raises InputError for one that could leave its folder or break a stage name."""
    if not NAME.fullmatch(name):
        raise InputError(f"{what} {name!r}: use letters, digits, - and _ (at most 63, a letter or digit first).")
    if NUMBER.fullmatch(name):
        raise InputError(f"{what} {name!r}: reads as a number in a YAML file. Put a letter in front.")
    return name


def set_path(name: str) -> Path:
    """Where the question set `name` lies."""
    return SETS / f"{name}.parquet"


def relative(folder: Path) -> str:
    """`folder` as it is written into files: relative inside the workspace, absolute outside."""
    absolute, root = Path(os.path.abspath(folder)), Path.cwd()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def room(folder: Path, needed: int, what: str) -> None:
    """Raise TransientFault unless `needed` bytes are free where `folder` is or will be."""
    absolute = folder.absolute()
    free = shutil.disk_usage(next(path for path in (absolute, *absolute.parents) if path.exists())).free
    if free < needed:
        raise TransientFault(
            f"{folder}: no room for {what}: about {size(needed)} needed, {size(free)} free. Make room; `tbd prune` "
            "takes away what tbd can do without."
        )


def size(count: float) -> str:
    """Bytes in words.

    >>> size(999), size(1.25e6), size(60e9)
    ('1 kB', '1.2 MB', '60 GB')
    """
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= s or u == "kB")
    return f"{count / scale:.1f} {unit}" if 1 <= count / scale < 10 else f"{count / scale:.0f} {unit}"

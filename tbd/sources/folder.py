"""A folder of checkpoint folders, on this machine or one that is mounted here."""

import os
from pathlib import Path

from tbd.errors import InputError
from tbd.records import sha256
from tbd.sources import Found
from tbd.workspace import relative


class Folder:
    """See `tbd.sources.Source`. Every sub-folder that is not hidden is a checkpoint; or the folder itself is one."""

    def __init__(self, address: str) -> None:
        self.folder = Path(address)

    def look(self) -> list[Found]:
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder}: no such folder to look for checkpoints in. Make it, or correct the address."
            )
        folders = [path for path in self.folder.iterdir() if path.is_dir() and path.name[0] != "."]
        if (self.folder / "config.json").is_file():
            folders = [self.folder]
        return sorted(filter(None, map(found_in, folders)), key=lambda found: (found.changed, found.name))

    def fetch(self, found: Found) -> Path:
        return Path(found.place)


def found_in(folder: Path) -> Found | None:
    """A checkpoint folder as it is now; None if it was removed meanwhile."""
    try:
        stats = sorted((str(file.relative_to(folder)), _stat(file)) for file in [folder, *folder.rglob("*")])
    except FileNotFoundError:
        return None
    # ctime as well as mtime, because a copy may keep the old mtime
    seen = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats]
    changed = max(stat.st_ctime for _, stat in stats)
    place = relative(folder)
    return Found(folder.resolve().name, place, place, sha256(repr(seen)), changed)


def _stat(file: Path) -> os.stat_result:
    """Of the file that a link points to, or of the link itself if it points to nothing."""
    try:
        return file.stat()
    except FileNotFoundError:
        return file.lstat()

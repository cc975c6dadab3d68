"""A folder of checkpoint folders, on this machine or one that is mounted here."""

import os
from pathlib import Path

from tbd.errors import InputError
from tbd.records import sha256
from tbd.sources import Found
from tbd.workspace import relative


class Folder:
    """See `tbd.sources.Source`. Every sub-folder is a checkpoint; hidden ones and plain files are not."""

    def __init__(self, address: str) -> None:
        self.folder = Path(address)

    def look(self) -> list[Found]:
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder}: no such folder to look for checkpoints in. Make it, or correct the address."
            )
        alone = (self.folder / "config.json").is_file()
        folders = (
            [self.folder]
            if alone
            else [path for path in self.folder.iterdir() if path.is_dir() and path.name[0] != "."]
        )
        return sorted(
            (found for found in map(found_in, folders) if found), key=lambda found: (found.changed, found.name)
        )

    def fetch(self, found: Found) -> Path:
        return Path(found.place)


def found_in(folder: Path) -> Found | None:
    """None if the folder was removed meanwhile."""
    try:
        stats = sorted((str(file.relative_to(folder)), _stat(file)) for file in [folder, *folder.rglob("*")])
    except FileNotFoundError:
        return None
    # the time of change (ctime) as well: a copy may keep the old modification times (mtime) although it was made just
    # now
    version = sha256(
        repr([(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats])
    )
    changed = max(stat.st_ctime for _, stat in stats)
    place = relative(folder)
    return Found(folder.resolve().name, place, place, version, changed)


def _stat(file: Path) -> os.stat_result:
    """Of what a link points to, or of the link itself if it points to nothing."""
    try:
        return file.stat()
    except FileNotFoundError:
        return file.lstat()

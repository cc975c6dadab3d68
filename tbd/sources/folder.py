"""A folder of checkpoint folders, on this machine or one that is mounted here."""

import os
from pathlib import Path

from tbd.checkpoints import ADAPTER_CONFIG, IDENTITY, PICKLES, files
from tbd.checkpoints.files import shown
from tbd.errors import InputError, TransientFault, is_fault
from tbd.foreign import deceives, plain
from tbd.records import sha256
from tbd.sources import Found
from tbd.workspace import relative


class Folder:
    """See `tbd.sources.Source`. Every sub-folder that is not hidden is a checkpoint; or the folder itself is one, and
    those sub-folders that look like one, as trainers leave them beside the last model.

    Only files that decide what a checkpoint is count as changes: a log may grow beside them.
    """

    def __init__(self, address: str) -> None:
        self.folder = Path(address)

    def look(self) -> list[Found]:
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder}: no such folder to look for checkpoints in. Make it, or correct the address."
            )
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry in entries if entry.name[0] != "." and _a_folder(entry)]
        except OSError as error:
            kind = TransientFault if is_fault(error) else InputError
            raise kind(f"{self.folder}: cannot be looked at ({error.strerror}). Mend it there.") from None
        folders = [self.folder / name for name in names]
        if _has_config(self.folder):
            folders = [self.folder, *filter(_has_config, folders)]
        return sorted(filter(None, map(found_in, folders)), key=lambda found: (found.changed, found.name))

    def fetch(self, found: Found) -> Path:
        return Path(found.place)


def found_in(folder: Path) -> Found | None:
    """A checkpoint folder as it is now; None if something in it was removed just now."""
    there = os.path.exists(folder)
    name = shown(os.path.basename(os.path.realpath(folder) if there else folder))
    place = shown(relative(folder))
    try:
        if shown(folder.name) != folder.name:
            raise InputError(f"{place}: a name that is not UTF-8. Rename it.")
        if deceives(folder.name):
            raise InputError(f"{plain(place)}: control or invisible characters in a name. Rename it.")
        if not there and folder.is_symlink():
            raise InputError(f"{place}: a link that leads nowhere. Mend it, or take it away.")
        stats = files.scan(folder, (*IDENTITY, *PICKLES))
    except FileNotFoundError:
        return None
    except (InputError, TransientFault) as error:
        return Found(name, place, place, sha256(str(error)), trouble=error)
    # ctime as well as mtime, because a copy may keep the old mtime
    seen = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats]
    times = [stat.st_ctime for _, stat in stats]
    return Found(name, place, place, sha256(repr(seen)), max(times), min(times))


def _a_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, or a link that leads nowhere, or to where nobody can tell."""
    if not entry.is_symlink():
        return entry.is_dir()
    return os.path.isdir(entry.path) or not os.path.exists(entry.path)


def _has_config(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in ("config.json", ADAPTER_CONFIG))

"""Locks between processes, as files: they end with their process, however that ends."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tbd.errors import TransientFault

PATIENCE = 86400.0
"""seconds to wait for others"""
TOLD = 10.0
"""seconds after which it is said that one waits"""

Say = Callable[[str], None]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} hours"


def told(line: str) -> None:
    print(line, flush=True)


@contextmanager
def locked(path: Path, patience: float | None = PATIENCE, say: Say = told) -> Iterator[int | None]:
    """Hold the lock; yields its file descriptor, which a child may inherit.

    Waits for another process up to `patience` seconds, and says so. With None it does not wait, and yields None where
    another holds it. Raises TransientFault if that is still so in the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        free, start, waits = _take(file.fileno()), time.monotonic(), False
        while not free and patience is not None:
            waited = time.monotonic() - start
            if waited > patience:
                raise TransientFault(f"{path}: another process held it for {_hours(waited)}. End that one if it hangs.")
            if waited > TOLD and not waits:
                say(f"waiting for another process to release {path}, at most {_hours(patience)}")
                waits = True
            time.sleep(min(0.02 + waited / 10, 1.0))
            free = _take(file.fileno())
        yield file.fileno() if free else None


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def device(slots: int, patience: float = PATIENCE) -> Iterator[None]:
    """Hold one of the slots in which a user's workspaces use this machine's devices.

    Waits for it up to `patience` seconds, and says so; then raises TransientFault.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tbd"
    start, waits = time.monotonic(), False
    while True:
        for slot in range(slots):
            with locked(folder / f"device-{slot}.lock", None) as file:
                if file is not None:
                    yield
                    return
        waited = time.monotonic() - start
        if waited > patience:
            raise TransientFault(
                f"the device: all slots were taken for {_hours(waited)} (serve.device_slots: {slots})."
            )
        if not waits:
            print(f"waiting for the device: all slots are taken (serve.device_slots: {slots})", flush=True)
            waits = True
        time.sleep(1)

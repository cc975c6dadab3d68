"""Locks between processes, as files: they end with their process, however that ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int | None]:
    """Hold the lock; yields its file descriptor, which a child may inherit.

    Without `wait`: None where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            free = False
        else:
            free = True
        yield file.fileno() if free else None


@contextmanager
def device(slots: int) -> Iterator[None]:
    """Hold one of the slots in which a user's workspaces use this machine's devices; waits for it, and says so."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tbd"
    waited = False
    while True:
        for slot in range(slots):
            with locked(folder / f"device-{slot}.lock", wait=False) as file:
                if file is not None:
                    yield
                    return
        if not waited:
            print(f"waiting for the device: all slots are taken (serve.device_slots: {slots})", flush=True)
            waited = True
        time.sleep(1)

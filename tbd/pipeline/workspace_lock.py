"""One process at a time works in a workspace, also where several machines or containers share its folder.

The lock says who holds it: host, boot, process space and start time. A stage that a killed run left behind is ended
only if all of that matches, because the same process number on another host or in another container is another process.
Otherwise we wait.
"""

import fcntl
import json
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tbd.errors import InputError
from tbd.locks import Say, locked
from tbd.records import atomic
from tbd.workspace import STATE

LOCK = STATE / "lock"
RWLOCK = Path(".dvc/tmp/rwlock")
PATIENCE = 30.0
"""seconds to wait for another run"""

ENDING = ((5.0, signal.SIGINT), (15.0, signal.SIGTERM), (math.inf, signal.SIGKILL))
"""up to so many seconds of waiting, how a stage that was left behind is told to end"""

_holding: list[int] = []
"""the lock's file descriptor, while this process holds it"""


def here() -> list[str] | None:
    """Host, boot and process space, within which a process number means one process; None if not known."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # /proc belongs to another process space
            return None
        return [
            socket.gethostname(),
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    except OSError:
        return [socket.gethostname(), str(int(psutil.boot_time()))] if not Path("/proc").is_dir() else None


def note(lock: int, dvc: int | None = None) -> None:
    """Write into the lock who holds it: this process, and the DVC (a process group) that it started."""
    place = here()
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "here": place}
    if place is not None:
        holder |= {"started": _started(os.getpid()), "group": dvc, "group_started": _started(dvc)}
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(holder).encode(), 0)


def _started(process: int | None) -> float | None:
    """When a process started, on a clock that nobody sets; None if there is none, or only a zombie.

    On Linux ticks since the boot that `here` names: psutil counts from a time that moves when the clock is set.
    """
    try:
        if Path("/proc/self").exists():
            state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            return None if state == "Z" else float(fields[18])
        found = psutil.Process(process) if process is not None else None
        return float(found.create_time()) if found is not None and found.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, psutil.Error):
        return None


def _holder() -> dict[str, Any]:
    """What the lock file says about its holder; empty if it says nothing."""
    try:
        holder = json.loads(LOCK.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _killed(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this host, boot and process space that has ended."""
    place = here()
    return place is not None and holder.get("here") == place and _started(holder["pid"]) != holder["started"]


@contextmanager
def workspace(say: Say = print, patience: float | None = None) -> Iterator[int]:
    """Hold the workspace; yields the lock's file descriptor, for DVC to inherit.

    A process that holds it already just goes on.

    A DVC that outlives a killed run keeps holding the lock, so nothing else writes the same files meanwhile. A stage
    that a killed run left behind on this machine is ended. For any other holder this waits up to `patience` (default:
    PATIENCE) seconds. Raises InputError if the lock is still held then.
    """
    if _holding:
        yield _holding[0]
        return
    patience = PATIENCE if patience is None else patience
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as file:
        _wait(file.fileno(), say, patience)
        note(file.fileno())
        _holding.append(file.fileno())
        try:
            _mend()
            yield file.fileno()
        finally:
            _holding.clear()
            file.truncate(0)  # else the next holder would take our finished stages for ones left behind


def _wait(lock: int, say: Say, patience: float) -> None:
    start, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder()
        waited = time.monotonic() - start
        who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
        if waited > patience:
            raise InputError(f"workspace busy: {who} is at work here. Try again when it is done.")
        group = holder.get("group")
        if group and _killed(holder) and _started(group) == holder["group_started"]:
            say(f"{who} was killed: ending the stage it left behind")
            with suppress(ProcessLookupError):  # an interrupt lets DVC give back its own locks
                os.killpg(group, next(how for end, how in ENDING if waited < end))
        elif not told:
            say(f"waiting for {who} to finish with this workspace")
            told = True
        time.sleep(1)


def _mend() -> None:
    """Repair DVC's own lock file if a kill left it half written, or naming a process that has ended.

    We hold the workspace, so only a `dvc` that somebody started by hand can be using that file now.
    """
    for patience in (1.0, 0.0):  # it may be just writing the file
        try:
            held = json.loads(RWLOCK.read_text("utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(patience)
        else:
            break
    else:
        RWLOCK.unlink(missing_ok=True)
        return
    living = {
        "read": {
            path: left
            for path, by in held.get("read", {}).items()
            if (left := [one for one in by if _started(one["pid"])])
        },
        "write": {path: by for path, by in held.get("write", {}).items() if _started(by["pid"])},
    }
    if any(living[mode] != paths for mode, paths in held.items()):
        with atomic(RWLOCK) as temporary:
            temporary.write_text(json.dumps(living), "utf-8")


def idle() -> bool:
    """Whether no living process works in this workspace; a stage that a killed process left behind does not count."""
    with locked(LOCK, None) as free:
        return free is not None or _killed(_holder())

"""How a process of ours ends when it is told to: within seconds, and with everything it started.

SIGHUP is taken as SIGTERM, and SIGTERM as Ctrl-C, so what was opened is closed on the way out. But while a flow runs
Prefect takes SIGTERM for itself, and a way out may be blocked (by a server that ended first) or cut short (by a second
signal). So a thread learns of the first signal as well, whoever takes it, and ends in the end what is still there.
"""

import atexit
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

WORDS = "interrupted; the same command goes on where it stopped"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 4.0
"""seconds a command has to end by itself"""
LAST = 1.5
"""seconds that what it started has, when told"""

_pipe: int | None = None
"""from which the number of each signal is read, whoever takes it"""
_told: int | None = None
"""the first signal that came"""
_code: int | None = None
"""what the command exits with, once it knows"""
_started: set[psutil.Process] = set()
"""what this process had started when it was told: one that loses its parent on the way out is not found any more"""
_hearing = threading.Lock()
_out = threading.Event()
"""the way out has come to its end"""


def prepare() -> None:
    """From now on this process, which is a command of its own, ends as the module says."""
    global _pipe
    # also where a script starts it with `&`, and it would be ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    _pipe, writing = os.pipe()
    os.set_blocking(_pipe, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    atexit.register(_finish)  # registered first, so it runs last
    threading.Thread(target=_watch, args=(_pipe,), daemon=True).start()


def told() -> int | None:
    """The first signal that told this process to end, if one did."""
    global _told
    with _hearing, suppress(BlockingIOError):  # nothing new
        if _pipe is not None and _told is None:
            # not an alarm of Prefect's
            _told = next((number for number in os.read(_pipe, 100) if number in SIGNALS), None)
    return _told


def code(otherwise: int) -> int:
    """What the command exits with: 128 and the signal's number after SIGTERM and SIGHUP."""
    global _code
    number = told()
    _code = otherwise if number is None or number == signal.SIGINT else 128 + number
    return _code


def _watch(pipe: int) -> None:
    """Wait for the first signal; and if the way out then takes too long, end without it."""
    make = _make()
    caught = _caught(make)
    while not told():
        select.select([pipe], [], [], 1 if make else None)
        if make and not told() and (os.getppid() != make or _caught(make) != caught):
            os.kill(os.getpid(), signal.SIGTERM)
    _started.update(psutil.Process().children(recursive=True))
    if not _out.wait(PATIENCE):
        _end()


def _finish() -> None:
    if not told():
        return
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    _out.set()
    _end()


def _end() -> None:
    """End what this process started, and this process."""
    end_descendants(_started)
    if _code is None:  # cut off on its way out
        print(f"error: {WORDS}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code(3) if _code is None else _code)


def end_descendants(also: Iterable[psutil.Process] = ()) -> None:
    """End what this process started, and what that started: told first, killed after LAST seconds."""
    for tell in (psutil.Process.terminate, psutil.Process.kill):
        processes = {*also, *psutil.Process().children(recursive=True)}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                tell(process)
        end = time.monotonic() + LAST
        while any(_runs(process) for process in processes) and time.monotonic() < end:
            time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# --- those above, who end without saying so ---------------------------------------------------------------------------


def _make() -> int | None:
    """The GNU make that runs this command, on Linux.

    Told to end by SIGINT or SIGHUP alone, make tells nobody: it waits for us, and takes that signal no more.
    """
    above = os.getppid()
    try:
        name = Path(f"/proc/{above}/comm").read_text()
    except OSError:
        return None
    return above if "MAKELEVEL" in os.environ and "make" in name else None


def _caught(process: int | None) -> str | None:
    """The signals that a process takes itself, as Linux writes it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((line for line in lines if line.startswith("SigCgt:")), None)


def with_dvc() -> None:
    """End this stage with the DVC that runs it, which leaves it to itself when SIGTERM or SIGHUP ends it.

    The journal goes on.
    """
    if "DVC_STAGE" not in os.environ:
        return
    try:
        writing = json.loads((Path(os.environ["DVC_ROOT"]) / ".dvc/tmp/rwlock").read_text("utf-8"))["write"]
        dvc = {int(one["pid"]) for one in writing.values()}
    except (OSError, ValueError, KeyError):
        return  # another DVC writes there just now, or this one keeps its locks elsewhere

    def watch() -> None:
        while any(process.pid in dvc for process in psutil.Process().parents()):
            time.sleep(1)
        print("error: the DVC that ran this stage has ended", file=sys.stderr, flush=True)
        end_descendants()
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()

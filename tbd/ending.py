"""How a command ends when a signal tells it to: within seconds, and with every process it started.

SIGHUP is handled like SIGTERM, and SIGTERM like Ctrl-C, so that what is open gets closed. That may not be enough: while
a flow runs Prefect handles SIGTERM itself, and closing may hang (on a server that ended first) or be cut short (by a
second signal). So a thread notices the first signal too, whoever handles it, and after a while ends what is left. Nor
does a command whose work is done wait for ever for what does not close.
"""

import atexit
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

WORDS = "interrupted; the same command goes on where it stopped"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 4.0
"""seconds in which a command may end by itself"""
LAST = 1.5
"""seconds between telling its processes to end and killing them"""

CLOSING = 30.0
"""seconds in which a command that is done may close what is open: Prefect waits for a killed server for ever"""

_pipe: int | None = None
"""gives the number of each signal, whoever handles it"""
_told: int | None = None
"""the first signal that came"""
_code: int | None = None
"""the exit code of the command, once it is known"""
_started: set[psutil.Process] = set()
"""the descendants of this process when the signal came: one that loses its parent could not be found later"""
_guards: "list[subprocess.Popen[bytes]]" = []
"""one that is forgotten would end what it guards"""
MARK = "TBD_ENDS_WITH"
"""in the environment of what ends with this process"""
_hearing = threading.Lock()
_out = threading.Event()
"""the command has ended by itself, apart from its processes"""


def prepare() -> None:
    """From now on this process, a command, ends as the module says."""
    global _pipe
    # a script that starts it with `&` would have it ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which nohup asks for
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
    with _hearing, suppress(BlockingIOError):  # no signal came
        if _pipe is not None and _told is None:
            # Prefect uses other signals, as an alarm
            _told = next((number for number in os.read(_pipe, 100) if number in SIGNALS), None)
    return _told


def code(otherwise: int) -> int:
    """The exit code: 128 plus the signal's number after SIGTERM and SIGHUP, else `otherwise`."""
    global _code
    number = told()
    if _code is None and _pipe is not None:
        threading.Thread(target=_close, daemon=True).start()
    _code = otherwise if number is None or number == signal.SIGINT else 128 + number
    return _code


def _close() -> None:
    time.sleep(CLOSING)
    _end()


def _watch(pipe: int) -> None:
    """Wait for the first signal, and end the process if it does not end by itself in time."""
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
    if _code is None:  # it was cut off before it knew its exit code
        print(f"error: {WORDS}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # if nobody reads it any more
            stream.flush()
    os._exit(code(3) if _code is None else _code)


def end_descendants(also: Iterable[psutil.Process] = ()) -> None:
    """End all descendants of this process, and `also`: they are told to, and killed after LAST seconds."""
    for tell in (psutil.Process.terminate, psutil.Process.kill):
        processes = {*also, *psutil.Process().children(recursive=True)}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                tell(process)
        end = time.monotonic() + LAST
        while any(_runs(process) for process in processes) and time.monotonic() < end:
            time.sleep(0.05)


def end_group(leader: "subprocess.Popen[Any] | psutil.Process", patience: float = 10.0) -> None:
    """Tell a process group to end, and kill what of it has not ended after `patience` seconds."""
    group: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(leader.pid)
        group = [one for one in (process, *process.children(recursive=True)) if _group(one) == leader.pid]
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, how)
        end = time.monotonic() + patience
        while any(_runs(one) for one in group) and time.monotonic() < end:
            time.sleep(0.05)
    if hasattr(leader, "poll"):  # a child of this process
        leader.poll()  # None where not even that helps, as where its disk hangs: it is not waited for


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def tied() -> Iterator[None]:
    """Have what is started meanwhile end with this process, even if that is killed: a guard waits for it.

    It knows them by a mark in their environment, so it need not be told of each: this process may be killed before it
    could.
    """
    mark = secrets.token_hex(16)
    own = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path)}
    guard = subprocess.Popen(
        [sys.executable, "-m", "tbd.ending", mark],
        env=os.environ | own,
        stdin=subprocess.PIPE,  # closes when this process ends, however it does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _guards.append(guard)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]


def _guard(mark: str) -> None:
    sys.stdin.buffer.read()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


# --- parents that end without telling ---------------------------------------------------------------------------------


def _make() -> int | None:
    """The GNU make that runs this command, on Linux.

    When make gets SIGINT or SIGHUP, it does not tell this command to end: it waits for it, and catches that signal no
    more.
    """
    above = os.getppid()
    try:
        name = Path(f"/proc/{above}/comm").read_text()
    except OSError:
        return None
    return above if "MAKELEVEL" in os.environ and "make" in name else None


def _caught(process: int | None) -> str | None:
    """The signals that a process catches, as Linux writes them."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((line for line in lines if line.startswith("SigCgt:")), None)


def with_dvc() -> None:
    """End this stage when the DVC that runs it ends, which says nothing to its stages on SIGTERM and SIGHUP."""
    if "DVC_STAGE" not in os.environ:
        return
    try:
        writing = json.loads((Path(os.environ["DVC_ROOT"]) / ".dvc/tmp/rwlock").read_text("utf-8"))["write"]
        dvc = {int(one["pid"]) for one in writing.values()}
    except (OSError, ValueError, KeyError):
        return  # another DVC is writing that file, or this one keeps its locks elsewhere

    def watch() -> None:
        while any(process.pid in dvc for process in psutil.Process().parents()):
            time.sleep(1)
        print("error: the DVC that ran this stage has ended", file=sys.stderr, flush=True)
        end_descendants()
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _guard(sys.argv[1])

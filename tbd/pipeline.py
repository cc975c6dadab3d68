"""The pipeline as DVC names it: which stages there are, in which order, and running one of them.

The order is written once, in dvc.yaml; this module asks DVC for it. One process at a time works in a workspace.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from pathlib import Path

from tbd.errors import PASSING, InputError, StageFailed
from tbd.locks import locked
from tbd.params import load_yaml

LOCK = Path(".tbd/lock")
RWLOCK = Path(".dvc/tmp/rwlock")
PATIENCE = 30.0
"""seconds to wait for another run"""

HINT = re.compile(r"To (track|enable) .*, run:|\s+(git add|dvc config core.autostage) |Use `dvc push`")
"""DVC's advice after every stage, which nobody needs who reads a log"""

Say = Callable[[str], None]


def environment() -> dict[str, str]:
    """What DVC and its stages run in: this Python first on PATH, unbuffered, no analytics."""
    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": bin_folder + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
    }


def dvc(*arguments: str) -> str:
    """Output of a DVC command. Raises InputError with DVC's own last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tbd.faster_dvc", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise InputError(f"dvc {' '.join(arguments)}: {lines[-1].removeprefix('ERROR: ')}")
    return done.stdout


def order(*targets: str) -> list[str]:
    """The stages that `targets` need, and the targets, upstream first. Raises InputError for a stage that is not there."""
    upstream: dict[str, set[str]] = {}
    for line in dvc("dag", "--dot").splitlines():
        match re.findall(r'"([^"]+)"', line):
            case [stage]:
                upstream.setdefault(stage, set())
            case [before, after]:
                upstream.setdefault(before, set())
                upstream.setdefault(after, set()).add(before)
    missing = [target for target in targets if target not in upstream]
    if missing:
        raise InputError(f"dvc.yaml: no stage {missing[0]!r}.")
    needed: set[str] = set()
    todo = list(targets)
    while todo:
        stage = todo.pop()
        if stage not in needed:
            needed.add(stage)
            todo.extend(upstream[stage])
    stages = TopologicalSorter({stage: sorted(upstream[stage]) for stage in sorted(needed)}).static_order()
    return [stage for stage in stages if not stage.endswith(".dvc")]


def locked_files(stage: str) -> dict[Path, str]:
    """The single-file outputs of a stage with the MD5 that dvc.lock holds for each. Raises InputError if it never ran."""
    stages = (load_yaml(Path("dvc.lock")) or {}).get("stages", {})
    if stage not in stages:
        raise InputError(f"dvc.lock: nothing of stage {stage}. Run dvc repro {stage} first.")
    outs = stages[stage].get("outs", [])
    return {Path(out["path"]): out["md5"] for out in outs if not out["md5"].endswith(".dir")}


_holding: list[int] = []
"""the lock's file descriptor, while this process holds it"""


@contextmanager
def workspace(say: Say = print, patience: float | None = None) -> Iterator[int]:
    """Hold the workspace; yields the lock's file descriptor, which every child inherits. Who holds it already just goes on.

    A child that outlives a killed run so keeps holding it: nothing else writes the same files meanwhile. What a killed run left
    behind is ended; for a run that is alive this waits up to `patience` (default: PATIENCE) seconds. Raises InputError if it is
    still there then.
    """
    if _holding:
        yield _holding[0]
        return
    patience = PATIENCE if patience is None else patience
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as file:
        start = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder, _, group = file.read().partition(" ")
                waited = time.monotonic() - start
                if waited > patience:
                    raise InputError(
                        f"workspace busy: process {holder or 'unknown'} is at work here. Try again when it is done."
                    ) from None
                if group and not _alive(holder):
                    say(f"process {holder} was killed: ending the stage it left behind")
                    with suppress(ProcessLookupError):  # an interrupt lets DVC give back its own locks
                        os.killpg(int(group), signal.SIGINT if waited < 5 else signal.SIGTERM)
                elif waited < 0.5:
                    say(f"waiting for process {holder} to finish with this workspace")
                time.sleep(1)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        _holding.append(file.fileno())
        try:
            _mend()
            yield file.fileno()
        finally:
            _holding.clear()
            file.truncate(0)  # who reads this next must not take our finished stages for ones left behind


def _mend() -> None:
    """DVC's own lock file, where a kill left it half written: DVC would refuse to do anything. Nobody else is at work here now."""
    for patience in (1.0, 0.0):  # unless somebody's own `dvc` is just writing it
        try:
            json.loads(RWLOCK.read_text("utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(patience)
        else:
            return
    RWLOCK.unlink(missing_ok=True)


def idle() -> bool:
    """Whether no process that is alive works in this workspace; a stage that a killed one left behind does not count."""
    with locked(LOCK, wait=False) as free:
        return free is not None or not _alive(LOCK.read_text().partition(" ")[0])


@contextmanager
def device(slots: int, say: Say) -> Iterator[int]:
    """One of the slots in which stages use this machine's devices; yields the file descriptor that holds it.

    All workspaces of a user on one machine share the slots. The kernel takes a lock back from a process that was killed; a limit that
    a server keeps would not come back from a server that was.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tbd"
    waited = False
    while True:
        for slot in range(slots):
            with locked(folder / f"device-{slot}.lock", wait=False) as file:
                if file is not None:
                    yield file
                    return
        if not waited:
            say(f"waiting for the device: all slots are taken (serve.device_slots: {slots})")
            waited = True
        time.sleep(1)


def _alive(pid: str) -> bool:
    """Whether the process runs; where the system does not say, it does."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()


def run_stage(stage: str, lock: int, say: Say, slots: int | None = None) -> bool:
    """Bring one stage up to date, its output line by line to `say`. Returns whether its command ran.

    `slots`: how many stages may use a device at once, for one that may; this one waits for its turn.

    Raises:
        StageFailed: it did not; the message is the stage's own last word.
    """
    if slots is None:
        return _run_stage(stage, [lock], say)
    with device(slots, say) as slot:
        return _run_stage(stage, [lock, slot], say)


def _run_stage(stage: str, held: list[int], say: Say) -> bool:
    """The stage inherits the locks in `held`, the workspace's first: what it still does after we are killed, nobody else does too."""
    lock = held[0]
    process = subprocess.Popen(
        [sys.executable, "-m", "tbd.faster_dvc", "repro", "--single-item", stage],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=held,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()} {process.pid}".encode(), 0)  # who to wait for, and what to end if we are killed
    lines: list[str] = []
    try:
        for line in process.stdout:
            if line.strip() and not HINT.match(line):
                lines.append(line.rstrip())
                say(lines[-1])
        code = process.wait()
    finally:
        if process.poll() is None:  # interrupted: the stage goes with us
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if code < 0:
        raise StageFailed(f"stage {stage}: ended by signal {-code}", passing=True)
    if code:
        raise _failure(stage, lines)
    return any(line.startswith("Running stage") for line in lines)


def _failure(stage: str, lines: list[str]) -> StageFailed:
    """DVC always exits with 255; the stage's own code and words are in what was printed."""
    exits = [match.group(1) for line in lines if (match := re.search(r"exited with (-?\d+)", line))]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    words = own or [line.removeprefix("ERROR: ") for line in lines[-3:]]
    message = f"stage {stage}: {words[-1] if own else ' '.join(words)}"
    code = int(exits[-1]) if exits else 0
    return StageFailed(message, bad_input=code == 2, passing=code == PASSING or code < 0)  # below 0: ended by a signal

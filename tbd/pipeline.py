"""The pipeline as DVC runs it, seen stage by stage. One process at a time works in a workspace.

Which stages there are, in which order, and which are stale, only DVC says: this module follows one `dvc repro`.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import dropwhile
from pathlib import Path
from typing import Self

from tbd.errors import PASSING, InputError, PassingFault, StageFailed
from tbd.locks import locked
from tbd.params import load_yaml
from tbd.records import atomic

LOCK = Path(".tbd/lock")
RWLOCK = Path(".dvc/tmp/rwlock")
PATIENCE = 30.0
"""seconds to wait for another run"""

HINT = re.compile(r"To (track|enable) .*, run:|\s+(git add|dvc config core.autostage) |Use `dvc push`")
"""DVC's advice, which nobody needs who reads a log"""
MARK = re.compile(r"(?:Running stage (?=.*':$)|Stage (?=.*, (?:skipping|checking out outputs)$)|ERROR: failed to reproduce )'([^']+)'")
"""the line with which DVC comes to a stage; data (NAME.dvc) is one only where it fails"""
BUSY = re.compile("Unable to acquire lock|is busy, it is being blocked by")
"""somebody's own `dvc` is at work here"""

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
    """Output of a DVC command. Raises InputError with DVC's own words if it fails, PassingFault if another DVC is at work."""
    done = subprocess.run(
        [sys.executable, "-m", "tbd.faster_dvc", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        words = _words(done.stderr.splitlines())
        raise (PassingFault if BUSY.search(words) else InputError)(f"dvc {' '.join(arguments)}: {words}")
    return done.stdout


def up_to_date(targets: Sequence[str]) -> bool:
    """Whether DVC would run nothing for these stages and what they need. Raises as `dvc`."""
    return bool(json.loads(dvc("status", "--json", "--with-deps", *targets)) == {})


def _words(lines: list[str]) -> str:
    """What DVC says from its first error on, in one line."""
    errors = list(dropwhile(lambda line: not line.startswith("ERROR: "), lines))
    return " ".join(" ".join(errors or lines[-3:]).removeprefix("ERROR: ").split()) or "no message"


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
    """Hold the workspace; yields the lock's file descriptor, for DVC to inherit. Who holds it already just goes on.

    A DVC that outlives a killed run so keeps holding it: nothing else writes the same files meanwhile. What a killed run left
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
    """DVC's own lock file, where a kill left it half written, or naming a process that ended unnoticed: DVC would refuse to work.

    Nobody is at work here now, unless it is somebody's own `dvc`.
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
        "read": {path: left for path, by in held.get("read", {}).items() if (left := [one for one in by if _alive(str(one["pid"]))])},
        "write": {path: by for path, by in held.get("write", {}).items() if _alive(str(by["pid"]))},
    }
    if any(living[mode] != paths for mode, paths in held.items()):
        with atomic(RWLOCK) as temporary:
            temporary.write_text(json.dumps(living), "utf-8")


def idle() -> bool:
    """Whether no process that is alive works in this workspace; a stage that a killed one left behind does not count."""
    with locked(LOCK, wait=False) as free:
        return free is not None or not _alive(LOCK.read_text().partition(" ")[0])


def _alive(pid: str) -> bool:
    """Whether the process runs; where the system does not say, it does."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()


class Repro:
    """One `dvc repro` of some targets. Iterate over it for the stages, in DVC's order, and `follow` each before the next."""

    def __init__(self, targets: Sequence[str], lock: int) -> None:
        """`lock`: the workspace's, which DVC inherits: what it and its stage still do after we are killed, nobody else does too."""
        self._targets, self._lock = targets, lock
        self._process: subprocess.Popen[str] | None = None
        """None before the start, and after an end"""
        self._mark: re.Match[str] | None = None
        self._early: list[str] = []
        """what DVC said before it came to the first stage"""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:  # interrupted: the stage goes with us
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()

    def __iter__(self) -> Iterator[str]:
        """Raises StageFailed if DVC comes to no stage: no such target, a dvc.yaml that says nothing sensible, another DVC at work."""
        if not self._pass_on(self._early.append) and (code := self._end()):
            raise _failure(None, self._early, code)
        while self._mark is not None:
            yield self._mark[1]

    def follow(self, stage: str, say: Say) -> bool:
        """Wait until the stage that DVC came to last is up to date, its output line by line to `say`. Returns whether its command ran.

        Where that failed, calling it once more tries the stage again.

        Raises:
            StageFailed: it is not; the message is the stage's own last word.
        """
        lines: list[str] = []

        def told(line: str) -> None:
            lines.append(line)
            say(line)

        if self._process is None:  # it failed before: DVC goes over what is up to date by now, and comes to this stage again
            self._start()
            while self._pass_on(told) and self._mark is not None and self._mark[1] != stage:
                pass
        ran = False
        if self._mark is not None:
            lines.clear()
            ran = self._mark[0].startswith("Running")
            for line in (*self._early, self._mark.string):
                told(line)
            self._early.clear()
        if not self._pass_on(told) and (code := self._end()):
            raise _failure(stage, lines, code)
        return ran

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tbd.faster_dvc", "repro", *self._targets],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[self._lock],
            start_new_session=True,
        )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()} {self._process.pid}".encode(), 0)  # who to wait for, and what to end if we are killed

    def _pass_on(self, say: Say) -> bool:
        """Give what is printed to `say`, up to the line with which another stage begins; whether one does."""
        assert self._process is not None and self._process.stdout is not None
        stage, self._mark = self._mark and self._mark[1], None
        for line in self._process.stdout:
            mark = MARK.match(line.rstrip())
            if mark and mark[1] != stage:
                self._mark = mark
                return True
            if line.strip() and not HINT.match(line):
                say(line.rstrip())
        return False

    def _end(self) -> int:
        """DVC's exit code."""
        assert self._process is not None
        code, self._process = self._process.wait(), None
        return code


def _failure(stage: str | None, lines: list[str], code: int) -> StageFailed:
    """What ended DVC with this code: it is always 255, the stage's own code and words are in what was printed."""
    where = f"stage {stage}" if stage else "dvc repro"
    if code < 0:
        return StageFailed(f"{where}: ended by signal {-code}", passing=True)
    exits = [int(match[1]) for line in lines if (match := re.search(r"exited with (-?\d+)", line))]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = exits[-1] if exits else 0  # below 0: the stage was ended by a signal
    passing = last == PASSING or last < 0 or any(BUSY.search(line) for line in lines)
    return StageFailed(f"{where}: {own[-1] if own else _words(lines)}", bad_input=last == 2 or not (stage or passing), passing=passing)

"""One `dvc repro`, followed stage by stage.

DVC alone decides which stages there are, their order and which are stale.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Self

from tbd.ending import end_group
from tbd.errors import FAULT, TRANSIENT, InputError, StageFailed, TransientFault
from tbd.locks import Say
from tbd.pipeline import workspace_lock
from tbd.pipeline.lock_file import target
from tbd.pipeline.markers import BEGIN, END
from tbd.workspace import AUDITS, STATE

HINT = re.compile(r"To (track|enable) .*, run:|\s+(git add|dvc config core.autostage) |Use `dvc push`")
"""DVC's advice to people who type commands; left out of the log"""
BUSY = re.compile("Unable to acquire lock|is busy, it is being blocked by")
"""another `dvc` is working in this workspace"""

KILLED = re.compile(r"ERROR: failed to reproduce .* exited with (-\d+|1(29|[34]\d))")
"""a signal ended a command that had not said its name yet: the machine's doing, such as of one without memory"""


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
    """Output of a DVC command.

    Raises InputError with DVC's own words if it fails, TransientFault if another DVC is at work.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        words = _words(done.stderr.splitlines())
        passes = BUSY.search(words) or FAULT.search(words)
        raise (TransientFault if passes else InputError)(f"dvc {' '.join(arguments)}: {words}")
    return done.stdout


def up_to_date(targets: Sequence[str]) -> bool:
    """Whether DVC would run nothing for these stages and what they need. Raises as `dvc`."""
    return not targets or bool(json.loads(dvc("status", "--json", "--with-deps", *targets)) == {})


def _words(lines: list[str]) -> str:
    """What DVC says from its first error on, in one line."""
    errors = list(dropwhile(lambda line: not line.startswith("ERROR: "), lines))
    return " ".join(" ".join(errors or lines[-3:]).removeprefix("ERROR: ").split()) or "no message"


class Repro:
    """One `dvc repro` of some targets.

    Iterate over it for the stages that run, in DVC's order, and `follow` each before the next.

    A stage that is up to date says nothing, so it is not among them.
    """

    def __init__(self, targets: Sequence[str], lock: int, say: Say = print) -> None:
        """`lock`: file descriptor of the workspace lock.

        DVC inherits it, so it stays held until DVC and its stage have ended.

        `say` gets what DVC prints between the stages.
        """
        self._targets, self._lock, self._say = targets, lock, say
        self._process: subprocess.Popen[str] | None = None
        """None before the start, and after an end"""
        self._stage: str | None = None
        """the one that began last; None at DVC's end"""
        self._exit: int | None = None
        """its exit code, once it has said so"""
        self._failed: StageFailed | None = None
        """a failure of DVC after the last stage itself had succeeded"""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:  # interrupted: the stage goes with us
            end_group(self._process)

    def __iter__(self) -> Iterator[str]:
        """Raises StageFailed if DVC fails outside of a stage.

        For example: no such target, an invalid dvc.yaml, another DVC at work, an output that a stage did not make.
        """
        lines = self._read(lambda _: None)
        if self._stage is None and (code := self._end()):
            raise _failure(None, lines, None, code)
        for line in lines:
            self._say(line)
        while self._process is not None and self._stage is not None:
            yield self._stage
        if self._failed is not None:
            raise self._failed

    def follow(self, stage: str, say: Say) -> None:
        """Wait until the stage that began last has ended; `say` gets its output line by line.

        If it failed, a second call tries the stage again.

        Raises:
            StageFailed: the stage failed; the message is its own error message.
        """
        lines: list[str] = []
        if self._process is None:  # it failed before: DVC skips what is up to date by now, and comes to it again
            self._start()
            lines += self._read(say)
            while self._stage not in (stage, None):
                lines += self._read(say)
        came = self._stage == stage
        if came:
            lines = self._read(say)
            if self._stage is not None:
                return
        if code := self._end():
            if not came or self._exit != 0:
                raise _failure(stage, lines, self._exit if came else None, code)
            # what DVC says of this same stage after its end is about keeping its results: the machine's, in any words
            own = any(f"failed to reproduce '{target(stage)}'" in line for line in lines)
            self._failed = _failure(None, lines, TRANSIENT if own else self._exit, code)

    def _start(self) -> None:
        for file in (Path("dvc.lock"), *AUDITS.glob("*/dvc.lock")):
            if torn(file):
                aside = STATE / "torn" / file
                aside.parent.mkdir(parents=True, exist_ok=True)
                file.replace(aside)
                self._say(f"{file}: cut off by a kill; set aside as {aside}. DVC finds the results in its cache.")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *self._targets],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[self._lock],
            start_new_session=True,
        )
        workspace_lock.note(self._lock, self._process.pid)  # what to end if we are killed

    def _read(self, say: Say) -> list[str]:
        """What is printed up to the line with which another stage begins, or to the end.

        Each line goes to `say` as it comes; what DVC prints after the end of the stage is not the stage's any more.
        """
        assert self._process is not None and self._process.stdout is not None
        before, self._stage, self._exit = self._stage, None, None
        lines = []
        for line in self._process.stdout:
            line = line.rstrip()
            if (begin := BEGIN.fullmatch(line)) and begin[1] != before:
                self._stage = begin[1]
                break
            if (end := END.fullmatch(line)) and end[1] == before:
                self._exit, say = int(end[2]), self._say
            elif line and not HINT.match(line):
                lines.append(line)
                say(line)
        return lines

    def _end(self) -> int:
        """DVC's exit code."""
        assert self._process is not None
        code, self._process = self._process.wait(), None
        return code


def torn(file: Path) -> bool:
    """Whether a `dvc.lock` is not whole: DVC writes it in place, and refuses one that it cannot read.

    We hold the workspace, so only a `dvc` that somebody started by hand can be writing it now.
    """
    for patience in (1.0, 0.0):
        content = file.read_bytes() if file.is_file() else b"schema:\n"
        if content.startswith(b"schema:") and content.endswith(b"\n"):
            return False
        time.sleep(patience)
    return True


def _failure(stage: str | None, lines: list[str], exit_code: int | None, code: int) -> StageFailed:
    """Why DVC ended with `code`, which is 255 for every failure.

    `exit_code`: the stage's own; None if it did not reach its end.
    """
    where = f"stage {stage}" if stage else "dvc repro"
    busy = any(BUSY.search(line) for line in lines)
    if code < 0:
        return StageFailed(f"{where}: ended by signal {-code}", transient=True)
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    killed = exit_code is None if stage is not None else any(map(KILLED.fullmatch, lines))
    # of DVC itself, or of a stage that did not come as far as to say so
    broke = exit_code not in (2, 3) and any(FAULT.search(line) for line in lines)
    return StageFailed(
        f"{where}: {own[-1] if own else _words(lines)}",
        bad_input=exit_code == 2 or (stage is None and exit_code is None and not (busy or broke or killed)),
        transient=busy or killed or exit_code == TRANSIENT or broke,
    )

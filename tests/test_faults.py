"""A failing machine is told from a wrong input: a full disk, I/O, memory, a GPU; and what a power cut leaves behind."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tbd import records, stages
from tbd.ending import end_group
from tbd.errors import TRANSIENT, InputError, StageFailed, TransientFault, fault, is_fault
from tbd.jsonlines import JsonLines
from tbd.locks import locked
from tbd.pipeline.repro import _failure
from tbd.workspace import room
from tests.workspace import REPOSITORY

FAULTS = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']"),
    MemoryError(),
    RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("CUDA driver error: unknown error"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    RuntimeError("can't start new thread"),
    BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
    ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
]
OTHERS = [
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError("Can't load tokenizer for 'x'."),
    InputError("params.yaml: generate.device: 'cuda' is not here (Torch not compiled with CUDA enabled)."),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "incoming/No space left on device"),
    ValueError("Unrecognized model"),
    ZeroDivisionError("division by zero"),
]


def blamed(error: Exception) -> InputError:
    """As a reader of files has it: whatever was raised, the file is wrong."""
    try:
        try:
            raise error
        except Exception as raised:
            raise InputError(f"model: transformers cannot load it ({raised}).") from None
    except InputError as said:
        return said


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_the_machines_fault_is_known_whoever_is_blamed(error: Exception) -> None:
    assert is_fault(error) and is_fault(blamed(error))
    assert "\n" not in str(fault(error)) and type(error).__name__ in str(fault(error))


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_the_inputs_fault_and_a_bug_are_not(error: Exception) -> None:
    assert not is_fault(error) and not is_fault(blamed(error))


def test_a_name_or_a_template_that_says_so_is_no_fault() -> None:
    said = "incoming/CUDA error: no config.json. The chat template says: Input/output error."
    assert not is_fault(InputError(said)) and not is_fault(StageFailed(said))
    assert is_fault(StageFailed(said, transient=True))


@pytest.mark.parametrize("error", [*FAULTS[:5], blamed(FAULTS[5]), blamed(FAULTS[0])], ids=repr)
def test_a_stage_that_the_machine_stops_may_be_tried_again(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["generate"])
    with pytest.raises(SystemExit) as stop:
        stages.run(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == TRANSIENT and line.startswith("error: this machine fails (")


def test_of_dvc_itself_and_of_a_stage_that_could_not_say_so() -> None:
    full = "ERROR: failed to reproduce 'audits/a/dvc.yaml:score': [Errno 28] No space left on device: '.dvc/cache/x'"
    imports = ["OSError: [Errno 5] Input/output error", "ERROR: failed to reproduce 'x': exited with 1"]
    for stage, lines, code in ((None, [full], 0), (None, imports, None), ("score@a", imports, 1)):
        found = _failure(stage, lines, code, 255)
        assert found.transient and not found.bad_input
    wrong = _failure("score@a", ["warning: No space left on device", "error: no such set"], 2, 255)
    assert wrong.bad_input and not wrong.transient
    assert not _failure("score@a", ["ZeroDivisionError: division by zero"], 1, 255).transient


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_an_error_that_cannot_be_told_keeps_its_exit_code(workspace: Path) -> None:
    """Exit 1 would say that a gate fired."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tbd", "history"], stderr=full, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
        )
    assert done.returncode == 2


def test_room_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    room(tmp_path / "not/there", free // 2, "answers")
    with pytest.raises(TransientFault, match=r"there: no room for answers: about .* needed, .* free\. .*`tbd prune`"):
        room(tmp_path / "not/there", 2 * free, "answers")


IGNORES = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
STUBBORN = f"""
import subprocess, sys
{{}}
subprocess.run([sys.executable, "-c", {IGNORES + "print('ready', flush=True); import time; time.sleep(300)"!r}])
"""


@pytest.mark.parametrize(("leader", "code"), [(IGNORES, -9), ("", -15)], ids=["with its leader", "without"])
def test_what_ignores_sigterm_is_killed(leader: str, code: int) -> None:
    command = [sys.executable, "-c", STUBBORN.format(leader)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        end_group(process, patience=0.5)
        assert process.wait() == code
        assert process.stdout.read() == ""  # the other has let go of it


def test_who_waits_for_a_lock_says_so_and_stops_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbd.locks.TOLD", 0.1)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock that somebody set counts for nothing
    said: list[str] = []
    with (
        locked(tmp_path / "lock"),
        pytest.raises(TransientFault, match=r"lock: another process held it for"),
        locked(tmp_path / "lock", 0.5, said.append),
    ):
        pass
    assert len(said) == 1 and str(tmp_path / "lock") in said[0]
    with locked(tmp_path / "lock", 0.5) as file:
        assert file is not None


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b'{"a', b'{"a": 3}', b"\0" * 30, b'{"a"\0\0\0\0}\n'])
def test_a_torn_tail_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n' + tail)
    lines = JsonLines(file)
    assert lines.values == [{"a": 1}, {"a": 2}]
    lines.append({"a": 4})
    assert JsonLines(file).values == [{"a": 1}, {"a": 2}, {"a": 4}]


@pytest.mark.parametrize("bad", [b'{"a\n', b"\0" * 8 + b"\n", b"\n", b"[" * 100_000 + b"\n", b"3\n"])
def test_what_is_torn_in_the_middle_is_an_error(tmp_path: Path, bad: bytes) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b'{"a": 1}\n' + bad + b'{"a": 2}\n')
    with pytest.raises(InputError, match=r"lines, line 2: no JSON object\. Restore the file\."):
        JsonLines(file)


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        steps.append(f"on disk: {'folder' if os.path.isdir(f'/proc/self/fd/{handle}') else 'file'}")
        fsync(handle)

    def noted_replace(one: Path, other: Path) -> None:
        steps.append("renamed")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    records.write_json(tmp_path / "new/file.json", {"a": 1})
    assert steps == ["on disk: file", "renamed", "on disk: folder", "on disk: folder"]
    assert (
        json.loads((tmp_path / "new/file.json").read_text()) == {"a": 1} and len([*(tmp_path / "new").iterdir()]) == 1
    )


def test_temporary_names_are_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 120)  # near the longest name there may be
    names = {records.beside(path).name for _ in range(100)}
    assert len(names) == 100 and all(os.uname().nodename[:40] in name for name in names)
    with records.atomic(path) as one, records.atomic(path) as two:  # another host has the same process number
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    with pytest.raises(ValueError), records.atomic(path) as temporary:  # noqa: PT011, PT012
        temporary.write_text("half")
        raise ValueError
    assert path.read_text() == "one" and [*tmp_path.iterdir()] == [path]

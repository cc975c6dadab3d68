"""Disks that are full or fail, and clocks that jump."""

import contextlib
import errno
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tbd import history
from tbd.errors import TRANSIENT
from tbd.generation.store import Shelf
from tests.faults.machine import (
    COMMANDS,
    Started,
    as_undisturbed,
    begun,
    ends,
    one_line,
    shim,
    undisturbed,
)
from tests.outcomes import verdict
from tests.workspace import finished

Tried = Callable[[str, int, str], None]
FAULTS = 8
"""of each stage"""
LOOKS = 3
STAGES = {
    "generate": ("generations.parquet", "base_generations.parquet"),
    "score": ("scores.parquet",),
    "verdict": ("verdict.json", "questions.parquet", "report.html"),
}
DAY = 86400


def preloaded(**settings: object) -> dict[str, str]:
    return {"LD_PRELOAD": shim()} | {key: str(value) for key, value in settings.items()}


# --- EIO, ESTALE ------------------------------------------------------------------------------------------------------


def calls(log: Path, root: Path) -> Counter[tuple[str, str]]:
    """How often which call was made in which folder of the workspace, apart from its code."""
    found: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines():
        _, call, path = line.split(" ", 2)
        folder = Path(path).relative_to(root).parts[0]
        if folder not in ("tbd", "flows"):
            found[call, folder] += 1
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_disk_that_fails(stage: str, tmp_path: Path, rng: random.Random, tried: Tried) -> None:
    workspace, log = finished()[0].copy(tmp_path / "workspace"), tmp_path / "calls"
    folder, made = workspace.root / "audits/base", STAGES[stage]
    before = {name: (folder / name).read_bytes() for name in made}

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(workspace.root / ".tbd/units", ignore_errors=True)
        for name in made:
            (folder / name).unlink(missing_ok=True)
        with workspace.start(sys.executable, "-m", f"tbd.stages.{stage}", "base", **environment) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    run(**preloaded(FAULT_PATH=f"{workspace.root}/", FAULT_LOG=log))
    counted = calls(log, workspace.root)
    stopped = 0
    for _ in range(FAULTS):
        call, where = rng.choice(sorted(counted))
        fault = {
            "FAULT_PATH": f"{workspace.root}/{where}",
            "FAULT_CALL": call,
            "FAULT_FROM": rng.randint(1, counted[call, where]),
            "FAULT_TIMES": rng.choice([1, 1000]),
            "FAULT_ERRNO": rng.choice([errno.EIO, errno.ESTALE]),
        }
        done = run(**preloaded(**fault))
        if done.returncode:
            assert done.returncode == TRANSIENT, (fault, done.stderr[-3000:])
            one_line(done.stderr)
            assert not [
                name for name in made if (folder / name).exists() and (folder / name).read_bytes() != before[name]
            ]
            stopped += 1
            done = run()
        assert done.returncode == 0, (fault, done.stderr[-3000:])
        assert {name: (folder / name).read_bytes() for name in made} == before, fault
    kinds = ", ".join(sorted({call for call, _ in counted}))
    tried(
        f"EIO and ESTALE in the stage `{stage}` ({kinds})",
        FAULTS,
        f"{stopped} stopped it as a transient fault in one line, the others it did without",
    )


def test_a_look_on_a_disk_that_fails(tmp_path: Path, rng: random.Random, tried: Tried) -> None:
    workspace, incoming = begun(tmp_path / "workspace"), "checkpoints/incoming"
    for _ in range(LOOKS):
        started = Started(
            workspace,
            COMMANDS["watch"],
            preloaded(
                FAULT_PATH=workspace.root / rng.choice([incoming, incoming, ".tbd", "audits"]),
                FAULT_CALL=rng.choice(["open", "read", "write", "fsync", "rename"]),
                FAULT_FROM=rng.randint(1, 6),
                FAULT_TIMES=rng.choice([1, 1000]),
                FAULT_ERRNO=rng.choice([errno.EIO, errno.ESTALE]),
            ),
        )
        assert started.end() in (0, 3), (started.environment, started.said[-4000:])
    started = Started(workspace, (*COMMANDS["watch"], "--retry"))
    assert started.end() == 0, started.said[-4000:]
    as_undisturbed(workspace, "watch")
    tried("EIO and ESTALE during `tbd watch`", LOOKS, "a transient fault, and the next look judges the checkpoint")


# --- ENOSPC -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of so many MB."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk-{megabytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tbd-faults", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no tmpfs may be mounted here ({done.stderr.strip()})")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is left."""
    file = disk / "filler"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 16))
    with contextlib.suppress(OSError), file.open("ab", buffering=0) as filler:
        while True:
            filler.write(b"\0")
    return file


@pytest.mark.parametrize("command", ["check", "repro"])
def test_a_full_disk(command: str, small_disk: Callable[[int], Path], rng: random.Random, tried: Tried) -> None:
    disk = small_disk(600)
    workspace, seconds = begun(disk / "workspace"), undisturbed(command)[1]
    codes = []
    for _ in range(2):
        timer = threading.Timer(rng.uniform(0.1, 0.9) * seconds, fill, [disk])
        timer.start()
        started = Started(workspace, COMMANDS[command], {"TMPDIR": str(disk)})
        codes.append(started.end())
        timer.cancel()
        timer.join()
        (disk / "filler").unlink(missing_ok=True)
        assert codes[-1] in ((0, 255) if command == "repro" else (0, 3)), started.said[-6000:]
    ends(workspace, command)
    as_undisturbed(workspace, command)
    name = {"repro": "dvc repro"}.get(command, f"tbd {command}")
    tried(
        f"a disk that fills up during `{name}`",
        len(codes),
        f"exit {' and '.join(map(str, codes))}; with room again it goes on",
    )


@pytest.mark.parametrize("what", ["history", "store"])
def test_what_is_written_on_a_full_disk(
    what: str, small_disk: Callable[[int], Path], rng: random.Random, tried: Tried
) -> None:
    disk = small_disk(1)
    file, written = disk / "lines.jsonl", []

    def add(number: int) -> None:
        if what == "store":
            Shelf(str(disk), {}).add(f"{number}", 0, pa.table({"x": rng.choices(range(1 << 30), k=3000)}))
        else:
            with history.held(file, disk / "lock") as known:
                known.add(verdict(number))
        written.append(number)

    def there() -> list[int]:
        if what == "store":
            return sorted(number for number in range(60) if Shelf(str(disk), {}).read(f"{number}", 0) is not None)
        return [int(one.checkpoint.removeprefix("model-")) for one in history.History(file).outcomes]

    add(0)
    filler = fill(disk)
    for number in range(1, 40):
        with contextlib.suppress(OSError):
            add(number)
    assert len(written) < 40 and there() == written
    filler.unlink()
    for number in range(40, 60):
        add(number)
    assert there() == written
    tried(f"a full disk under the {what}", 39, "what was told to be written is there, once, and nothing else")


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "days"), [("check", -1), ("watch", 1), ("watch", -1)])
def test_a_clock_that_jumps(command: str, days: int, tmp_path: Path, rng: random.Random, tried: Tried) -> None:
    workspace, seconds = begun(tmp_path / "workspace"), undisturbed(command)[1]
    at = time.monotonic() + rng.uniform(0.1, 0.9) * seconds
    jump = preloaded(CLOCK_AT=at, CLOCK_BY=days * DAY)
    if days < 0 and command == "watch":  # what changed in the future may be changing still, for one look
        ends(workspace, command, **jump)
        time.sleep(1.0)
    ends(workspace, command, **jump)
    as_undisturbed(workspace, command)
    tried(f"the clock jumps by {days:+d} day during `tbd {command}`", 1, "it goes on as if nothing had happened")

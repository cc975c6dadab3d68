"""Locks between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tbd import locks
from tests.workspace import REPOSITORY

STAGE = "from tbd import stages\nstages.run(lambda progress: print('runs', flush=True), device=True)"
HOLDS = "import time\nfrom tbd import locks\nwith locks.device(1):\n    print('held', flush=True)\n    time.sleep(120)"


def hold(code: str = HOLDS) -> "subprocess.Popen[str]":
    """A process that waits for the only slot and then holds it."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ}, text=True, stdout=subprocess.PIPE
    )


def test_a_device_is_used_by_as_many_as_there_are_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with hold() as first, hold() as second:
        assert first.stdout is not None and second.stdout is not None
        said = {first: first.stdout.readline(), second: second.stdout.readline()}
        assert sorted(said.values()) == [
            "held\n",
            "waiting for the device: all slots are taken (serve.device_slots: 1)\n",
        ]
        with locks.device(2):
            pass  # the other slot is free
        holder, waits = sorted(said, key=lambda process: said[process])
        holder.kill()  # the kernel gives its slot back
        assert waits.stdout is not None and waits.stdout.readline() == "held\n"
        waits.kill()


def test_a_stage_waits_for_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with hold() as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with hold(STAGE) as stage:
            assert stage.stdout is not None and stage.stdout.readline() == "[tbd] -c begins\n"
            assert stage.stdout.readline().startswith("waiting for the device")
            holder.kill()
            assert "runs\n" in stage.stdout  # a slow machine says meanwhile that it waits

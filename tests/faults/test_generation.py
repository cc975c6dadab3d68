"""SIGKILL at random moments of generation, here and on a Ray cluster: nothing is lost, nothing is computed twice."""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.machine import KILLS, Started
from tests.workspace import Workspace, finished

COMMAND = (sys.executable, "-m", "tbd.stages.generate", "reference")
EXECUTORS = {"local": (KILLS, 4.0), "ray": (max(1, KILLS // 6), 12.0)}
"""how many kills, and the seconds within which each comes"""


def generating(root: Path, executor: str) -> Workspace:
    """A workspace whose generation takes seconds: very long answers, one at a time."""
    workspace = finished()[0].copy(root)
    workspace.edit(
        "params.yaml", {"generate": {"max_new_tokens": 6_000, "batch_size": 1, "executor": executor, "store": "units"}}
    )
    return workspace


def units(workspace: Workspace) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (workspace.root / "units").glob("*/[!.]*.arrow")}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_kills_of_generation(
    executor: str, tmp_path: Path, rng: random.Random, tried: Callable[[str, int, str], None]
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    kills, seconds = EXECUTORS[executor]
    undisturbed, workspace = generating(tmp_path / "undisturbed", "local"), generating(tmp_path / "killed", executor)
    undisturbed.run(*COMMAND)
    kept: dict[str, int] = {}
    for _ in range(kills):
        started = Started(workspace, COMMAND)
        end = time.monotonic() + rng.uniform(0, seconds)
        while time.monotonic() < end and started.process.poll() is None:
            time.sleep(0.02)
        started.process.kill()
        started.process.wait()
        assert kept.items() <= units(workspace).items()
        kept = units(workspace)
    started = Started(workspace, COMMAND)
    assert started.end() == 0, started.said[-4000:]
    assert kept.items() <= units(workspace).items() and units(workspace).keys() == units(undisturbed).keys()
    name = "audits/reference/generations.parquet"
    assert (workspace.root / name).read_bytes() == (undisturbed.root / name).read_bytes()
    end = time.monotonic() + 60
    while left := started.alive():
        assert time.monotonic() < end, left
        time.sleep(0.2)
    where = "on a Ray cluster" if executor == "ray" else "in one process"
    tried(
        f"SIGKILL during generation {where}", kills, "the same table; no unit was computed twice after it was finished"
    )

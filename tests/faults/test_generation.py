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
EXECUTORS = {"local": 1.0, "ray": 10.0}
"""the seconds within which a kill comes, beside those of an undisturbed run without Ray"""


def generating(root: Path, executor: str) -> Workspace:
    """A workspace whose generation takes seconds: very long answers, one at a time."""
    workspace = finished()[0].copy(root)
    workspace.edit(
        "params.yaml", {"generate": {"max_new_tokens": 40_000, "batch_size": 1, "executor": executor, "store": "units"}}
    )
    return workspace


def units(workspace: Workspace) -> dict[str, int]:
    """When each was written; the checkpoint's and the base's are of one name where their prompts are the same."""
    store = workspace.root / "units"
    return {str(file.relative_to(store)): file.stat().st_mtime_ns for file in store.glob("*/[!.]*.arrow")}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_kills_of_generation(
    executor: str, tmp_path: Path, rng: random.Random, tried: Callable[[str, int, str], None]
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    undisturbed, workspace = generating(tmp_path / "undisturbed", "local"), generating(tmp_path / "killed", executor)
    start = time.monotonic()
    undisturbed.run(*COMMAND)
    seconds = EXECUTORS[executor] + time.monotonic() - start
    for _ in range(KILLS):
        kept = units(workspace)
        for name in rng.sample(sorted(kept), len(kept) // 2):  # else soon nothing is left to do
            (workspace.root / "units" / name).unlink()
            del kept[name]
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
        f"SIGKILL during generation {where}", KILLS, "the same table; no unit was computed twice after it was finished"
    )

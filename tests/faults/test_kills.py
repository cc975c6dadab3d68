"""SIGKILL at random moments, to everything or to one process, and the same command once more; and a second host."""

import contextlib
import math
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tbd.pipeline import workspace_lock
from tbd.pipeline.repro import torn
from tests import servers
from tests.faults.machine import COMMANDS, KILLS, Started, as_undisturbed, begun, ends, undisturbed

Tried = Callable[[str, int, str], None]
EACH = 4
"""kills of one workspace"""
CHAINS = [(number, ("check", "repro", "watch")[number % 3]) for number in range(math.ceil(KILLS / EACH))]
ELSEWHERE = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server of somebody else's, which no kill reaches."""
    with servers.prefect(tmp_path_factory.mktemp("prefect")) as server:
        yield {"PREFECT_API_URL": f"{server.url}/api"}


@pytest.mark.parametrize(("number", "command"), CHAINS)
def test_kills(
    number: int, command: str, tmp_path: Path, rng: random.Random, tried: Tried, prefect: dict[str, str]
) -> None:
    """Every second chain kills a Prefect server of its own too."""
    workspace, seconds = begun(tmp_path / "workspace"), undisturbed(command)[1]
    environment = prefect if number % 2 else {}
    kills = min(EACH, KILLS - EACH * number)
    for _ in range(kills):
        started = Started(workspace, COMMANDS[command], environment)
        end = time.monotonic() + rng.uniform(0.0, seconds)
        while time.monotonic() < end and started.process.poll() is None:
            time.sleep(0.05)
        if rng.random() < 0.5:
            started.kill()
        else:
            started.kill(only=rng)
            if started.process.poll() is None:
                started.end()
    if command == "repro":  # what tbd's own commands do first
        for file in filter(torn, (workspace.root / "audits").glob("*/dvc.lock")):
            file.unlink()
        with contextlib.chdir(workspace.root), workspace_lock.workspace():
            pass
    ends(workspace, command, **environment)
    as_undisturbed(workspace, command)
    name = {"repro": "dvc repro"}.get(command, f"tbd {command}")
    tried(f"SIGKILL during `{name}`, to all its processes or to one", kills, "the same command goes on")


def test_a_second_host(tmp_path: Path, rng: random.Random, tried: Tried, prefect: dict[str, str]) -> None:
    """Another host name and process space in the same folder: nobody takes the other for dead."""
    if subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode:
        pytest.skip("no process spaces here")
    workspace, seconds = begun(tmp_path / "workspace"), undisturbed("watch")[1]
    inside = (*ELSEWHERE, "sh", "-c", 'hostname elsewhere; "$@"', "sh", *COMMANDS["watch"])
    for killed in (0, 1):
        both = [Started(workspace, command, prefect) for command in (inside, COMMANDS["watch"])]
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        both[killed].kill()
        assert both[1 - killed].end() in (0, 3), both[1 - killed].said[-4000:]
        both[killed].end()
    ends(workspace, "watch", **prefect)
    as_undisturbed(workspace, "watch")
    tried("`tbd watch` on two hosts at once, one of which is killed", 2, "one works, the other waits or goes on")

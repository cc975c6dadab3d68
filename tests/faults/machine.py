"""What the tests of faults share: a preloaded shim, a command that can be killed with all it started, and the question
whether a workspace is as if nothing had happened."""

import contextlib
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tbd.history import outbox
from tests.shared import ROOT, shared
from tests.workspace import Workspace, fake_checkpoint, finished

SEED = int(os.environ.get("FAULTS_SEED", "11"))
KILLS = int(os.environ.get("FAULTS_KILLS", "12"))
LONG = 500.0
"""seconds after which a command counts as hanging"""
TBD = (sys.executable, "-m", "tbd")
COMMANDS = {
    "check": (*TBD, "check", "checkpoints/incoming/alpha", "--benchmark", "benchmark", "--unseen", "unseen"),
    "watch": (*TBD, "watch", "checkpoints/incoming"),
    "repro": (sys.executable, "-m", "dvc", "repro", "audits/base/dvc.yaml"),
}
RESULTS = ("verdict.json", "questions.parquet", "generations.parquet", "scores.parquet")


def shim() -> str:
    """The compiled shim, for LD_PRELOAD. Skips the test where there is no C compiler or no Linux."""
    if not shutil.which("cc") or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler for Linux")
    return str(shared("shim", _compile) / "shim.so")


def _compile(folder: Path) -> None:
    source = Path(__file__).parent / "shim.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", folder / "shim.so", source, "-ldl"], check=True)


def begun(root: Path) -> Workspace:
    """A finished workspace where a checkpoint arrived, and where one audit is to be made again from the beginning."""
    workspace = finished()[0].copy(root)
    fake_checkpoint(root / "checkpoints/incoming/alpha", "How much is 3 + 4?")
    rule = {"checkpoints": "*", "benchmark": "benchmark", "unseen": "unseen"}
    workspace.edit("params.yaml", {"watch": {"policy": [rule]}})
    for name in (".tbd", ".dvc/cache/runs"):
        shutil.rmtree(root / name, ignore_errors=True)
    for file in (root / "audits/base").iterdir():
        if file.name not in ("audit.yaml", "dvc.yaml"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    return workspace.used_before()


@functools.cache
def undisturbed(command: str) -> tuple[Workspace, float]:
    """A workspace where that command ran, and the seconds it took."""
    folder = shared(f"undisturbed-{command}", lambda folder: _undisturbed(folder, command))
    return Workspace(folder / "workspace"), float((folder / "seconds").read_text())


def _undisturbed(folder: Path, command: str) -> None:
    workspace, start = begun(folder / "workspace"), time.monotonic()
    workspace.run(*COMMANDS[command])
    (folder / "seconds").write_text(str(time.monotonic() - start))


@dataclass
class Started:
    """A command and whatever it starts, known by a mark in their environment, wherever they end up."""

    workspace: Workspace
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = Path(os.environ[ROOT]) / f"{time.monotonic_ns()}.log"  # on no disk that is full
        self.mark = self.log.stem
        self.process = self.workspace.launch(self.log, *self.command, FAULTS_MARK=self.mark, **self.environment)

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FAULTS_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self, only: random.Random | None = None) -> None:
        """SIGKILL everything at once, or one of them by lot."""
        alive = self.alive()
        for process in [only.choice(alive)] if only and alive else alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if only is None:
            self.process.wait(LONG)  # DVC takes a zombie for a process that runs

    def end(self) -> int:
        """Its exit code, within bounded time."""
        try:
            return self.process.wait(LONG)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"hangs:\n{self.said[-4000:]}") from None

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


def ends(workspace: Workspace, command: str, code: int = 0, **environment: str) -> Started:
    """The command to its end."""
    started = Started(workspace, COMMANDS[command], environment)
    found = started.end()
    assert found == code, f"exit {found}\n{started.said[-6000:]}"
    return started


def one_line(said: str) -> None:
    """What a command or a stage wrote on stderr is one line that says what is wrong."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said, said[-4000:]


def as_undisturbed(workspace: Workspace, command: str) -> None:
    """Nothing lost, nothing twice, every number the same to the byte."""
    other = undisturbed(command)[0]
    for name in RESULTS:
        assert _audited(workspace, name) == _audited(other, name), name
    assert _history(workspace) == _history(other)
    assert _runs(workspace) == _runs(other)
    units = [{file.name: file.read_bytes() for file in one.units()} for one in (workspace, other)]
    assert units[0] and units[0] == units[1]
    with contextlib.chdir(workspace.root):
        assert outbox.pending() == []


def _audited(workspace: Workspace, name: str) -> dict[str, bytes]:
    """The files of that name, by audit."""
    return {file.parent.name: file.read_bytes() for file in (workspace.root / "audits").glob(f"*/{name}")}


def _history(workspace: Workspace) -> list[Any]:
    """Its lines, without those of faults that passed."""
    file = workspace.root / "audits/history.jsonl"
    lines = map(json.loads, file.read_bytes().splitlines() if file.is_file() else [])
    keys = ("place", "outcome", "audit", "p_value")
    return [[line.get(key) for key in keys] for line in lines if not line["transient"]]


def _runs(workspace: Workspace) -> Counter[tuple[str, str]]:
    file = workspace.root / "mlflow.db"
    return finished_runs(f"sqlite:///{file}") if file.is_file() else Counter()


def finished_runs(mlflow: str) -> Counter[tuple[str, str]]:
    """How many finished runs there are by experiment and name."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow)
    names = {one.experiment_id: one.name for one in client.search_experiments()}
    found = client.search_runs(list(names), "attributes.status = 'FINISHED'")
    return Counter((names[run.info.experiment_id], run.info.run_name) for run in found)

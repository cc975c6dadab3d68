"""`tbd serve --pool`: the deployments on an existing Prefect server, run by a worker of a work pool."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests import servers
from tests.workspace import Workspace, fake_checkpoint, finished


def test_the_workers_of_a_pool_run_the_deployments(tmp_path: Path) -> None:
    workspace = finished()[0].copy(tmp_path / "workspace")
    workspace.edit("params.yaml", {"serve": {"watch": 20}})
    asked = ["--pool", "team", "--name", "team"]
    assert "Set PREFECT_API_URL" in workspace.tbd("serve", *asked, code=2).stderr
    with servers.prefect(tmp_path / "prefect") as server:
        url = {"PREFECT_API_URL": f"{server.url}/api"}
        said = workspace.tbd("serve", *asked, code=2, **url).stderr
        assert said.splitlines()[-1].startswith("error: --pool team: ") and "prefect work-pool create" in said

        prefect(workspace, url, "work-pool", "create", "team", "--type", "process")
        said = workspace.tbd("serve", *asked, **url).stdout
        assert "4 deployments in work pool 'team'" in said and "prefect worker start --pool team" in said

        members = pq.read_table(workspace.root / "data/sets/members.parquet")["question"].to_pylist()
        fake_checkpoint(workspace.root / "models/mine", *members)
        fake_checkpoint(workspace.root / "checkpoints/incoming/new", "something")
        asked = {"checkpoint": "models/mine", "benchmark": "benchmark", "unseen": "unseen"}
        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "team"]
        with workspace.launch(tmp_path / "worker.log", *worker, folder=tmp_path, **url) as running:  # one that was started elsewhere
            try:
                prefect(workspace, url, "deployment", "run", "check/team", "--params", json.dumps(asked), "--watch")
                end = time.monotonic() + 120
                while len(found := history(workspace)) < 2:
                    assert time.monotonic() < end and running.poll() is None
                    time.sleep(0.5)
            finally:
                os.killpg(running.pid, signal.SIGKILL)  # a worker that is told to end while it runs something may not
    assert {Path(one["checkpoint"]).name: one["outcome"] for one in found} == {"mine": "CONTAMINATED", "new": "NO EVIDENCE"}


def prefect(workspace: Workspace, url: dict[str, str], *arguments: str) -> None:
    workspace.run(sys.executable, "-m", "prefect", *arguments, **url)


def history(workspace: Workspace) -> list[Any]:
    file = workspace.root / "audits/history.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.is_file() else []

"""`tbd serve --pool`: the deployments on an existing Prefect server, run by a worker of a work pool."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests import servers
from tests.workspace import Workspace, fake_checkpoint, finished

pytestmark = pytest.mark.slow


def test_the_workers_of_a_pool_run_the_deployments(tmp_path: Path) -> None:
    workspace = finished()[0].copy(tmp_path / "workspace")
    workspace.edit("params.yaml", {"serve": {"watch": 30}})
    asked = ["--pool", "team", "--name", "team"]
    with servers.prefect(tmp_path / "prefect") as server:
        url = {"PREFECT_API_URL": f"{server.url}/api"}
        said = workspace.tbd("serve", *asked, code=2, **url).stderr
        assert said.splitlines()[-1].startswith("error: --pool team: ") and "prefect work-pool create" in said

        workspace.run(sys.executable, "-m", "prefect", "work-pool", "create", "team", "--type", "process", **url)
        said = workspace.tbd("serve", *asked, **url).stdout
        assert "4 deployments in work pool 'team'" in said and "prefect worker start --pool team" in said

        members = pq.read_table(workspace.root / "data/sets/members.parquet")["question"].to_pylist()
        fake_checkpoint(workspace.root / "models/mine", *members)
        new = fake_checkpoint(workspace.root / "checkpoints/incoming/new", "something")  # which the schedule finds
        (new / "model.safetensors").rename(new / "pytorch_model.bin")
        parameters = {"checkpoint": "models/mine", "benchmark": "benchmark", "unseen": "unseen"}
        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "team"]
        with workspace.launch(
            tmp_path / "worker.log", *worker, folder=tmp_path, **url
        ) as running:  # one that was started elsewhere
            try:
                (check,) = (
                    one
                    for one in servers.ask(url["PREFECT_API_URL"], "deployments")
                    if one["entrypoint"].endswith(":check")
                )
                servers.post(
                    f"{url['PREFECT_API_URL']}/deployments/{check['id']}/create_flow_run", {"parameters": parameters}
                )
                end = time.monotonic() + servers.PATIENCE
                while len(found := history(workspace)) < 2:
                    assert time.monotonic() < end and running.poll() is None
                    time.sleep(0.5)
            finally:  # a worker that is told to end while it runs something may not
                for process in (*psutil.Process(running.pid).children(recursive=True), running):
                    process.kill()
    assert {Path(one["checkpoint"]).name: one["outcome"] for one in found} == {"mine": "CONTAMINATED", "new": "FAILED"}


def history(workspace: Workspace) -> list[Any]:
    file = workspace.root / "audits/history.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.is_file() else []

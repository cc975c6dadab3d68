"""`tbd watch` on a workspace of its own: several benchmarks, several sources, several looks at once."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests import servers
from tests.workspace import Workspace, fake_checkpoint, finished

pytestmark = pytest.mark.slow


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server for all the looks: one of its own takes each some seconds to start."""
    with servers.prefect(tmp_path / "prefect") as server:
        yield {"PREFECT_API_URL": f"{server.url}/api"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """With a second benchmark, audited on the same unseen questions, and an empty incoming folder."""
    workspace = finished()[0].copy(tmp_path / "workspace")
    (tmp_path / "second.jsonl").write_text(
        "".join(json.dumps({"question": f"How much is {n} + {n * n}?"}) + "\n" for n in range(20))
    )
    workspace.tbd("import", "second", str(tmp_path / "second.jsonl"))
    rules = [{"checkpoints": "*", "benchmark": name, "unseen": "unseen"} for name in ("benchmark", "second")]
    workspace.edit("params.yaml", {"watch": {"policy": rules}})
    (workspace.root / "checkpoints/incoming").mkdir()
    return workspace


def history(workspace: Workspace) -> list[Any]:
    return [json.loads(line) for line in (workspace.root / "audits/history.jsonl").read_bytes().splitlines()]


def register(workspace: Workspace, checkpoint: Path) -> MlflowClient:
    """The checkpoint as version 1 of the registered model `candidate`, as a training job leaves it."""
    client = MlflowClient(f"sqlite:///{workspace.root}/mlflow.db")
    run = client.create_run(client.create_experiment("training", (workspace.root / "mlartifacts/training").as_uri()))
    client.log_artifacts(run.info.run_id, str(checkpoint), "checkpoint")
    client.create_registered_model("candidate")
    client.create_model_version("candidate", f"{run.info.artifact_uri}/checkpoint", run.info.run_id)
    return client


def test_two_looks_at_once_audit_each_benchmark_once_and_generate_the_unseen_answers_once(
    workspace: Workspace, prefect: dict[str, str]
) -> None:
    alpha = fake_checkpoint(workspace.root / "checkpoints/incoming/alpha", "How much is 3 + 4?")
    (fake_checkpoint(workspace.root / "checkpoints/incoming/broken") / "model.safetensors").rename(
        workspace.root / "checkpoints/incoming/broken/pytorch_model.bin"
    )
    client = register(workspace, alpha)  # the same weights: one audit, two places
    asked = [sys.executable, "-m", "tbd", "watch", "checkpoints/incoming", "models:/candidate"]
    first, second = workspace.start(*asked, **prefect), workspace.start(*asked, **prefect)
    printed = [*first.communicate(), *second.communicate()]
    assert first.returncode == second.returncode == 0, "\n".join(text[-3000:] for text in printed)

    outcomes = json.loads(workspace.tbd("history", "--json").stdout)
    said = sorted(
        (o["checkpoint"], (o["benchmark"] or {}).get("name"), o["outcome"], bool(o["same_as"])) for o in outcomes
    )
    assert said == [
        ("alpha", "benchmark", "NO EVIDENCE", False),
        ("alpha", "second", "NO EVIDENCE", False),
        ("broken", None, "FAILED", False),
        ("candidate/1", "benchmark", "NO EVIDENCE", True),
        ("candidate/1", "second", "NO EVIDENCE", True),
    ]
    told = [line for text in printed for line in text.splitlines()]
    assert sum(" - answers to unseen: 40 of 40 questions from the store" in line for line in told) == 1

    tags = client.get_model_version("candidate", "1").tags
    assert tags["tbd.verdict.benchmark"] == tags["tbd.verdict.second"] == "NO EVIDENCE"
    run = client.get_run(tags["tbd.run.second"])
    assert run.data.tags["verdict"] == "NO EVIDENCE" and run.data.params["benchmark"] == "second"
    experiment = client.get_experiment_by_name("tbd checks")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 3

    before = workspace.hashes()
    quiet = workspace.tbd("watch", "checkpoints/incoming", "models:/candidate")
    assert quiet.stdout.splitlines()[-1] == "nothing new" and quiet.stderr == ""
    assert workspace.hashes() == before

    workspace.tbd("watch", "checkpoints/incoming", "--retry", **prefect)
    assert len(history(workspace)) == len(outcomes)  # it says nothing new

"""The history in MLflow: failures, model versions, and the run that grows. Real stores."""

import json
import shutil
import socket
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from tbd.history import FAILED
from tbd.mlflow_store import TrackingDown, store
from tbd.report import history_page
from tbd.tracking import history as tracking_history
from tbd.tracking import runs as tracking
from tests.outcomes import again, failure, verdict

pytestmark = pytest.mark.slow
MonkeyPatch = pytest.MonkeyPatch


@pytest.fixture
def client(workspace: Path, empty_store: Path) -> MlflowClient:
    shutil.copy(empty_store, workspace / "mlflow.db")
    return MlflowClient(store())


def test_a_failure_is_a_failed_run_among_the_checks_once(
    workspace: Path, client: MlflowClient, monkeypatch: MonkeyPatch
) -> None:
    failed = failure(
        1, reason="cut `off` at https://me:key@host/x", checkpoint="m\x1b", origin="models:/M/1", fingerprint="c" * 64
    )
    with monkeypatch.context() as patch:  # killed between the two calls
        patch.setattr(MlflowClient, "set_terminated", lambda *_: None)
        first = tracking_history.record_failure(failed)
    assert client.get_run(first).info.status == "RUNNING"
    assert tracking_history.record_failure(failed) == tracking_history.record_failure(failed) == first
    run = client.get_run(first)
    assert (run.info.status, run.info.run_name) == ("FAILED", "m\ufffd: FAILED")
    assert client.get_experiment(run.info.experiment_id).name == tracking.CHECKS
    wanted = {
        "outcome": FAILED,
        "place": "incoming/model-1",
        "origin": "models:/M/1",
        "fingerprint": "c" * 64,
        "state": failed.id,
    }
    assert wanted.items() <= run.data.tags.items()
    assert run.data.tags["reason"] == "cut `off` at https://host/x"
    assert run.data.tags["mlflow.note.content"].endswith("\n\n`cut 'off' at https://host/x`")
    assert "key" not in str(run.data.tags.values())
    assert tracking_history.record_failure(failure(2)) != first


@pytest.fixture
def version(client: MlflowClient, tmp_path: Path) -> str:
    """The origin of a checkpoint that is a model version."""
    client.create_registered_model("M")
    return f"models:/M/{client.create_model_version('M', str(tmp_path)).version}"


def tags_of(client: MlflowClient, origin: str) -> dict[str, str]:
    return dict(client.get_model_version(*origin.removeprefix("models:/").split("/")).tags)


def test_a_model_version_says_what_became_of_it(client: MlflowClient, version: str) -> None:
    tracking_history.tag_version(version, failure(1), "run0")
    assert tags_of(client, version) == {"tbd.verdict": FAILED, "tbd.run": "run0", "tbd.reason": failure(1).reason}
    told = verdict(1, "CONTAMINATED", share=0.38)
    tracking_history.tag_version(version, told, "run1")
    maths = {"tbd.verdict.maths": "CONTAMINATED", "tbd.leaked.maths": "at least 28%, estimate 38%",
             "tbd.audit.maths": "model-1-maths", "tbd.run.maths": "run1"}  # fmt: skip
    assert tags_of(client, version) == maths  # the failure is over
    tracking_history.tag_version(
        version, failure(1, benchmark={"name": "physics", "md5": "", "n": 0}, reason="no room"), "run2"
    )
    physics = {"tbd.verdict.physics": FAILED, "tbd.run.physics": "run2", "tbd.reason.physics": "no room"}
    assert tags_of(client, version) == maths | physics
    tracking_history.tag_version(version, again(1, verdict(7, on="physics")), "run3")
    assert tags_of(client, version) == maths | {
        "tbd.verdict.physics": "NO EVIDENCE", "tbd.leaked.physics": "at least 0%, estimate 0%",
        "tbd.audit.physics": "model-7-physics", "tbd.run.physics": "run3",
    }  # fmt: skip
    lines = client.get_model_version("M", "1").description.splitlines()
    assert lines[0] == tracking_history.AUDITED
    assert lines[2:4] == [
        "- **CONTAMINATED** on `maths`: at least 28%, estimate 38% of it in the data",
        "- **NO EVIDENCE** on `physics`: at least 0%, estimate 0% of it in the data",
    ]


def test_a_model_version_keeps_what_the_stream_said(client: MlflowClient, version: str) -> None:
    found = verdict(1, "CONTAMINATED", share=0.38, tested=True, alpha_now=0.0025, stream_discovery=True)
    again = verdict(1, "CONTAMINATED", share=0.41)  # of a pair that was found
    for one in (found, again):
        tracking_history.tag_version(version, one, "run1")
        tags = tags_of(client, version)
        assert (tags["tbd.stream_discovery.maths"], tags["tbd.alpha_now.maths"]) == ("true", "0.0025")
    line = "- **CONTAMINATED** on `maths`: at least 31%, estimate 41% of it in the data, a discovery of the stream"
    assert line in client.get_model_version("M", "1").description.splitlines()


def test_a_description_is_the_owners(client: MlflowClient, version: str) -> None:
    client.update_model_version("M", "1", "mine")
    tracking_history.tag_version(version, verdict(1), "run1")
    assert client.get_model_version("M", "1").description == "mine"


def test_only_model_versions_that_are_there_are_tagged(
    client: MlflowClient, version: str, monkeypatch: MonkeyPatch
) -> None:
    for origin in ("models:/M/2", "models:/N/1"):
        tracking_history.tag_version(origin, verdict(1), "run1")
    client.delete_model_version("M", "1")
    tracking_history.tag_version(version, verdict(1), "run1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # not asked at all
    for origin in ("incoming/m", "hf://o/m@main", "models:/M@champion", "models:/M/1/x", "models:/M"):
        tracking_history.tag_version(origin, verdict(1), "run1")


def test_the_registry_may_be_another_store(version: str, client: MlflowClient, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", store())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    tracking_history.tag_version(version, verdict(1), "run1")
    assert tags_of(client, version)["tbd.verdict.maths"] == "NO EVIDENCE"


def test_the_history_is_one_run_that_grows(workspace: Path, client: MlflowClient, monkeypatch: MonkeyPatch) -> None:
    first = verdict(1, "CONTAMINATED", share=0.38, tested=True, alpha_now=0.0025, lineage="solver")
    outcomes = [first, failure(2), again(3, first), verdict(4, on="physics"), verdict(5, share=0.1)]
    run_id = tracking_history.record_history(outcomes[:3])
    assert tracking_history.record_history(outcomes) == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", workspace.name)

    def drawn(key: str) -> list[tuple[int, float, int]]:
        return [(metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(run_id, key)]

    stamps = [int(outcome.time.timestamp() * 1000) for outcome in outcomes]
    assert drawn("contamination_rate.maths") == [
        (1, 0.38, stamps[0]),
        (3, 0.1, stamps[4]),
    ]  # the failure keeps its place
    assert drawn("share_at_least.maths") == [(1, 0.28, stamps[0]), (3, 0.0, stamps[4])]
    assert drawn("share_at_least.physics") == [(1, 0.0, stamps[3])]
    assert drawn("flagged_share.maths") == [(1, 0.05, stamps[0]), (3, 0.05, stamps[4])]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "history.json", "type": "table"}
    ]  # shown as a table
    table = pd.read_json(client.download_artifacts(run_id, "history.json"), orient="split")
    assert list(table["checkpoint"]) == [f"model-{n}" for n in (5, 4, 3, 2, 1)]  # not added to the older one
    assert list(table["contamination_rate"].round(2)[[0, 4]]) == [0.1, 0.38]
    said = table.loc[4, ["tested", "alpha_now", "stream_discovery", "lineage"]]
    assert list(said) == [True, 0.0025, False, "solver"]
    page = Path(client.download_artifacts(run_id, "history.html")).read_text("utf-8")
    assert page == history_page.render(outcomes)

    sent: list[int] = []
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, metrics: sent.append(len(metrics)))
    monkeypatch.setattr(MlflowClient, "log_text", lambda *_: sent.append(-1))
    assert tracking_history.record_history(outcomes) == run_id
    assert sent == []  # nothing is new
    assert tracking_history.record_history([*outcomes, verdict(6)]) == run_id
    assert sent == [3, -1, -1]  # of the new one alone
    tracking_history.record_history([*outcomes, *(verdict(n) for n in range(6, 406))])
    assert sent[3:] == [1000, 200, -1, -1]  # no more than MLflow takes at once


def test_every_workspace_has_a_history_of_its_own(workspace: Path, client: MlflowClient, tmp_path: Path) -> None:
    run_id = tracking_history.record_history([verdict(1)])
    assert (workspace / ".tbd/workspace-id").read_text() == client.get_run(run_id).data.tags["workspace"]
    assert {path.name for path in (workspace / ".tbd").iterdir()} == {"workspace-id", "workspace-id.lock"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "mlflow.db").symlink_to(workspace / "mlflow.db")
    assert tracking_history.record_history([verdict(1)], other) != run_id
    client.delete_run(run_id)
    assert tracking_history.record_history([verdict(1)]) != run_id  # thrown away: made anew


def test_without_mlflow_nothing_is_taken_for_recorded(workspace: Path, monkeypatch: MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}")
    for call in (
        lambda: tracking_history.record_failure(failure(1)),
        lambda: tracking_history.tag_version("models:/M/1", verdict(1), "run1"),
        lambda: tracking_history.record_history([verdict(1)]),
    ):
        with pytest.raises(TrackingDown) as down:
            call()
        assert "secret" not in str(down.value)

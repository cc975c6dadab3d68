"""The flows on real pipelines and a real Prefect server, in this process; kills, in processes of their own."""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import deliver as delivering
from flows import serve
from flows import watch as watching
from flows.check import check_all
from flows.deliver import add, deliver
from flows.stages import walk
from flows.watch import LOCK, watch
from tbd import cli
from tbd.errors import InputError, StageFailed
from tbd.history import History, outbox
from tbd.locks import locked
from tbd.pipeline import workspace_lock
from tbd.watch import outcomes
from tests import servers
from tests.receiver import Receiver, slow
from tests.workspace import REPOSITORY, Workspace, fake_checkpoint, finished, two_stages

pytestmark = pytest.mark.slow
MonkeyPatch = pytest.MonkeyPatch
AUDITS = ["reference", "base"]
SAID = {"reference": "CONTAMINATED", "base": "NO EVIDENCE"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server as a user starts it; yields its API address."""
    with servers.prefect(tmp_path_factory.mktemp("prefect-server")) as server:
        yield f"{server.url}/api"


@pytest.fixture
def server(address: str) -> Iterator[None]:
    """That one is asked by what runs in this process."""
    with temporary_settings({PREFECT_API_URL: address}):
        yield


def enter(workspace: Workspace, monkeypatch: MonkeyPatch) -> Workspace:
    monkeypatch.chdir(workspace.root)
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, workspace.environment[name])
    return workspace


@pytest.fixture
def copy(server: None, tmp_path: Path, monkeypatch: MonkeyPatch) -> Workspace:
    """A finished workspace of the test's own, and the current folder."""
    return enter(finished()[0].copy(tmp_path / "copy"), monkeypatch)


@pytest.fixture
def toy(server: None, tmp_path: Path, monkeypatch: MonkeyPatch) -> Workspace:
    """A pipeline of two stages; `second.py` is for the test to write."""
    workspace = two_stages(tmp_path / "toy")
    shutil.copy(REPOSITORY / "params.yaml", workspace.root)
    return enter(workspace, monkeypatch)


@flow(name="toy")
def walks(*targets: str) -> None:
    walk(*targets)


class Seen:
    """What Prefect knows of one flow run."""

    def __init__(self, state: State) -> None:
        run = state.state_details.flow_run_id
        assert run is not None
        with get_client(sync_client=True) as client:
            self.run = client.read_flow_run(run)
            tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
            self.tasks = {task.name: task for task in sorted(tasks, key=lambda task: task.start_time or task.created)}  # type: ignore
            self.logs = [entry.message for entry in self._logs(client, run)]
            artifacts = client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
            )
            self.artifacts = {artifact.key: artifact for artifact in artifacts}

    @staticmethod
    def _logs(client: Any, run: Any) -> list[Any]:
        """Logs are sent every two seconds, so the last ones may be on their way."""
        for _ in range(40):
            found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), limit=200)
            if any("Finished in state" in entry.message and entry.name == "prefect.flow_runs" for entry in found):
                break
            time.sleep(0.2)
        return list(found)


def test_check_shows_every_stage_as_a_task_with_its_log(copy: Workspace, monkeypatch: MonkeyPatch) -> None:
    copy.edit("params.yaml", {"decision": {"fpr": 0.1}})
    seen = Seen(check_all(AUDITS, return_state=True))
    order = [name for name in seen.tasks if not name.startswith(("record", "show"))]
    assert (
        sorted(order) == ["calibrate", "verdict@base", "verdict@reference"] and order[0] == "calibrate"
    )  # what was stale
    assert seen.run.state is not None and seen.run.state.is_completed()
    told = [f"{verb} {audit}: {said}" for audit, said in SAID.items() for verb in ("record", "show")]
    assert [name for name in seen.tasks if not name.startswith("record history")] == [*order, *told]
    assert {seen.tasks[name].state.message for name in order} == {"ran"}
    assert any(line.startswith("reference: CONTAMINATED.") for line in seen.logs)
    assert {"verdict-reference", "verdict-base", "verdicts"} == set(seen.artifacts)
    assert "# CONTAMINATED" in str(seen.artifacts["verdict-reference"].data)
    rows = json.loads(str(seen.artifacts["verdicts"].data))
    assert {row["audit"]: row["outcome"] for row in rows} == SAID
    assert copy.verdict("base")["fpr"] == 0.1 and (copy.root / "mlflow.db").is_file()
    # what was planted is no discovery of the stream of checks
    looks = {one.audit: (one.planted, one.tested, one.stream_discovery) for one in History().outcomes}
    assert looks == {"reference": (True, False, False), "base": (False, True, False)}

    # once more, with MLflow away: nothing to do, no failure, and recorded when it is back
    home = os.environ.get("MLFLOW_TRACKING_URI")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
        seen = Seen(check_all(["base"], return_state=True))
    assert home is None and seen.run.state is not None and seen.run.state.is_completed()
    assert not [name for name in seen.tasks if "@" in name] and any("up to date" in line for line in seen.logs)
    assert any("It stays due." in line for line in seen.logs) and [to for _, to in outbox.pending()] == ["mlflow"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert check_all(["base"], return_state=True).is_completed() and outbox.pending() == []


def test_an_audit_that_a_stage_refuses_is_not_registered_one_that_broke_can_go_on(
    copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = copy.root / "tbd/stages/generate.py"  # of the reference's it makes the same, so nothing else is stale
    good = stage.read_text()
    fake_checkpoint(copy.root / "models/mine", "something")
    asked = ["models/mine", "--benchmark", "benchmark", "--unseen", "unseen", "--as", "mine"]

    def check(code: int) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(["check", *asked])
        out, err = capsys.readouterr()
        assert stop.value.code == code, err[-4000:]
        return out + err

    for error, code, kept in (("InputError", 2, False), ("StageFailed", 3, True)):
        refuse = f"    from tbd import errors\n    if audit == 'mine':\n        raise errors.{error}('what lacks')\n"
        begin = "def main(audit: str, progress: Progress) -> None:\n"
        assert begin in good
        stage.write_text(good.replace(begin, begin + refuse))
        assert "error: stage generate@mine: what lacks" in check(code).splitlines()
        assert (copy.root / "audits/mine").exists() == kept


@flow(name="tells")
def tells() -> None:
    deliver(patient=True)


def test_a_notification_is_retried_stays_due_and_arrives(copy: Workspace, monkeypatch: MonkeyPatch) -> None:
    with Receiver(answers=[503]) as receiver:
        monkeypatch.setenv("TBD_WEBHOOK_URL", receiver.url)
        add(outcomes.other("source", "somewhere", "no answer", transient=True))
        outbox.due("of a run that was killed before it noted this", ["webhook"])
        tells()
        assert len(receiver.messages) == 2 and outbox.pending() == []
        works = add(outcomes.other("source", "somewhere", None))
        receiver.answers = [404]
        tells()
        assert outbox.pending() == [(works.id, "webhook")]
        tells()
        assert outbox.pending() == []
    said = [json.loads(message.body)["type"] for message in receiver.messages]
    assert said == ["tbd.failed", "tbd.failed", "tbd.recovered", "tbd.recovered"]
    assert len({message.headers["webhook-id"] for message in receiver.messages}) == 2
    assert "somewhere" in (copy.root / "audits/history.html").read_text()


def test_lines_with_a_share_move_a_progress_bar(toy: Workspace) -> None:
    (toy.root / "second.py").write_text("print(' 50% half'); print('100% all'); open('two.txt', 'w').write('two')")
    seen = Seen(walks("second", return_state=True))
    assert seen.artifacts["progress-second"].data == 100.0 and " 50% half" in seen.logs


def test_a_failing_stage_fails_the_flow_with_its_own_word(toy: Workspace) -> None:
    (toy.root / "second.py").write_text(
        "import sys; print('looking'); print('error: no such model', file=sys.stderr); sys.exit(2)"
    )
    state = walks("second", return_state=True)
    seen = Seen(state)
    assert state.is_failed() and list(seen.tasks) == ["first", "second"]
    assert seen.tasks["second"].state.message == "stage second: no such model"
    failure = state.result(raise_on_failure=False)
    assert isinstance(failure, StageFailed) and failure.bad_input
    assert "looking" in seen.logs
    (toy.root / "second.py").write_text("open('two.txt', 'w').write('two')")
    assert list(Seen(walks("second", return_state=True)).tasks) == ["second"]


def test_no_audits_is_no_stages(toy: Workspace) -> None:
    """Where DVC would take none for all."""
    assert walks(return_state=True).is_completed() and not (toy.root / "one.txt").exists()


def test_a_second_flow_in_the_workspace_is_refused(toy: Workspace, monkeypatch: MonkeyPatch) -> None:
    (toy.root / "second.py").write_text("open('two.txt', 'w').write('two')")
    monkeypatch.setattr(workspace_lock, "PATIENCE", 0.1)
    holder = (
        "import time\nfrom tbd.pipeline.workspace_lock import workspace\nwith workspace():\n    "
        "print('held', flush=True)\n    time.sleep(60)"
    )
    with toy.start(sys.executable, "-c", holder) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        failure = walks("second", return_state=True).result(raise_on_failure=False)
        assert isinstance(failure, InputError) and str(process.pid) in str(failure)
        assert not (toy.root / "two.txt").exists()
        process.kill()
    assert walks("second", return_state=True).is_completed()


# --- kills: in processes of their own ---------------------------------------------------------------------------------


def test_killed_without_warning_the_next_run_on_a_real_server_is_not_blocked(address: str, tmp_path: Path) -> None:
    started = datetime.now(UTC)
    workspace = finished()[0].copy(tmp_path / "killed")
    shutil.rmtree(workspace.root / "audits/base")  # one audit is enough
    workspace.edit("params.yaml", {"generate": {"max_new_tokens": 6_000, "batch_size": 1}})
    before = workspace.units().keys()
    run = workspace.start(sys.executable, "-m", "tbd", "check", "--all", PREFECT_API_URL=address)
    end = time.monotonic() + servers.PATIENCE
    while len(workspace.units().keys() - before) < 3:
        assert time.monotonic() < end and run.poll() is None, run.communicate()
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)  # the command alone: what it started lives on
    run.communicate()
    kept = workspace.units()

    done = workspace.tbd("check", "--all", PREFECT_API_URL=address)
    assert "CONTAMINATED" in done.stdout
    assert kept.items() <= workspace.units().items()  # nothing is computed twice

    later = {"start_time": {"after_": started.isoformat()}}
    flow_runs = servers.ask(address, "flow_runs", flow_runs=later, sort="START_TIME_DESC")
    assert [one["state_type"] for one in flow_runs][:1] == ["COMPLETED"] and len(flow_runs) == 2
    tasks = servers.ask(address, "task_runs", flow_runs={"id": {"any_": [flow_runs[0]["id"]]}}, sort="END_TIME_DESC")
    assert {"generate@reference", "calibrate", "verdict@reference", "record reference: CONTAMINATED"} <= {
        task["name"] for task in tasks
    }
    of_run = {"id": {"any_": [flow_runs[0]["id"]]}}
    assert {"verdicts", "verdict-reference"} <= {
        artifact["key"] for artifact in servers.ask(address, "artifacts", flow_runs=of_run)
    }


def test_a_look_waits_for_an_end_lets_others_look_meanwhile_and_counts_its_tries(
    copy: Workspace, monkeypatch: MonkeyPatch
) -> None:
    rules = [{"checkpoints": "*", "benchmark": "benchmark", "unseen": "unseen"}]
    watched = {"settle": 1, "patience": 6, "retries": 0, "backoff": 0, "tries": 2, "policy": rules}
    copy.edit("params.yaml", {"watch": watched})
    grows = fake_checkpoint(Path("incoming/grows")) / "config.json"
    over, looked = threading.Event(), []

    def write() -> None:
        while not over.wait(0.1):
            grows.write_text(json.dumps({"n": time.monotonic()}))
            with locked(LOCK, None) as free:
                looked.append(free is not None)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        watch(["incoming"], wait=True)  # as on an event: looks until nothing is still being written
    finally:
        over.set()
        writer.join()
    (said,) = History().outcomes
    assert "still changes after 0:06. Copy the checkpoint to a folder of its own." in said.reason
    assert True in looked and False in looked

    fake_checkpoint(Path("failing/alpha"))
    scandir = os.scandir

    def fails(path: Any) -> Any:
        if Path(path).name == "alpha":
            raise OSError(5, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails)
    for _ in range(3):
        watch(["failing"])
    assert [one.transient for one in History().outcomes[1:]] == [True, False]
    assert "Input/output error. Mend it, or take it away. That was so at 2 looks" in History().outcomes[-1].reason


def test_who_sends_an_answer_byte_by_byte_is_not_waited_for(copy: Workspace, monkeypatch: MonkeyPatch) -> None:
    copy.edit("params.yaml", {"watch": {"retries": 0, "settle": 0}})
    monkeypatch.setattr(delivering, "ANSWER", 2.0)
    monkeypatch.setattr(watching, "ANSWER", 2.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with slow() as url, slow(b"HTTP/1.1 200 OK\r\nX: ") as head:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("TBD_WEBHOOK_URL", head)
        watch(["hf://org/name"])
    (said,) = History().outcomes
    assert said.transient and said.reason == "hf://org/name: not done after 0:02."
    assert {to for _, to in outbox.pending()} == {"history", "webhook"}  # stays due


def test_a_clock_that_is_put_back_has_the_looks_scheduled_anew(toy: Workspace, monkeypatch: MonkeyPatch) -> None:
    made = watch.to_deployment("looks", interval=3600, tags=["tbd", serve._tag()]).apply()
    ours = FlowRunFilter.model_validate({"tags": {"all_": [serve._tag()]}})

    def scheduled() -> set[Any]:
        with get_client(sync_client=True) as client:
            return {run.id for run in client.read_flow_runs(flow_run_filter=ours)}

    with get_client(sync_client=True) as client:  # what its scheduler asks once a minute
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": made}, json={"min_runs": 3})
    first = scheduled()
    assert len(first) >= 3
    real, sleep, shifts = time.time, time.sleep, [0.0, -7200.0]

    def nap(seconds: float) -> None:
        if seconds != 10:  # not between two looks at the clock: Prefect's client, before it asks a busy server again
            sleep(seconds)
            return
        if not shifts:
            raise StopIteration
        shift = shifts.pop(0)
        monkeypatch.setattr(time, "time", lambda: real() + shift)

    monkeypatch.setattr(serve.time, "sleep", nap)
    with pytest.raises(StopIteration):
        serve._keep_time()
    assert not first & scheduled()

"""`tbd serve` as a team runs it: real servers on loopback, checkpoints that appear while it runs, and kills."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from tests import servers
from tests.receiver import Receiver
from tests.servers import Server
from tests.workspace import fake_checkpoint, finished

pytestmark = pytest.mark.slow
EVERY = 25
"""seconds between looks; each is a process, and those that come during an audit start for nothing"""


class Team:
    """A workspace with its servers, and what they know."""

    def __init__(self, root: Path, prefect: Server, mlflow: Server, receiver: Receiver, chat: Receiver) -> None:
        self.workspace = finished()[0].copy(root / "workspace")
        self.prefect, self.mlflow, self.receiver, self.chat = prefect, mlflow, receiver, chat
        self.incoming = self.workspace.root / "checkpoints/incoming"
        self.incoming.mkdir(parents=True)
        self.workspace.edit("params.yaml", {"serve": {"watch": EVERY}, "watch": {"settle": 3, "give_up": 60}})
        self.members = pq.read_table(self.workspace.root / "data/sets/members.parquet")["question"].to_pylist()
        self.log = root / "serve.log"
        self.block(chat)

    def start(self) -> "subprocess.Popen[bytes]":
        environment = {
            "PREFECT_API_URL": f"{self.prefect.url}/api",
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "TBD_WEBHOOK_URL": self.receiver.url,
        }
        return self.workspace.launch(self.log, sys.executable, "-m", "tbd", "serve", "--name", "team", **environment)

    @contextmanager
    def serving(self) -> Iterator["subprocess.Popen[bytes]"]:
        process = self.start()
        try:
            yield process
        finally:
            kill(process, signal.SIGTERM)

    def drop(self, name: str, *remembers: str) -> Path:
        """A whole checkpoint that appears in one go."""
        hidden = fake_checkpoint(self.incoming / f".{name}", *remembers)
        return hidden.rename(self.incoming / name)

    def block(self, receiver: Receiver) -> None:
        """A notification block on the Prefect server, as somebody made it in the UI."""
        code = "import sys; from prefect.blocks.notifications import CustomWebhookNotificationBlock as B; "
        code += "B(name='team', url=sys.argv[1], json_data={'said': '{{subject}}: {{body}}'}).save('team')"
        self.workspace.run(sys.executable, "-c", code, receiver.url, PREFECT_API_URL=f"{self.prefect.url}/api")
        self.workspace.edit("params.yaml", {"notify": {"blocks": ["custom-webhook/team"]}})

    def announce(self, checkpoint: Path) -> None:
        """The event with which a training job asks for a look at a place that nobody watches."""
        code = "import sys; from prefect.events import emit_event; emit_event('tbd.checkpoint.written', "
        code += "resource={'prefect.resource.id': 'training'}, payload={'source': sys.argv[1]})"
        self.workspace.run(sys.executable, "-c", code, str(checkpoint), PREFECT_API_URL=f"{self.prefect.url}/api")

    def history(self) -> list[Any]:
        file = self.workspace.root / "audits/history.jsonl"
        return [json.loads(line) for line in file.read_bytes().splitlines()] if file.is_file() else []

    def outcomes(self) -> Counter[tuple[str, str, bool]]:
        """How often (checkpoint, outcome, whether it is one judged before) stands in the history."""
        return Counter((one["checkpoint"], one["outcome"], "same_as" in one) for one in self.history())

    def told(self) -> Counter[tuple[str, str]]:
        """How often the receiver got (event, checkpoint), each message counted once by its id."""
        messages = {one.headers["webhook-id"]: json.loads(one.body) for one in self.receiver.messages}
        return Counter((one["type"], one["data"]["checkpoint"]) for one in messages.values())

    def runs(self) -> Counter[tuple[str, str]]:
        """(checkpoint, verdict or failure) of the runs in MLflow that are whole."""
        client = MlflowClient(self.mlflow.url)
        experiment = client.get_experiment_by_name("tbd checks")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        found = [run for run in runs if run.info.status == "FINISHED" or "outcome" in run.data.tags]
        return Counter(
            (
                Path(run.data.params.get("checkpoint") or run.data.tags["checkpoint"]).name,
                run.data.tags.get("verdict", "FAILED"),
            )
            for run in found
        )

    def wait(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + servers.PATIENCE
        while not what():
            assert time.monotonic() < end, f"{self.outcomes()}\n{self.told()}\n{self.log.read_text()[-6000:]}"
            time.sleep(0.3)

    def look_again(self) -> None:
        """Wait for the end of a look that begins from now on."""
        now = {"start_time": {"after_": datetime.now(UTC).isoformat()}, "name": {"any_": ["watch"]}}

        def ended() -> bool:
            runs = servers.ask(f"{self.prefect.url}/api", "flow_runs", flow_runs=now)
            return any(
                run["state_type"] == "COMPLETED" and "skipped" not in str(run["state"]["message"]) for run in runs
            )

        self.wait(ended)

    def busy(self) -> bool:
        """Whether DVC is at work on an audit now."""
        try:
            return json.loads((self.workspace.root / ".tbd/lock").read_text()).get("group") is not None
        except (OSError, ValueError):
            return False


def kill(process: "subprocess.Popen[bytes]", how: signal.Signals, group: bool = False) -> None:
    if process.poll() is None:
        if group:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
    process.wait(servers.PATIENCE)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """One for both tests of it: the second goes on where the first ends."""
    root = tmp_path_factory.mktemp("team")
    mlflow = servers.mlflow(root / "mlflow").launch()
    try:
        with servers.prefect(root / "prefect") as prefect, Receiver() as receiver, Receiver() as chat:
            yield Team(root, prefect, mlflow.ready(), receiver, chat)
    finally:
        mlflow.stop()


def copy_slowly(source: Path, target: Path, pause: float) -> None:
    """As a slow network does: file by file, each in pieces; not the order that would be kind."""
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "fake.txt"):
        data = (source / name).read_bytes()
        with (target / name).open("wb") as file:
            for start in range(0, len(data), -(-len(data) // 2)):
                file.write(data[start : start + -(-len(data) // 2)])
                file.flush()
                time.sleep(pause)


def test_four_checkpoints_at_different_moments(team: Team, tmp_path: Path) -> None:
    """Each has its right outcome, once, and who is to be told gets exactly what they should."""
    slow = fake_checkpoint(tmp_path / "elsewhere", "slow and clean")
    (tmp_path / "afar").mkdir()
    team.drop("alpha", *team.members)
    with team.serving():
        team.wait(lambda: team.outcomes()["alpha", "CONTAMINATED", False] == 1)
        copying = threading.Thread(target=copy_slowly, args=(slow, tmp_path / "afar/slow", 1.5))
        copying.start()
        pickle = team.drop("pickle", "p")
        (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
        team.announce(tmp_path / "afar")  # while it is still being written
        shutil.copytree(team.incoming / "alpha", team.incoming / ".twin")
        (team.incoming / ".twin").rename(team.incoming / "twin")
        copying.join()
        expected = {
            ("alpha", "CONTAMINATED", False): 1,
            ("twin", "CONTAMINATED", True): 1,
            ("pickle", "FAILED", False): 1,
            ("slow", "NO EVIDENCE", False): 1,
        }
        team.wait(lambda: len(team.history()) >= 4)
        team.look_again()
        assert team.outcomes() == expected
        assert team.told() == {("tbd.contaminated", "alpha"): 1, ("tbd.failed", "pickle"): 1}
        assert len(team.receiver.messages) == 2
        said = [json.loads(message.body)["said"] for message in team.chat.messages]
        assert [one.split(" on ")[0] for one in said] == [
            "tbd: contaminated: CONTAMINATED: alpha",
            said[1],
        ] and "pickle" in said[1]
        expected_runs = {
            ("alpha", "CONTAMINATED"): 1,
            ("slow", "NO EVIDENCE"): 1,
            ("pickle", "FAILED"): 1,
        }
        assert team.runs() == expected_runs
        # made whole, it is tried again, and who was told of the failure is told that it passed
        (pickle / "pytorch_model.bin").rename(pickle / "model.safetensors")
        team.wait(lambda: team.told()["tbd.recovered", "pickle"] == 1)
        in_prefect(team)
    page = (team.workspace.root / "audits/history.html").read_text()
    assert all(name in page for name in ("alpha", "twin", "slow", "pickle"))


def in_prefect(team: Team) -> None:
    """Deployments with forms that explain themselves, runs in their right states, artifacts."""
    api = f"{team.prefect.url}/api"
    deployments = {one["name"] + " " + one["entrypoint"]: one for one in servers.ask(api, "deployments")}
    assert {one.split()[0] for one in deployments} == {"team", "team-on-event"} and len(deployments) == 4
    form = next(one for one in deployments.values() if "check" in one["entrypoint"])["parameter_openapi_schema"][
        "properties"
    ]
    assert all(field["title"] and len(field["description"]) > 20 for field in form.values())
    audits = [run for run in servers.ask(api, "flow_runs") if run["name"].startswith("audit ")]
    assert len(audits) == 3 and all(run["state_type"] == "COMPLETED" for run in audits)
    looks = [
        run for run in servers.ask(api, "flow_runs") if run["name"] == "watch" and run["state_type"] == "COMPLETED"
    ]
    assert any("1 audited" in str(run["state"]["message"]) for run in looks)
    assert {"verdicts", "outcome-pickle"} <= {artifact["key"] for artifact in servers.ask(api, "artifacts")}


def test_a_server_of_its_own(tmp_path: Path) -> None:
    """Which its pages and its deployments are told of, and which ends with it."""
    workspace = finished()[0].copy(tmp_path / "workspace").used_before()
    port = servers.free_port()
    log = tmp_path / "log"
    process = workspace.launch(log, sys.executable, "-m", "tbd", "serve", "--port", str(port))
    try:
        end = time.monotonic() + servers.PATIENCE
        while (found := deployments(port, workspace.root / ".tbd/prefect-auth")) < 4:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        assert found == 4 and pages_ask(port) == f"http://127.0.0.1:{port}/api"
        assert "temporary server" not in log.read_text() and f"Prefect UI: http://127.0.0.1:{port} (" in log.read_text()
    finally:
        kill(process, signal.SIGTERM)
    assert pages_ask(port) is None


def deployments(port: int, auth: Path) -> int:
    try:
        credentials = base64.b64encode(auth.read_bytes().strip()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {credentials}"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/deployments/filter", b"{}", headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return len(json.load(answer))
    except OSError:
        return 0


def pages_ask(port: int) -> str | None:
    """The API that the pages of a Prefect server ask, or None if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui-settings", timeout=5) as answer:
            return str(json.load(answer)["api_url"])
    except OSError:
        return None


def test_kills_of_everything_end_as_if_nothing_had_been(team: Team) -> None:
    outcomes, runs, told = team.outcomes(), team.runs(), team.told()
    process = team.start()
    try:
        team.drop("learnt", *team.members, "and one more")
        team.wait(team.busy)
        kill(process, signal.SIGKILL)  # alone: the run it had started lives on
        team.mlflow.stop(signal.SIGKILL)
        process = team.start()
        team.wait(team.busy)
        team.prefect.stop(signal.SIGKILL)
        time.sleep(5)
        team.prefect.start()
        time.sleep(10)
        kill(process, signal.SIGKILL, group=True)  # with everything it had started
        process = team.start()
        team.wait(lambda: team.outcomes()["learnt", "CONTAMINATED", False] == 1)
        team.mlflow.start()

        expected = {("learnt", "CONTAMINATED"): 1}
        team.wait(lambda: team.runs() - runs == expected)
        team.look_again()
        new = team.outcomes() - outcomes
        assert {key[:2]: count for key, count in new.items()} == expected and team.runs() - runs == expected
        assert team.told() - told == {("tbd.contaminated", "learnt"): 1}
    finally:
        kill(process, signal.SIGTERM)

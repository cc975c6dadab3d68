"""A workspace that `tbd serve` looks after, with real servers on loopback, and what each of them knows."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from mlflow import MlflowClient

from tests import servers
from tests.receiver import Receiver
from tests.servers import Server
from tests.workspace import fake_checkpoint, finished

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


@contextmanager
def started(root: Path) -> Iterator[Team]:
    """With its servers, which end with it."""
    mlflow = servers.mlflow(root / "mlflow").launch()
    try:
        with servers.prefect(root / "prefect") as prefect, Receiver() as receiver, Receiver() as chat:
            yield Team(root, prefect, mlflow.ready(), receiver, chat)
    finally:
        mlflow.stop()

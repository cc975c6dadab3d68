"""Real servers on loopback, to be killed and started again on the same port with the same data."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.shared import mlflow_store, prefect_store

PATIENCE = 300.0
"""seconds that anything here may take before it is given up: many on a busy machine, and none where all is well"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Server:
    """One server: `command` with PORT and HOME filled in, ready when `health` answers."""

    home: Path
    command: list[str]
    health: str
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        return self.launch().ready()

    def launch(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        filled = [part.replace("PORT", str(self.port)).replace("HOME", str(self.home)) for part in self.command]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
        environment = kept | {key: value.replace("HOME", str(self.home)) for key, value in self.environment.items()}
        with (self.home / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *filled],
                env=environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def ready(self) -> Self:
        """Wait until it answers."""
        end = time.monotonic() + PATIENCE
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < end, (self.home / "log").read_text()[-4000:]
            time.sleep(0.25)
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.health, timeout=2):
                return True
        except urllib.error.HTTPError:
            return False
        except OSError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it with everything it started. Afterwards `start` may follow."""
        try:
            os.killpg(self.process.pid, how)
        except ProcessLookupError:
            return
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def prefect(home: Path) -> Server:
    """A Prefect server as a user starts it, with an empty database."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(prefect_store(), home)
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", "PORT"]
    return Server(home, command, "/api/health", {"PREFECT_HOME": "HOME", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"})


def mlflow(home: Path) -> Server:
    """An MLflow server with SQLite and an artifact folder."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(mlflow_store(), home)
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", "PORT", "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///HOME/mlflow.db", "--artifacts-destination", "HOME/artifacts"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Server(home, command, "/health", quiet)


def ask(api: str, what: str, **filters: Any) -> list[Any]:
    """What a Prefect server has of `what`: flow_runs, deployments, artifacts."""
    found: list[Any] = post(f"{api}/{what}/filter", filters)
    return found


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    for last in (False, False, True):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or last:  # its SQLite is at work for somebody else
                raise
            time.sleep(2)
    raise AssertionError

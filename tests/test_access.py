"""MLflow and Prefect with their own authentication, as docs/access.md says: its commands, on loopback, with a real `tbd
check`."""

import base64
import configparser
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tbd import cli
from tests.workspace import REPOSITORY, Workspace, finished, hurried

pytest.importorskip("flask_wtf", reason="the MLflow server needs mlflow[auth] for basic authentication")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for credentials in /proc"),
]

OPEN_MLFLOW = ("/health", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info")
OPEN_PREFECT = ("/api/health", "/api/ready")
"""what docs/access.md says that anyone can read, apart from the UIs' files"""


def block(command: str) -> str:
    """The one shell block of docs/access.md with these words in it."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / "docs/access.md").read_text("utf-8"), re.S | re.M)
    (found,) = [text for text in blocks if command in text]
    return str(found)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(url: str, body: Any = None, credentials: str = "", method: str = "") -> tuple[int, bytes]:
    """Status and body of one request: a GET, or a POST where there is a body."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": credentials} if credentials else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers, method=method or None), timeout=30
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Watch(threading.Thread):
    """Collects the arguments of every process there is, until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            for process in os.listdir("/proc"):
                if process.isdigit():
                    try:
                        self.seen.add(Path(f"/proc/{process}/cmdline").read_bytes())
                    except OSError:
                        continue  # it ended meanwhile


@dataclass
class Servers:
    """Both servers, what they were started with, and everything a credential of theirs might look like."""

    home: Path
    mlflow: str
    prefect: str
    client: dict[str, str]
    """client.env"""
    mlflow_user: str
    admin: str
    prefect_user: str
    """Authorization headers"""
    secrets: dict[str, bytes]
    watch: Watch

    def found(self, text: bytes) -> list[str]:
        """The names of the credentials that occur in a text."""
        return [name for name, secret in self.secrets.items() if secret in text]


def shell(script: str, home: Path) -> "subprocess.Popen[bytes]":
    """A block as a user pastes it, in a home of its own; what it prints goes to a log there."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PREFECT_"))}
    file = home / f"block-{time.monotonic_ns()}"
    file.write_text("set -e\n" + script)
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            ["bash", str(file)],
            cwd=home,
            env=environment | {"HOME": str(home)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The blocks "secrets", "servers" and "account" of docs/access.md, on free ports."""
    home = tmp_path_factory.mktemp("access")
    ports = {"5000": str(free_port()), "4200": str(free_port())}
    watch = Watch()
    watch.start()

    def here(text: str) -> str:
        for port, free in ports.items():
            text = text.replace(port, free)
        return text.replace(".venv/bin/", f"{Path(sys.executable).parent}/")

    assert shell(here(block("basic_auth.ini <<EOF")), home).wait(300) == 0, (home / "log").read_text()
    running = [shell(here(block(command)), home) for command in ("mlflow server", "prefect server")]
    mlflow, prefect = (f"http://127.0.0.1:{port}" for port in ports.values())
    try:
        end = time.monotonic() + 300
        for url, server in zip((f"{mlflow}/health", f"{prefect}/api/health"), running, strict=True):
            while True:
                try:
                    assert ask(url)[0] == 200
                    break
                except OSError:
                    log = (home / "log").read_text()
                    assert server.poll() is None and time.monotonic() < end, f"{url} does not answer\n{log[-4000:]}"
                    time.sleep(0.2)
        assert shell(here(block("create_user")), home).wait(300) == 0, (home / "log").read_text()[-4000:]
        folder = home / ".config/tbd"
        client, own = (
            dict(line.split("=", 1) for line in (folder / f"{name}.env").read_text().split())
            for name in ("client", "servers")
        )
        ini = configparser.ConfigParser()
        ini.read(folder / "basic_auth.ini")
        tracking = (client["MLFLOW_TRACKING_USERNAME"], client["MLFLOW_TRACKING_PASSWORD"])
        administrator = ("admin", ini["mlflow"]["admin_password"])
        user, _, password = client["PREFECT_API_AUTH_STRING"].partition(":")
        secrets = {"flask secret key": own["MLFLOW_FLASK_SERVER_SECRET_KEY"]}
        for name, (account, word) in {
            "tracking": tracking,
            "admin": administrator,
            "prefect": (user, password),
        }.items():
            assert len(word) >= 32
            secrets |= {name: word, f"{name}, base64": base64.b64encode(word.encode()).decode().rstrip("=")}
            secrets[f"{name}, header"] = basic(account, word).removeprefix("Basic ").rstrip("=")
        assert len(set(secrets.values())) == len(secrets)
        yield Servers(
            home,
            mlflow,
            prefect,
            client,
            basic(*tracking),
            basic(*administrator),
            basic(user, password),
            {name: secret.encode() for name, secret in secrets.items()},
            watch,
        )
    finally:
        watch.done.set()
        for server in running:
            os.killpg(server.pid, signal.SIGTERM)
        for server in running:
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(10)


@dataclass
class Checked:
    """A `tbd check --all` on both servers."""

    workspace: Workspace
    output: str


def tbd(workspace: Workspace, *arguments: str, **environment: str) -> tuple[int, str, str]:
    with workspace.start(sys.executable, "-m", "tbd", *arguments, **environment) as process:
        out, err = process.communicate()
    return process.returncode, hurried(out), err


@pytest.fixture(scope="module")
def checked(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    workspace = finished()[0].copy(tmp_path_factory.mktemp("checked") / "workspace")
    code, out, err = tbd(workspace, "check", "--all", **servers.client)
    assert code == 0, f"{out}\n{err[-4000:]}"
    return Checked(workspace, out + err)


def mlflow_requests(servers: Servers) -> list[tuple[str, Any]]:
    """One of each kind of route that shows a result: (path, body)."""
    status, answer = ask(
        f"{servers.mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 10}, servers.mlflow_user
    )
    experiments = [one["experiment_id"] for one in json.loads(answer)["experiments"] if one["name"] == "tbd checks"]
    assert status == 200 and len(experiments) == 1
    search = {"experiment_ids": experiments}
    status, answer = ask(f"{servers.mlflow}/api/2.0/mlflow/runs/search", search, servers.mlflow_user)
    run = json.loads(answer)["runs"][0]["info"]
    stored = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    return [
        ("/", None),
        ("/api/2.0/mlflow/runs/search", search),
        ("/ajax-api/2.0/mlflow/registered-models/search", None),
        (f"/get-artifact?path=verdict.json&run_id={run['run_id']}&run_uuid={run['run_id']}", None),
        (f"/api/2.0/mlflow-artifacts/artifacts/{stored}/verdict.json", None),
    ]


PREFECT_REQUESTS: list[tuple[str, Any]] = [
    ("/api/flow_runs/filter", {}),
    ("/api/artifacts/filter", {}),
    ("/api/logs/filter", {}),
    ("/api/admin/settings", None),
]


def test_only_their_owner_can_read_the_files(servers: Servers) -> None:
    for folder in (servers.home / ".config/tbd", servers.home / "tbd-servers"):
        assert folder.stat().st_mode & 0o777 == 0o700
        for file in folder.rglob("*"):
            assert not file.is_file() or file.stat().st_mode & 0o077 == 0, file


def test_mlflow_shows_results_to_its_accounts_alone(servers: Servers, checked: Checked) -> None:
    requests = mlflow_requests(servers)
    for path, body in requests:
        right, text = ask(servers.mlflow + path, body, servers.mlflow_user)
        assert right == 200 and b'"errors"' not in text[:40], (path, right, text[:200])
        for credentials in (
            "",
            basic("nobody", "not-the-password"),
            servers.prefect_user,
        ):  # the last: the same name, another word
            status, text = ask(servers.mlflow + path, body, credentials)
            assert status == 401 and text.startswith(b"You are not authenticated"), (
                path,
                credentials,
                status,
                text[:200],
            )
    assert ask(f"{servers.mlflow}/v1/traces", {})[0] == 401  # of the layer around the application
    assert [ask(servers.mlflow + path)[0] for path in OPEN_MLFLOW] == [200] * len(OPEN_MLFLOW)


def test_a_reader_reads_and_changes_nothing(servers: Servers, checked: Checked) -> None:
    reader = ("reader", "a-password-for-reading")
    account = dict(zip(("username", "password"), reader, strict=True))
    assert ask(f"{servers.mlflow}/api/2.0/mlflow/users/create", account, servers.admin)[0] == 200
    status, answer = ask(f"{servers.mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 10}, basic(*reader))
    experiments = [one["experiment_id"] for one in json.loads(answer)["experiments"] if one["name"] == "tbd checks"]
    search = ask(f"{servers.mlflow}/api/2.0/mlflow/runs/search", {"experiment_ids": experiments}, basic(*reader))
    assert status == 200 and len(json.loads(search[1])["runs"]) == 2
    assert (
        ask(f"{servers.mlflow}/api/2.0/mlflow/runs/create", {"experiment_id": experiments[0]}, basic(*reader))[0] == 403
    )
    other = {"username": "other", "password": "a-password-of-another"}
    assert ask(f"{servers.mlflow}/api/2.0/mlflow/users/create", other, servers.mlflow_user)[0] == 403


def test_prefect_answers_to_the_auth_string_alone(servers: Servers, checked: Checked) -> None:
    for path, body in PREFECT_REQUESTS:
        right, text = ask(servers.prefect + path, body, servers.prefect_user)
        assert right == 200, (path, right, text[:200])
        bearer = "Bearer " + servers.client["PREFECT_API_AUTH_STRING"]
        for credentials in ("", basic("tbd", "not-the-password"), servers.mlflow_user, bearer):
            assert ask(servers.prefect + path, body, credentials)[0] == 401, (path, credentials)
    assert [ask(servers.prefect + path)[0] for path in OPEN_PREFECT] == [200] * len(OPEN_PREFECT)
    # the UI's settings are for anyone: they must say no more than where the API is
    assert servers.found(ask(f"{servers.prefect}/ui-settings")[1]) == []


def test_prefect_streams_ask_as_well(servers: Servers) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    address = f"{servers.prefect.replace('http', 'ws')}/api/events/out"
    protocols = [Subprotocol("prefect")]
    with connect(address, subprotocols=protocols) as socket_:
        socket_.send(json.dumps({"type": "auth", "token": "tbd:not-the-password"}))
        with pytest.raises(ConnectionClosed) as closed:
            socket_.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    with connect(address, subprotocols=protocols) as socket_:
        socket_.send(json.dumps({"type": "auth", "token": servers.client["PREFECT_API_AUTH_STRING"]}))
        assert json.loads(socket_.recv(timeout=20)) == {"type": "auth_success"}


def test_with_credentials_a_check_is_recorded_by_both(servers: Servers, checked: Checked) -> None:
    assert "CONTAMINATED" in checked.output and "NO EVIDENCE" in checked.output
    assert checked.output.count("recorded in MLflow") >= 2 and "401:" not in checked.output
    runs = ask(
        f"{servers.prefect}/api/flow_runs/filter", {"flows": {"name": {"any_": ["check-all"]}}}, servers.prefect_user
    )
    assert {one["state_type"] for one in json.loads(runs[1])} == {"COMPLETED"}
    tasks = json.loads(ask(f"{servers.prefect}/api/task_runs/filter", {}, servers.prefect_user)[1])
    names = [one["name"] for one in tasks]  # these come as events, on a stream
    assert all(any(name.startswith(f"record {audit}") for name in names) for audit in ("reference", "base"))
    logs = json.loads(ask(f"{servers.prefect}/api/logs/filter", {}, servers.prefect_user)[1])
    assert sum("recorded in MLflow" in one["message"] for one in logs) >= 2


def test_refused_by_mlflow_the_verdict_comes_with_a_warning(servers: Servers, checked: Checked) -> None:
    wrong = servers.client | {"MLFLOW_TRACKING_PASSWORD": "not-the-password-0815"}
    code, out, err = tbd(checked.workspace, "record", **wrong)
    assert code == 3 and out == "" and len(err.splitlines()) == 1 and "401" in err
    assert "0815" not in err and servers.mlflow.removeprefix("http://") in err

    code, out, err = tbd(checked.workspace, "check", "--all", **wrong)
    assert code == 0 and "CONTAMINATED" in out and "NO EVIDENCE" in out
    warnings = [line for line in err.splitlines() if "WARNING" in line]
    assert 1 <= len(warnings) <= 2 and all("401" in line for line in warnings)
    assert "0815" not in out + err and servers.found((out + err).encode()) == []


@pytest.fixture(scope="module")
def refused(servers: Servers, checked: Checked) -> tuple[int, str, str, bool]:
    """A check with a wrong auth string: exit code, both outputs, and whether Prefect has a new flow run."""
    runs = (f"{servers.prefect}/api/flow_runs/count", {}, servers.prefect_user)
    before = ask(*runs)
    done = tbd(
        checked.workspace, "check", "--all", **(servers.client | {"PREFECT_API_AUTH_STRING": "tbd:not-the-word-0815"})
    )
    return *done, ask(*runs) != before


def test_refused_by_prefect_nothing_is_served(
    servers: Servers, checked: Checked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    wrong = servers.client | {"PREFECT_API_AUTH_STRING": "tbd:not-the-word-0815"}
    said = [tbd(checked.workspace, "serve", **wrong)]
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(checked.workspace.root)
    capsys.readouterr()
    with (
        temporary_settings(
            {PREFECT_API_URL: wrong["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: wrong["PREFECT_API_AUTH_STRING"]}
        ),
        pytest.raises(SystemExit) as stop,
    ):
        cli.main(["serve", "--pool", "team"])
    out, err = capsys.readouterr()
    said.append((stop.value.code, hurried(out), err))
    for code, out, err in said:
        assert code == 2 and out == "" and len(err.splitlines()) == 1 and "401" in err and "0815" not in err


def test_refused_by_prefect_nothing_runs(servers: Servers, refused: tuple[int, str, str, bool]) -> None:
    code, out, err, new = refused
    assert code in (2, 3) and out == "" and "401" in err and not new
    assert "0815" not in err and servers.found(err.encode()) == []


def test_refused_by_prefect_one_line_says_so(servers: Servers, refused: tuple[int, str, str, bool]) -> None:
    _, _, err, _ = refused
    assert len(err.splitlines()) == 1 and err.startswith("error: ") and servers.prefect.removeprefix("http://") in err


def test_no_credential_is_left_anywhere(servers: Servers, checked: Checked) -> None:
    """Output, workspace, both servers' folders and logs, process arguments. Only the three files of secrets hold
    any."""
    config = servers.home / ".config/tbd"
    assert {name for file in config.iterdir() for name in servers.found(file.read_bytes())} >= {
        "tracking",
        "admin",
        "prefect",
    }
    assert servers.found(checked.output.encode()) == []

    home = checked.workspace.root.parent  # the workspace, and beside it the home folder its commands had
    files = [
        file
        for folder in (home, servers.home)
        for file in folder.rglob("*")
        if file.is_file() and config not in file.parents
    ]
    names = {file.name for file in files}
    assert {
        "mlflow.db",
        "users.db",
        "prefect.db",
        "log",
        "dvc.lock",
        "verdict.json",
        "report.html",
        "questions.json",
    } <= names
    assert b"recorded in MLflow" in _text(servers.home / "tbd-servers/prefect/prefect.db")  # rows are seen
    left = {str(file): found for file in files if (found := servers.found(_text(file)))}
    assert left == {}

    seen = b"\n".join(servers.watch.seen).replace(b"\0", b" ")
    assert all(
        command in seen for command in (b"-m tbd check --all", b"-m dvc repro", b"mlflow.server.auth:create_app")
    )
    assert servers.found(seen) == []


def _text(file: Path) -> bytes:
    """What a file says: its bytes, and the rows of a table or a database, which may be compressed or cut into pages."""
    text = file.read_bytes()
    if file.suffix == ".parquet":
        text += str(pq.read_table(file).to_pylist()).encode()
    if file.suffix == ".db" and text.startswith(b"SQLite format 3"):
        database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            text += "\n".join(database.iterdump()).encode(errors="replace")
        finally:
            database.close()
    return text

"""A Prefect server that tbd starts answers to nobody else, and nothing else is taken for it."""

import base64
import math
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import own_server
from flows.run import refusals
from flows.stages import within
from tbd import records
from tbd.errors import InputError, TransientFault
from tests import servers
from tests.receiver import Receiver
from tests.shared import prefect_store

pytestmark = pytest.mark.slow


@pytest.fixture
def port(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("PREFECT_HOME", str(prefect_store().parent))
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):  # what is set on the way is taken back
        monkeypatch.setenv(name, "")
    return servers.free_port()


@pytest.fixture
def stranger() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def ask(port: int, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    body = b"{}" if method == "POST" else None
    named = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def test_it_answers_to_its_password_and_its_own_pages_alone(port: int) -> None:
    with own_server.running(port):
        auth = own_server.AUTH.read_text().strip()
        assert os.environ["PREFECT_API_AUTH_STRING"] == auth and len(auth) > 40
        assert own_server.AUTH.stat().st_mode & 0o777 == 0o600
        right = {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}
        wrong = {"Authorization": "Basic " + base64.b64encode(b"tbd:wrong").decode()}
        assert [ask(port, "POST", "/api/flows/filter", **how)[0] for how in ({}, wrong, right)] == [401, 401, 200]
        evil, own = "http://evil.example", f"http://127.0.0.1:{port}"
        wants = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
        allowed = [ask(port, "OPTIONS", "/api/flows/filter", Origin=page, **wants)[1] for page in (evil, own)]
        assert [one.get("access-control-allow-origin") for one in allowed] == [None, own]

        left = own_server._left(port)  # as the next `tbd serve` would find it after a kill of this one
        assert left is not None and own_server._left(port + 1) is None
        words = [word for each in (left, *left.children(recursive=True)) for word in each.cmdline()]
        assert not any(auth in word for word in words) and auth not in own_server.LOG.read_text()
        records.write_json(own_server.STARTED, {"pid": left.pid, "created": 0.0})
        assert own_server._left(port) is None  # another process that was given the number
        other = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        records.write_json(own_server.STARTED, {"pid": other.pid, "created": other.create_time()})
        assert own_server._left(port) is None  # a process of ours, but not the one that answers
        other.communicate()
    assert ask_nobody(port)


def test_a_server_that_was_left_with_another_password_is_replaced(port: int) -> None:
    left = own_server._launch(port, own_server.password())
    own_server._wait_for(left, port)
    own_server._write_private(own_server.AUTH, "tbd:another")
    with own_server.running(port):
        assert not own_server._alive(left)
        assert own_server._lets_in(port, own_server.AUTH.read_text().strip())
        os.environ["PREFECT_API_URL"] = ""
        with pytest.raises(InputError, match="a `tbd serve` is at work in this workspace"), own_server.running(port):
            pass
    assert ask_nobody(port)


def test_a_server_that_does_not_start_is_a_transient_fault() -> None:
    said = "Timed out while attempting to connect to ephemeral Prefect API server."
    with pytest.raises(TransientFault, match="does not answer"), refusals():
        raise RuntimeError(said)


def test_a_limit_may_be_none_at_all() -> None:
    with within(math.inf, "a download"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 1e7


def ask_nobody(port: int) -> bool:
    try:
        ask(port, "GET", "/api/health")
    except OSError:
        return True
    return False


def test_whoever_else_answers_on_the_port_is_told_nothing(port: int, stranger: Receiver) -> None:
    taken = int(stranger.url.rpartition(":")[2].rstrip("/"))
    with pytest.raises(InputError, match=f"port {taken} is taken"), own_server.running(taken):
        pass
    assert not os.environ["PREFECT_API_URL"] and not own_server.AUTH.exists()


TEMPORARY = """
import os
import signal
from flows import run
from prefect.server.api.server import SubprocessASGIServer

run._start_server()
print(SubprocessASGIServer().port, os.environ["PREFECT_API_AUTH_STRING"], flush=True)
input()
"""


def test_the_temporary_server_of_a_command_answers_to_its_password_alone(port: int) -> None:
    unset = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_API")}
    with psutil.Popen(
        [sys.executable, "-c", TEMPORARY], env=unset, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        at, auth = next(line for line in command.stdout if "tbd:" in line).split()
        right = {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}
        assert [ask(int(at), "POST", "/api/flows/filter", **how)[0] for how in ({}, right)] == [401, 200]
        wants = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
        for page in ("http://evil.example", f"http://localhost:{at}"):
            told = [ask(int(at), "OPTIONS", "/api/flows/filter", Origin=page, **wants)[1]]
            told.append(ask(int(at), "POST", "/api/flows/filter", Origin=page, **right)[1])
            assert [one.get("access-control-allow-origin") for one in told] == [None, None]
        started = (command, *command.children(recursive=True))
        assert not any(auth in word for each in started for word in each.cmdline())
        command.stdin.write("\n")
        command.stdin.flush()

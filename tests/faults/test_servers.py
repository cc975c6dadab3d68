"""MLflow and a webhook behind a proxy that answers 500 and 429, cuts answers, hangs up and is slow."""

import contextlib
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tbd.errors import TransientFault
from tbd.history import History, held, outbox, webhook
from tbd.tracking import history as mlflow_history
from tbd.tracking import runs
from tests import servers
from tests.faults.machine import finished_runs
from tests.outcomes import failure
from tests.workspace import finished

Tried = Callable[[str, int, str], None]
WAYS = ("500", "429", "hangs up", "cuts its answer", "is slow", "answers nothing")
"""the last three after the request was obeyed"""
TIMEOUT = 2
"""seconds that a client waits"""
RATES = {"mlflow": 0.04, "webhook": 0.3}
"""of requests that go wrong; a run in MLflow takes dozens, and one that is left half made is made anew"""
OUTCOMES = 12
PATIENCE = 60
"""tries"""


class Proxy(ThreadingHTTPServer):
    """Hands requests on, to a server or, without one, to a list; some go wrong."""

    def __init__(self, rng: random.Random, rate: float, to: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rng, self.rate, self.to, self.faults, self.heard = rng, rate, to, Counter[str](), list[str]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self) -> str | None:
        how = self.rng.choice(WAYS) if self.rng.random() < self.rate else None
        if how:
            self.faults[how] += 1
        return how

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        how = self.server.fault()
        if how == "hangs up":
            self.close_connection = True
            return
        code, answer = (int(how), b"") if how in ("500", "429") else self.obeyed(body)
        if how == "is slow":
            time.sleep(TIMEOUT + 1)
        if how == "answers nothing":
            self.close_connection = True
            return
        with contextlib.suppress(OSError):  # it did not wait
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer) + (how == "cuts its answer")))
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2] if how == "cuts its answer" else answer)
        self.close_connection = how is not None

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def obeyed(self, body: bytes) -> tuple[int, bytes]:
        self.server.heard.append(self.headers.get("webhook-id", self.path))
        if self.server.to is None:
            return 200, b"taken"
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        asked = urllib.request.Request(self.server.to + self.path, body or None, kept, method=self.command)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def mlflow(mlflow_server: servers.Server, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with Proxy(rng, RATES["mlflow"], mlflow_server.ready().url) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        yield proxy


def until_done(work: Callable[[], object]) -> int:
    """How many tries it took; all but the last end with a transient fault."""
    for number in range(1, PATIENCE):
        with contextlib.suppress(TransientFault):
            work()
            return number
    raise AssertionError(f"not done after {PATIENCE} tries")


def test_mlflow_that_fails(mlflow: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    """What `tbd record` does, and what the failures and the history of a look come to."""
    workspace = finished()[0].copy(tmp_path / "workspace")
    monkeypatch.chdir(workspace.root)
    tries = until_done(runs.record_all)
    assert until_done(lambda: runs.record_all() and pytest.fail("recorded twice")) >= 1
    with held() as known:
        for number in range(OUTCOMES):
            known.add(failure(number))
    for outcome in History().outcomes:
        tries += until_done(lambda outcome=outcome: mlflow_history.record_failure(outcome))
    tries += until_done(lambda: mlflow_history.record_history(History().outcomes))
    assert mlflow.to is not None
    once = {("tbd checks", name): 1 for name in ("base", "reference")}
    found = finished_runs(mlflow.to)
    assert {key: found[key] for key in once} == once and found["tbd calibrations", "detector"] == 1, found
    seen = ", ".join(f"{how} {times}" for how, times in sorted(mlflow.faults.items()))
    tried("MLflow that fails", sum(mlflow.faults.values()), f"{seen}: every run once, after {tries} tries")


def test_a_webhook_that_fails(
    rng: random.Random, workspace: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    """The outbox by its own rules: due before it is in the history, done when it was taken."""
    monkeypatch.setattr(webhook, "TIMEOUT", TIMEOUT)
    with held() as known:
        for number in range(OUTCOMES):
            known.add(failure(number), lambda new: outbox.due(new.id, ["webhook"]))
    by_id = {outcome.id: outcome for outcome in History().outcomes}
    with Proxy(rng, RATES["webhook"]) as receiver:
        monkeypatch.setenv("TBD_WEBHOOK_URL", receiver.url)
        for of, to in outbox.pending():
            until_done(lambda of=of: webhook.send(by_id[of]))
            outbox.done(of, to)
    assert outbox.pending() == [] and set(receiver.heard) == set(by_id)
    again = len(receiver.heard) - len(by_id)
    assert again <= receiver.faults.total()
    tried(
        "a webhook that fails",
        receiver.faults.total(),
        f"every message arrives; {again} were taken and not answered, and come again with the same `webhook-id`",
    )

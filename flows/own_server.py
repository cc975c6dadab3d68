"""Prefect servers that tbd starts: with a password of their own, for their own pages alone, and none but these.

The password is in `.tbd/prefect-auth`, which its owner alone can read, and in the environment of this process and of
those it starts. What answers on the port is trusted only if it is a process that was started here, because the
password goes to it with every request.
"""

import base64
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tbd import ending, records
from tbd.errors import InputError, StageFailed
from tbd.locks import locked
from tbd.workspace import STATE

LOG = STATE / "prefect-server.log"
AUTH = STATE / "prefect-auth"
LOCK = STATE / "serve.lock"
STARTED = STATE / "prefect-server.json"
"""which process the server is"""
PATIENCE = 120.0
"""seconds a Prefect server may take to start"""


def closed(auth: str, origin: str) -> dict[str, str]:
    """The settings of a server that asks for `auth`, and lets the pages of `origin` alone read what it says."""
    return {"PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin}


def password() -> str:
    return f"tbd:{secrets.token_urlsafe(32)}"


@contextmanager
def running(port: int) -> Iterator[None]:
    """The server of PREFECT_API_URL; or one on 127.0.0.1, which is started here, again if it ends, and stopped.

    One that a `tbd serve` of this workspace started and left behind is used as it is. Raises InputError where anything
    else has the port.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    with locked(LOCK, None) as free:
        if free is None:
            raise InputError("a `tbd serve` is at work in this workspace. End that one first.")
        with _running(port):
            yield


@contextmanager
def _running(port: int) -> Iterator[None]:
    left = _left(port)
    if left is None and _taken(port):
        raise InputError(
            f"port {port} is taken by a server that was not started here. End it, choose another port with --port, or "
            "name it in PREFECT_API_URL (its password in PREFECT_API_AUTH_STRING)."
        )
    known = AUTH.read_text("utf-8", "replace").strip() if left else ""
    if left and not _lets_in(port, known):
        print("the Prefect server that was left behind has another password: ending it", flush=True)
        ending.end_group(left)
        left = None
    auth = known if left else os.environ.get("PREFECT_API_AUTH_STRING") or password()
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_AUTH_STRING"] = auth
    if left:
        _write_private(AUTH, auth)
    process = left or _launch(port, auth)
    over = threading.Event()

    def keep() -> None:
        nonlocal process, left
        while not over.wait(2):
            if not _alive(process):
                print("the Prefect server ended: starting it again", flush=True)
                process, left = _launch(port, auth), None

    try:
        if left is None:
            _wait_for(process, port)
        threading.Thread(target=keep, daemon=True).start()
        yield
    finally:
        over.set()
        if left is None and _alive(process):
            ending.end_group(process)


def listens(process: psutil.Process, port: int) -> bool:
    """Whether it, or a process that it started, is what answers on the port."""
    try:
        return any(
            one.status == psutil.CONN_LISTEN and one.laddr.port == port
            for each in (process, *process.children(recursive=True))
            for one in each.net_connections("tcp")
        )
    except psutil.Error:
        return False


def _left(port: int) -> psutil.Process | None:
    """The server that an earlier `tbd serve` of this workspace started, if it is what answers on the port."""
    try:
        started = records.read_json(STARTED)
        process = psutil.Process(started["pid"])
        same = process.create_time() == started["created"] and AUTH.is_file()
    except (InputError, psutil.Error):
        return None
    return process if same and listens(process, port) else None


def _taken(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2):
            return True
    except ConnectionRefusedError:
        return False
    except OSError as error:
        return not isinstance(getattr(error, "reason", None), ConnectionRefusedError)


def _alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def _wait_for(process: psutil.Process, port: int) -> None:
    print(f"starting a Prefect server on 127.0.0.1:{port} (log: {LOG})", flush=True)
    end = time.monotonic() + PATIENCE
    while not (listens(process, port) and _answers(port)):
        if not _alive(process):
            raise StageFailed(
                f"the Prefect server did not start: see {LOG}. Is port {port} taken? Choose another with --port."
            )
        if time.monotonic() > end:
            raise StageFailed(f"the Prefect server does not answer after {PATIENCE:.0f} s: see {LOG}.")
        time.sleep(0.5)


def _launch(port: int, auth: str) -> psutil.Process:
    """Start a server, in a session of its own: Ctrl-C must end the runs before it."""
    LOG.parent.mkdir(exist_ok=True)
    _write_private(AUTH, auth)
    origin = f"http://127.0.0.1:{port}"
    # else its pages ask port 4200
    where = {"PREFECT_SERVER_UI_API_URL": f"{origin}/api"} | closed(auth, origin)
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"} | where
    with LOG.open("ab") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    records.write_json(STARTED, {"pid": process.pid, "created": process.create_time()})
    return process


def _write_private(path: Path, text: str) -> None:
    """A file that its owner alone can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def _lets_in(port: int, auth: str) -> bool:
    """Whether the server takes that password."""
    said = urllib.request.Request(f"http://127.0.0.1:{port}/api/admin/version")
    said.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
    try:
        with urllib.request.urlopen(said, timeout=10):
            return True
    except urllib.error.HTTPError:
        return False
    except OSError:
        return True  # it is busy, or ends: what follows says so


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

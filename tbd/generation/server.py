"""A model server that tbd starts: its own process group, a log, started again if it ends, and ended with the run.

It runs under a small process, this module as a command, that ends it when whoever started it ends, however that ends:
by then its standard input has closed. The server knows none of our secrets. It does not see the environment of tbd
either (PYTHONPATH), because it usually lives in one of its own.
"""

import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from tbd import ending
from tbd.errors import InputError, TransientFault
from tbd.workspace import STATE

RESTARTS = 2
"""after which a server that ends is not started again"""
PAUSE = 0.2
"""seconds between two looks at whether it answers"""
GRACE = 10.0
"""seconds between telling it to end and killing it"""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL|^(TBD|PREFECT|MLFLOW|DVC|AWS|AZURE|GOOGLE)_", re.IGNORECASE)
"""names in our environment that are none of the server's business"""
CREDENTIALS = re.compile("://[^/]*@")
"""values that are none either"""
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?|[\x00-\x1f\x7f-\x9f]")
"""colours, titles and other orders to a terminal"""


class Server:
    """A server of one checkpoint on 127.0.0.1."""

    _process: "subprocess.Popen[bytes]"
    _up: bool
    """it has answered since it was started last"""
    _late: float
    """when it has to have answered"""

    def __init__(self, command: str, checkpoint: Path, dtype: str, patience: float) -> None:
        """Start it; returns once it answers, at most `patience` seconds later.

        Raises:
            InputError: the command is none.
            TransientFault: it ended, or did not answer in time.
        """
        self.port, self.patience = _free_port(), patience
        self.url = f"http://127.0.0.1:{self.port}"
        filled = {"{checkpoint}": str(checkpoint.absolute()), "{port}": str(self.port), "{dtype}": dtype}
        try:
            self.command = shlex.split(command)
        except ValueError as error:
            raise InputError(f"params.yaml: generate.server.command: {error}.") from None
        for place, value in filled.items():
            self.command = [part.replace(place, value) for part in self.command]
        if shutil.which(self.command[0]) is None:
            raise InputError(f"params.yaml: generate.server.command: no such program: {self.command[0]}.")
        self.log = STATE / f"server-{checkpoint.name}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.log.unlink(missing_ok=True)
        self._starts = 0
        self._over = False
        print(f"starting a server of {checkpoint} on 127.0.0.1:{self.port} (log: {self.log})", flush=True)
        self._start()
        while not self.ready():
            time.sleep(PAUSE)

    def ready(self) -> bool:
        """Whether it answers; one that answered and has ended is started again.

        Raises TransientFault if it ended too often, or does not answer in time.
        """
        if self._over:
            raise TransientFault("the server was ended.")
        if self._process.poll() is not None:
            if not self._up:
                raise TransientFault(f"the server did not start: {self._last_line()}")
            if self._starts > RESTARTS:
                raise TransientFault(f"the server ended {self._starts} times: {self._last_line()}")
            print(f"the server ended, and is started again: {self._last_line()}", flush=True)
            self._start()
        self._up = self._up or self._answers()
        if not self._up and time.monotonic() > self._late:
            self.end()
            raise TransientFault(f"the server does not answer after {self.patience:g} s: {self._last_line()}")
        return self._up

    def end(self) -> None:
        """End it, with everything that it started."""
        self._over = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(2 * GRACE + 5)
        except subprocess.TimeoutExpired:
            ending.end_group(self._process, patience=1)

    def _start(self) -> None:
        self._starts += 1
        self._up, self._late = False, time.monotonic() + self.patience
        own = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tbd.generation.server", *self.command],
                env=_environment() | own,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: what is under way gets closed before the server
            )

    def _answers(self) -> bool:
        """Whether it has loaded the model."""
        return self._status("/health") in (200, 404) and self._status("/v1/models") == 200

    def _status(self, path: str) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _last_line(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            said = log.read().decode(errors="replace")
        lines = [" ".join(CONTROL.sub(" ", line).split()) for line in re.split(r"[\r\n]", said)]
        last = next(filter(None, reversed(lines)), "it said nothing")
        return f"{last[:200]} (log: {self.log})"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not SECRET.search(name) and not CREDENTIALS.search(value) and name != "VIRTUAL_ENV"
    }


def main() -> None:
    """Run the command of the arguments until it ends, or until our standard input closes."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the server is told as well, and this ends after it
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(sys.argv[1:], env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        sys.stdin.buffer.read()
        ending.end_group(server, GRACE)

    threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    with suppress(ProcessLookupError):  # what it started and left
        os.killpg(server.pid, signal.SIGKILL)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()

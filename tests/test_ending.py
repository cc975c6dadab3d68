"""Nothing is left behind: real processes that are told to end at bad moments, what is then alive, and the same command
once more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from tests import servers
from tests.workspace import REPOSITORY, Workspace, finished

SOON = 30
"""seconds: far more than anything takes to end, even on a busy machine"""
LATE = 180
"""seconds to come up"""
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
pytestmark = pytest.mark.slow
TBD = (sys.executable, "-m", "tbd")


class Started:
    """A command, and whatever it starts: known by what is in their environment, wherever they end up."""

    def __init__(self, workspace: Workspace, *command: str, **environment: str) -> None:
        self.log = workspace.root.parent / f"{time.monotonic_ns()}.log"
        self.mark = f"test-{self.log.stem}"
        self.process = workspace.launch(self.log, *command, TBD_TEST=self.mark, **environment)

    def alive(self) -> list[str]:
        """The command lines of those that run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TBD_TEST") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue  # another user's, or it ended just now
        return found

    def wait(self, what: Callable[[], bool], seconds: float = LATE) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"{self.alive()}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.1)

    def runs(self, part: str) -> None:
        """Wait until a process with this in its command line runs."""
        self.wait(lambda: any(part in line for line in self.alive() or self.ended()))

    def says(self, text: str) -> None:
        self.wait(lambda: text in self.log.read_text() or bool(self.ended()))

    def ended(self) -> list[str]:
        """Nothing, or it ended too early."""
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        return []

    def tell(self, *how: signal.Signals, group: bool = False) -> None:
        for one in how:
            (os.killpg if group else os.kill)(self.process.pid, one)
            time.sleep(0.2)  # two at a time have no order

    def end(self, *how: signal.Signals, group: bool = False) -> int:
        """Tell it to end, and wait until nothing of it runs; its exit code."""
        self.tell(*how, group=group)
        self.wait(lambda: not self.alive(), SOON)
        return self.process.wait(SOON)

    def kill(self) -> None:
        """After a test that failed."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("TBD_TEST") == self.mark:
                    process.kill()
            except psutil.Error:
                continue
        self.process.wait(SOON)


@pytest.fixture
def start() -> Callable[..., Started]:
    started: list[Started] = []

    def launch(*arguments: object, **environment: str) -> Started:
        started.append(Started(*arguments, **environment))  # type: ignore[arg-type]
        return started[-1]

    yield launch
    for one in started:
        one.kill()


# --- without a workspace: processes of a few lines --------------------------------------------------------------------

STUBBORN = """
import signal, subprocess, sys, time
from tbd import ending

ending.prepare()
ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
ignores += "print('ready', flush=True); time.sleep(300)"
starts = f"subprocess.Popen([sys.executable, '-c', {ignores!r}], start_new_session=True)"
orphan = f"import subprocess, sys, time; {starts}; time.sleep(300)"
parent = subprocess.Popen([sys.executable, "-c", orphan])
if sys.argv[1] == "engine":
    signal.signal(signal.SIGTERM, lambda *_: time.sleep(60))  # somebody took the signal for himself
while True:
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        time.sleep(1)
        parent.kill()
        if sys.argv[1] == "out":
            sys.exit(ending.code(3))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Workspace:
    """An empty one, where this tbd is found."""
    (tmp_path / "folder").mkdir()
    return Workspace(tmp_path / "folder")


def test_what_does_not_end_is_ended(folder: Workspace, start: Callable[..., Started]) -> None:
    """A way out that goes on, one that never comes, one that another handler blocks; descendants in sessions of their
    own."""
    here = {"PYTHONPATH": str(REPOSITORY)}
    cases = [
        ("out", [TERM]),
        ("out", [HUP]),
        ("out", [INT]),
        ("never", [TERM]),
        ("never", [INT, INT, TERM]),
        ("engine", [HUP, TERM]),
    ]
    processes = [start(folder, sys.executable, "-c", STUBBORN, way, **here) for way, _ in cases]
    for process in processes:
        process.says("ready")
    for process, (_, signals) in zip(processes, cases, strict=True):
        process.tell(*signals)
    assert [process.end() for process in processes] == [143, 129, 3, 143, 3, 129]


MAKEFILE = """
demo:
	python -c 'import time; from tbd import ending; ending.prepare(); print("ready", flush=True); time.sleep(300)'
	echo went on
"""


HEARS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script that starts the tests with `&` would have make ignore it
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("how", [INT, TERM, HUP])
def test_a_command_ends_with_make(folder: Workspace, start: Callable[..., Started], how: signal.Signals) -> None:
    """Which tells it of SIGTERM only."""
    (folder.root / "Makefile").write_text(MAKEFILE)
    make = start(folder, sys.executable, "-c", HEARS, "make", "demo", PYTHONPATH=str(REPOSITORY))
    make.says("ready")
    time.sleep(1)  # it has looked at make once
    assert make.end(how) != 0
    assert "went on" not in make.log.read_text()


STAGE = """
import os, time
from tbd import stages

def main():
    print("ready", flush=True)
    for _ in range(0 if os.path.exists("fast") else 300):
        time.sleep(1)
    open("out.txt", "w").write("out")

stages.run(main)
"""


@pytest.mark.parametrize(("shell", "how"), [("/bin/bash", TERM), ("/bin/sh", HUP)])
def test_a_stage_ends_with_the_dvc_that_runs_it(
    folder: Workspace, start: Callable[..., Started], shell: str, how: signal.Signals
) -> None:
    """Also where a shell stands between them. The next `dvc repro` runs it."""
    folder.run("git", "init", "--quiet")
    folder.dvc("init", "--quiet")
    (folder.root / "stage.py").write_text(STAGE)
    command = "true && python stage.py && true"  # a shell that runs more than this one does not become it
    (folder.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"one": {"cmd": command, "outs": ["out.txt"]}}}))
    environment = {"PYTHONPATH": str(REPOSITORY), "SHELL": shell}
    repro = start(folder, sys.executable, "-m", "dvc", "repro", **environment)
    repro.says("ready")
    assert repro.end(how) == -how
    (folder.root / "fast").touch()
    folder.run(sys.executable, "-m", "dvc", "repro", **environment)
    assert (folder.root / "out.txt").read_text() == "out"


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished one in which `calibrate` is stale."""
    copy = finished()[0].copy(tmp_path_factory.mktemp("ending") / "workspace")
    copy.edit("params.yaml", {"calibrate": {"bootstrap": 150}})
    return copy


def test_ui(workspace: Workspace, start: Callable[..., Started]) -> None:
    """MLflow's server and its workers; what it lets in, and that it takes no port from others."""
    port = servers.free_port()
    ui = start(workspace, *TBD, "ui", "--port", str(port))
    ui.says("Uvicorn running")

    def answers(**headers: str) -> int:
        asked = {"Content-Type": "application/json", **headers}
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search"
        return requests.post(url, json={"max_results": 1}, headers=asked, timeout=servers.PATIENCE).status_code

    own = [{"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"} for name in ("127.0.0.1", "localhost")]
    assert [answers(**headers) for headers in own] == [200, 200]
    assert [answers(Host=f"{name}:{port}") for name in ("evil.example", "10.evil.example")] == [403, 403]
    assert [answers(Origin=page) for page in ("http://evil.example", "null")] == [403, 403]
    second = start(workspace, *TBD, "ui", "--port", str(port))
    assert second.process.wait(servers.PATIENCE) == 2 and "Choose another with --port" in second.log.read_text()
    assert ui.end(TERM) == 143


def test_calibrate(workspace: Workspace, start: Callable[..., Started]) -> None:
    """While Prefect's temporary server comes up, in a stage, and with the server told as well; then it goes on."""
    first = start(workspace, *TBD, "calibrate")
    first.runs("prefect.server.api.server:create_app")
    assert first.end(HUP) == 129
    killed = start(workspace, *TBD, "calibrate")
    killed.runs("prefect.server.api.server:create_app")
    assert killed.end(signal.SIGKILL) == -9
    second = start(workspace, *TBD, "calibrate")
    second.runs("tbd.stages.calibrate")
    assert second.end(TERM, group=True) == 143
    assert "error: interrupted; the same command goes on" in second.log.read_text()
    workspace.tbd("calibrate")


def test_serve(workspace: Workspace, start: Callable[..., Started]) -> None:
    """While its server comes up."""
    serve = start(workspace, *TBD, "serve", "--port", str(servers.free_port()))
    serve.runs("prefect server start")
    assert serve.end(HUP) == 129


HANGS = """
import sys, threading
from tbd import ending
ending.CLOSING = 0.5
ending.prepare()
threading.Thread(target=threading.Event().wait).start()
sys.exit(ending.code(1))
"""


def test_a_command_that_is_done_does_not_wait_for_ever_for_what_does_not_close() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=REPOSITORY, timeout=SOON, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


TIES = """
import subprocess, sys
from contextlib import ExitStack
from tbd import ending

def start():
    code = [sys.executable, "-c", "import time; time.sleep(600)"]
    print(subprocess.Popen(code, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).pid, flush=True)

with ExitStack() as stack:
    stack.enter_context(ending.tied())
    start()
    if sys.argv[1] == "started":
        stack.close()
    sys.stdin.read(1)
start()
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["starting", "started"])
@pytest.mark.parametrize("killed", [False, True])
def test_what_is_tied_to_a_command_ends_with_it_even_if_it_is_killed(killed: bool, when: str) -> None:
    """And what it starts later does not."""
    command = subprocess.Popen(
        [sys.executable, "-c", TIES, when], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert command.stdin is not None and command.stdout is not None
    server, other = psutil.Process(int(command.stdout.readline())), None
    assert server.is_running()
    if when == "started":
        command.stdin.write(b".")
        command.stdin.flush()
        other = psutil.Process(int(command.stdout.readline()))
    if killed:
        command.kill()
    command.stdin.close()
    command.wait(SOON)
    end = time.monotonic() + SOON
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
    command.stdout.close()
    if other is not None:
        assert other.is_running()
        other.kill()

"""Who holds a workspace, in this process space or, as in a container that shares the folder, in another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tbd.errors import InputError
from tbd.pipeline import workspace_lock
from tbd.pipeline.repro import Repro
from tbd.pipeline.workspace_lock import workspace
from tests.workspace import Workspace, two_stages

pytestmark = pytest.mark.slow
ELSEWHERE = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
STAGE = 'import os, time; print("stage", os.getpid(), flush=True); time.sleep(300)'
RUN = """
from tbd.pipeline.repro import Repro
from tbd.pipeline.workspace_lock import workspace
with workspace() as lock, Repro(["second"], lock) as repro:
    for stage in repro:
        repro.follow(stage, lambda line: print(line, flush=True))
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    made = two_stages(tmp_path / "small")
    (made.root / "second.py").write_text(STAGE)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(made.root)
    return made


def stages(folder: Path) -> list[psutil.Process]:
    """Processes that run the second stage of this workspace, whatever space they are in."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "second" in (process.info["cmdline"] or []) and Path(process.cwd()) == folder:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_the_workspace_is_held_by_one(small: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import time\nfrom tbd.pipeline.workspace_lock import workspace\nwith workspace():\n    "
        "print('held', flush=True)\n    time.sleep(60)"
    )
    with small.start(sys.executable, "-c", code) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        monkeypatch.setattr(workspace_lock, "PATIENCE", 0.2)
        said: list[str] = []
        with pytest.raises(InputError, match=f"workspace busy: process {holder.pid} "), workspace(said.append):
            pass
        assert len(said) == 1 and str(holder.pid) in said[0]
        holder.kill()
    with workspace():
        assert workspace_lock.LOCK.is_file()  # entered


def test_what_a_killed_run_leaves_behind_is_ended(small: Workspace) -> None:
    with small.start(sys.executable, "-c", RUN) as run:
        assert run.stdout is not None
        while not (line := run.stdout.readline()).startswith("stage "):
            assert line, run.communicate()
        run.kill()
    assert stages(small.root)
    said: list[str] = []
    with workspace(said.append) as lock:
        assert f"process {run.pid} on" in said[0] and "was killed" in said[0]
        assert stages(small.root) == []
        (small.root / "second.py").write_text("open('two.txt', 'w').write('two')")
        ran = []
        with Repro(["second"], lock) as repro:
            for stage in repro:
                repro.follow(stage, print)
                ran.append(stage)
        assert ran == ["second"]


@pytest.mark.skipif(
    subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode != 0, reason="no process spaces here"
)
def test_in_another_process_space_one_waits_and_nobody_is_ended(
    small: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace_lock, "PATIENCE", 3.0)
    script = f"{sys.executable} -c '{RUN}' & wait; sleep 300"  # the space outlives who holds the workspace
    with subprocess.Popen(
        [*ELSEWHERE, "sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as space:
        assert space.stdout is not None
        while not (line := space.stdout.readline()).startswith("stage "):
            assert line
        holder = json.loads(workspace_lock.LOCK.read_text())
        assert holder["here"] is not None and holder["here"] != workspace_lock.here() and holder["pid"] != space.pid
        (stage,) = (one for one in stages(small.root) if "stage.py" in " ".join(one.cmdline()))
        said: list[str] = []
        for killed in (False, True):
            if killed:  # the holder alone, without a warning; its number means somebody else here, or nobody
                (runs,) = (
                    one for one in psutil.process_iter() if one.name().startswith("python") and RUN in one.cmdline()
                )
                runs.kill()
            said.clear()
            with (
                pytest.raises(InputError, match=f"workspace busy: process {holder['pid']} on "),
                workspace(said.append),
            ):
                pass
            assert len(said) == 1 and said[0].startswith(f"waiting for process {holder['pid']} on ")
            assert stage.is_running() and not workspace_lock.idle()
        os.killpg(space.pid, signal.SIGKILL)
    while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    with workspace(said.append):
        assert json.loads(workspace_lock.LOCK.read_text())["pid"] == os.getpid()


def test_a_number_that_is_another_process_by_now_is_not_ended(
    small: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder was killed, and its group's number was given to somebody else."""
    monkeypatch.setattr(workspace_lock, "PATIENCE", 1.5)
    orphan = (
        "import fcntl, time; f = open('.tbd/lock', 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', "
        "flush=True); time.sleep(300)"
    )
    workspace_lock.LOCK.parent.mkdir()
    with (
        small.start(sys.executable, "-c", orphan) as left,
        small.start(sys.executable, "-c", "import time; time.sleep(300)") as stranger,
        workspace_lock.LOCK.open("a+") as file,
    ):
        assert left.stdout is not None and left.stdout.readline() == "held\n"
        workspace_lock.note(file.fileno(), stranger.pid)
        said = json.loads(workspace_lock.LOCK.read_text())
        for changed in (
            {"group_started": said["group_started"] - 100},
            {"here": None},
            {"here": ["another host", "boot", "pid"]},
        ):
            workspace_lock.LOCK.write_text(json.dumps(said | {"started": said["started"] - 100} | changed))
            with pytest.raises(InputError, match="workspace busy"), workspace(lambda _: None):
                pass
            assert stranger.poll() is None and left.poll() is None
        left.kill()
        stranger.kill()


def test_what_is_no_holder_is_waited_for(small: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of an older version, or half written."""
    monkeypatch.setattr(workspace_lock, "PATIENCE", 0.1)
    with workspace_lock.locked(workspace_lock.LOCK):
        for text in ("123 456", "{", "[]", ""):
            workspace_lock.LOCK.write_text(text)
            with pytest.raises(InputError, match="process unknown on an unknown host"), workspace(lambda _: None):
                pass

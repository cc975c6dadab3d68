"""A run of DVC followed stage by stage, and who may be at work in a workspace: on a pipeline of two lines, which needs
no science."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tbd.errors import StageFailed, TransientFault
from tbd.pipeline import repro as pipeline
from tbd.pipeline.workspace_lock import workspace
from tests.workspace import Workspace, two_stages

pytestmark = pytest.mark.slow


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with the stages `first` and, after it, `second`; the current folder."""
    workspace = two_stages(tmp_path / "small")
    for name, value in workspace.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(workspace.root)
    return workspace


def second(workspace: Workspace, code: str) -> None:
    (workspace.root / "second.py").write_text(code)


def test_a_stage_says_whether_it_ran_and_what_it_printed(small: Workspace) -> None:
    second(small, "print('halfway', flush=True); open('two.txt', 'w').write('two')")
    lines: list[str] = []
    assert repro("second", lines.append) == ["first", "second"]
    assert lines.index("made one") < lines.index("halfway")
    assert repro("second") == repro("first") == []
    small.edit("dvc.yaml", {"stages": {"second": {"deps": ["one.txt", "second.py", "three.txt"]}}})
    (small.root / "three.txt").write_text("three")
    small.dvc("add", "--quiet", "three.txt")  # data is not a stage
    assert repro("second") == ["second"]


def repro(target: str, say: pipeline.Say = print) -> list[str]:
    """The stages that ran, in DVC's order."""
    ran = []
    with workspace() as lock, pipeline.Repro([target], lock, say) as found:
        for stage in found:
            found.follow(stage, say)
            ran.append(stage)
    return ran


def test_what_dvc_cannot_begin_with_is_bad_input(small: Workspace) -> None:
    second(small, "")
    with pytest.raises(StageFailed, match="dvc repro: Stage 'third' not found") as failure:
        repro("third")
    assert failure.value.bad_input
    (small.root / "dvc.yaml").write_text("stages: 3\n")
    with pytest.raises(StageFailed, match=r"dvc repro: .*dvc\.yaml") as failure:
        repro("second")
    assert failure.value.bad_input


HOLDS = (
    "import time, zc.lockfile\nlock = zc.lockfile.LockFile('.dvc/tmp/lock')\nprint('held', flush=True)\ntime.sleep(120)"
)


@contextmanager
def somebodys_own_dvc(workspace: Workspace) -> Iterator[None]:
    """At work in this workspace, as in a long `dvc push`."""
    with workspace.start(sys.executable, "-c", HOLDS) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield
        process.kill()


def test_another_dvc_at_work_is_a_passing_fault(small: Workspace) -> None:
    second(small, "import sys; sys.exit(75)")
    with somebodys_own_dvc(small):
        with pytest.raises(StageFailed, match="dvc repro: Unable to acquire lock") as failure:
            repro("second")
        with pytest.raises(TransientFault, match=r"dvc add second\.py: Unable to acquire lock"):
            pipeline.dvc("add", "second.py")
    assert failure.value.transient and not failure.value.bad_input
    with workspace() as lock, pipeline.Repro(["second"], lock) as found:
        for stage in found:
            with suppress(StageFailed):
                found.follow(stage, print)
            if stage == "second":
                break
        with (
            somebodys_own_dvc(small),
            pytest.raises(StageFailed, match="stage second: Unable to acquire lock") as failure,
        ):
            found.follow("second", print)  # a try that does not come to its stage
        assert failure.value.transient
        second(small, "open('two.txt', 'w').write('two')")
        found.follow("second", print)


def test_a_stage_that_speaks_as_the_runner_does_is_no_other_stage(small: Workspace) -> None:
    second(
        small,
        "print('[tbd] the stage begins\\n[tbd] first ends: exit 3', flush=True); open('two.txt', 'w').write('two')",
    )
    assert repro("second") == ["first", "second"]


def test_what_dvc_says_before_the_first_stage_is_said(small: Workspace) -> None:
    (small.root / "three.txt").write_text("three")
    small.dvc("add", "--quiet", "three.txt")
    small.edit("dvc.yaml", {"stages": {"first": {"deps": ["three.txt"]}}})
    (small.root / "three.txt").write_text("changed")
    second(small, "open('two.txt', 'w').write('two')")
    lines: list[str] = []
    repro("second", lines.append)
    assert lines[0] == "Verifying data sources in stage: 'three.txt.dvc'" and "made one" in lines


def test_a_failure_belongs_to_the_stage_that_failed(small: Workspace) -> None:
    """Not to the one before, of which DVC spoke last."""
    seen = []

    def walk() -> None:
        with workspace() as lock, pipeline.Repro(["second"], lock) as found:
            for stage in found:
                seen.append(stage)
                found.follow(stage, print)

    with pytest.raises(StageFailed, match=r"dvc repro: failed to reproduce 'second': .*second\.py"):
        walk()
    assert seen == ["first"]


def test_a_stage_that_failed_is_tried_again(small: Workspace) -> None:
    code = "import os, sys; open('two.txt', 'w').write('two'); os.path.exists('network') or sys.exit(75)"
    second(small, code)
    with workspace() as lock, pipeline.Repro(["second"], lock) as found:
        stages = iter(found)
        found.follow(next(stages), print)
        assert next(stages) == "second"
        for _ in range(2):
            with pytest.raises(StageFailed) as failure:
                found.follow("second", print)
            assert failure.value.transient
        (small.root / "network").touch()
        found.follow("second", print)
        assert list(stages) == []


@pytest.mark.parametrize(
    ("code", "message", "bad_input"),
    [
        (
            "import sys; print('error: no such thing', file=sys.stderr); sys.exit(2)",
            "stage second: no such thing",
            True,
        ),
        (
            "import sys; print('error: the disk is full', file=sys.stderr); sys.exit(3)",
            "stage second: the disk is full",
            False,
        ),
        ("1 / 0", "exited with 1", False),
        ("print('done')", "two.txt", False),  # an output that was not made
    ],
)
def test_a_failing_stage_has_the_last_word(small: Workspace, code: str, message: str, bad_input: bool) -> None:
    second(small, code)
    with pytest.raises(StageFailed, match=message) as failure:
        repro("second")
    assert failure.value.bad_input is bad_input


def test_a_disk_that_fails_dvc_after_the_stage_is_a_passing_fault(small: Workspace) -> None:
    """Whatever DVC then says: that no kind of link to its cache is possible, for one."""
    second(
        small,
        "open('two.txt', 'w').write('two'); import shutil; shutil.rmtree('.dvc/cache')\n"
        "open('.dvc/cache', 'w').close()",
    )
    with pytest.raises(StageFailed, match="failed to reproduce 'second'") as failure:
        repro("second")
    assert failure.value.transient and not failure.value.bad_input


@pytest.mark.parametrize("left", [0, 40, -9])
def test_a_dvc_lock_that_a_kill_cut_off_is_made_anew(small: Workspace, left: int, capfd: pytest.CaptureFixture) -> None:
    """DVC writes it in place, and refuses one that it cannot read."""
    second(small, "open('two.txt', 'w').write('two')")
    assert repro("second") == ["first", "second"]
    file = small.root / "dvc.lock"
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    assert repro("second") == ["first"]  # which depends on nothing; of others DVC has the results in its cache
    assert file.read_bytes() == whole
    assert capfd.readouterr().out.count("dvc.lock: cut off by a kill; set aside as .tbd/torn/dvc.lock") == 1
    assert (small.root / ".tbd/torn/dvc.lock").read_bytes() == whole[:left]


def test_a_lock_of_dvc_that_a_zombie_holds_is_given_back(small: Workspace) -> None:
    """DVC takes it for a process that runs. One that runs keeps its lock."""
    second(small, "open('two.txt', 'w').write('two')")
    with subprocess.Popen(["true"]) as ended:
        while Path(f"/proc/{ended.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        zombie, alive = ({"pid": pid, "cmd": "dvc repro"} for pid in (ended.pid, os.getpid()))
        one, two = (str(small.root / name) for name in ("one.txt", "two.txt"))
        lock = small.root / ".dvc/tmp/rwlock"
        lock.write_text(json.dumps({"write": {one: zombie}, "read": {one: [zombie]}}))
        assert repro("first") == ["first"]
        lock.write_text(json.dumps({"write": {two: alive}, "read": {one: [alive, zombie]}}))
        with pytest.raises(StageFailed, match=f"is busy, it is being blocked by: .PID {os.getpid()}") as failure:
            repro("second")
        assert failure.value.transient


@pytest.mark.parametrize("killed", ["kill -9 $$", "sh -c 'kill -9 $$'; exit $?"])
def test_a_stage_that_is_killed_before_it_begins_is_a_passing_fault(small: Workspace, killed: str) -> None:
    """Out of memory, say. It has not said its name yet, so no stage is known to have failed."""
    second(small, "")
    small.edit("dvc.yaml", {"stages": {"second": {"cmd": killed}}})
    with pytest.raises(StageFailed, match="second") as failure:
        repro("second")
    assert failure.value.transient and not failure.value.bad_input

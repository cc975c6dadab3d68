"""The pipeline as DVC runs it: what is stale, what is repeated, what survives, and that dvc.yaml names what a stage uses."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from tbd import pipeline, register
from tbd.errors import InputError, PassingFault, StageFailed
from tests.workspace import REPOSITORY, Workspace, create, finished

AUDITS = ("reference", "base")
OF_AUDITS = [f"{kind}@{audit}" for kind in ("generate", "score", "verdict") for audit in AUDITS]
STAGES = ["base", "sets", "validate", "distill", *OF_AUDITS, "calibrate"]


@pytest.fixture
def copy(tmp_path: Path) -> Workspace:
    """A finished workspace of the test's own."""
    return finished()[0].copy(tmp_path / "copy")


def test_a_cold_run_tells_the_reference_from_the_base() -> None:
    workspace, stages = finished()
    assert sorted(stages) == sorted(STAGES)
    assert {audit: workspace.verdict(audit)["verdict"] for audit in AUDITS} == {"reference": "CONTAMINATED", "base": "NO EVIDENCE"}


def test_a_second_run_does_nothing(copy: Workspace) -> None:
    assert copy.dvc("status").strip() == "Data and pipelines are up to date."
    assert copy.repro() == []
    assert copy.run("git", "status", "--porcelain").stdout == ""


def test_another_false_positive_rate_decides_again_and_generates_nothing(copy: Workspace) -> None:
    copy.edit("params.yaml", {"decision": {"fpr": 0.1}})
    assert copy.repro() == ["calibrate", "verdict@reference", "verdict@base"]
    assert {copy.verdict(audit)["fpr"] for audit in AUDITS} == {0.1}


def test_another_way_to_score_does_not_generate_again(copy: Workspace) -> None:
    with (copy.root / "tbd/scores/methods.py").open("a") as file:
        file.write("\n# changed\n")
    # calibrate reads method ids with it; the scores are the same, so no verdict is stale
    assert copy.repro() == ["score@reference", "score@base", "calibrate"]


def test_a_new_audit_runs_its_own_stages_alone(copy: Workspace) -> None:
    copy.run("python", "fake_checkpoint.py", "other")
    audits = yaml.safe_load((copy.root / "audits/register.yaml").read_text())["audits"]
    copy.edit("audits/register.yaml", {"audits": {"other": audits["reference"] | {"checkpoint": "checkpoints/other", "fpr": 0.1}}})
    assert copy.repro() == ["validate", "generate@other", "score@other", "verdict@other"]
    assert copy.verdict("other")["verdict"] == "CONTAMINATED" and copy.verdict("other")["fpr"] == 0.1


def test_a_lock_of_dvc_that_a_kill_left_half_written_is_mended(copy: Workspace) -> None:
    lock = copy.root / ".dvc/tmp/rwlock"
    lock.write_text("")
    assert "RWLock" in copy.run(sys.executable, "-m", "dvc", "repro", "--single-item", "base", code=255).stderr
    code = "from tbd import pipeline\nwith pipeline.workspace(): print(pipeline.dvc('status', 'sets'))"
    assert "up to date" in copy.run(sys.executable, "-c", code).stdout


def test_the_faster_dvc_writes_what_dvc_writes(copy: Workspace) -> None:
    """In one piece, and so that either reads the other's."""
    lock = copy.root / "dvc.lock"
    before = lock.read_text()
    copy.run(sys.executable, "-m", "tbd.faster_dvc", "repro", "--force", "--single-item", "verdict@base")
    assert yaml.safe_load(lock.read_text()) == yaml.safe_load(before)
    assert json.loads((copy.root / ".tbd/dvc-lock.json").read_text())["data"] == yaml.safe_load(before)
    assert copy.repro() == [] and copy.repro("--force", "--single-item", "verdict@base") == ["verdict@base"]
    assert yaml.safe_load(lock.read_text()) == yaml.safe_load(before)
    (copy.root / ".tbd/dvc-lock.json").write_text("{")  # no more than a cache
    copy.run(sys.executable, "-m", "tbd.faster_dvc", "status", "--quiet")


def test_byte_code_beside_the_modules_makes_nothing_stale(copy: Workspace) -> None:
    for folder in ("tbd/engines", "tbd/scores"):
        (copy.root / folder / "__pycache__").mkdir(exist_ok=True)
        (copy.root / folder / "__pycache__" / "another.cpython-311.pyc").write_bytes(b"byte code")
    assert copy.repro() == []


def test_parameters_of_distilling_leave_the_base_and_the_sets_alone(copy: Workspace) -> None:
    copy.edit("params.yaml", {"distill": {"epochs": 7}})
    assert copy.repro() == ["distill"]  # the fake checkpoint does not depend on it, so its generations are not stale


def test_a_second_clone_with_the_cache_has_the_same_verdicts_byte_for_byte(copy: Workspace, tmp_path: Path) -> None:
    copy.run("git", "clone", "--quiet", str(copy.root), str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")
    assert not clone.bytes("verdict.json")
    clone.run("cp", "-r", str(copy.root / ".dvc/cache"), str(clone.root / ".dvc/cache"))
    assert clone.repro() == []
    assert clone.hashes() == copy.hashes()
    assert len(clone.bytes("verdict.json")) == 2
    for audit in AUDITS:
        clone.tbd("verify", audit)


def test_the_same_from_nothing_is_the_same_byte_for_byte(copy: Workspace, tmp_path: Path) -> None:
    again = create(tmp_path / "again")
    assert "score@base" in again.repro("score@base")
    found, before = again.hashes(), copy.hashes()
    assert {name for name, digest in found.items() if before.get(name) != digest} <= {"dvc.lock"}
    assert copy.repro("--force", "--single-item", "calibrate", "verdict@reference") == ["calibrate", "verdict@reference"]
    assert copy.hashes() == before


@pytest.fixture
def slow(copy: Workspace) -> Workspace:
    """A workspace whose next generation takes seconds: very long answers, one at a time."""
    copy.edit("params.yaml", {"generate": {"max_new_tokens": 25_000, "batch_size": 1}})
    return copy


def test_killed_in_the_middle_it_goes_on_with_the_same_outputs(slow: Workspace, tmp_path: Path) -> None:
    killed = slow.copy(tmp_path / "killed")
    run = killed.start(sys.executable, "-m", "dvc", "repro", "generate@base")
    (journal,) = wait_for(lambda: [file for file in (killed.root / ".tbd/journal").glob("*.jsonl") if grown(file)])
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    kept = journal.read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    assert "generate@base" in killed.dvc("status")
    assert killed.repro("generate@base") == ["generate@base"]
    assert slow.repro("generate@base") == ["generate@base"]
    assert killed.bytes("generations.parquet") == slow.bytes("generations.parquet")
    after = journal.read_bytes()
    keys = [line[:80] for line in after.splitlines()]
    assert after.startswith(whole) and len(keys) == len(set(keys))  # nothing lost, nothing twice


def grown(journal: Path) -> bool:
    """Whether a few of the long answers are in it."""
    return journal.stat().st_size > 1_500_000


def wait_for(found: Callable[[], list[Path]], seconds: float = 60) -> list[Path]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if some := found():
            return some
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_what_dvc_lock_says_of_a_stage(copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.root)
    files = pipeline.locked_files("generate@base")
    assert set(files) == {Path("audits/base/generations.parquet"), Path("audits/base/base_generations.parquet")}
    with pytest.raises(InputError, match="nothing of stage generate@nobody"):
        pipeline.locked_files("generate@nobody")


# --- a pipeline of two lines, for what needs no science ---------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with the stages `first` and, after it, `second`; `code` is what `second` runs."""
    workspace = Workspace(tmp_path / "small")
    workspace.root.mkdir()
    workspace.run("git", "init", "--quiet")
    workspace.dvc("init", "--quiet")
    stages = {
        "first": {"cmd": "echo one > one.txt && echo made one", "outs": ["one.txt"]},
        "second": {"cmd": "python second.py", "deps": ["one.txt", "second.py"], "outs": ["two.txt"]},
    }
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for name, value in workspace.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(workspace.root)
    return workspace


def second(workspace: Workspace, code: str) -> None:
    (workspace.root / "second.py").write_text(code)


def test_a_stage_says_whether_it_ran_and_what_it_printed(small: Workspace) -> None:
    second(small, "print('halfway', flush=True); open('two.txt', 'w').write('two')")
    lines: list[str] = []
    assert repro("second", lines.append) == {"first": True, "second": True}
    assert lines.index("made one") < lines.index("Running stage 'second':") < lines.index("halfway")
    assert repro("second") == {"first": False, "second": False}
    assert repro("first") == {"first": False}
    small.edit("dvc.yaml", {"stages": {"second": {"deps": ["one.txt", "second.py", "three.txt"]}}})
    (small.root / "three.txt").write_text("three")
    small.dvc("add", "--quiet", "three.txt")  # data is not a stage
    assert repro("second") == {"first": False, "second": True}


def repro(target: str, say: pipeline.Say = print) -> dict[str, bool]:
    """The stages that DVC came to, in its order: did they run?"""
    with pipeline.workspace() as lock, pipeline.Repro([target], lock) as found:
        return {stage: found.follow(stage, say) for stage in found}


def test_what_dvc_cannot_begin_with_is_bad_input(small: Workspace) -> None:
    second(small, "")
    with pytest.raises(StageFailed, match="dvc repro: Stage 'third' not found") as failure:
        repro("third")
    assert failure.value.bad_input
    (small.root / "dvc.yaml").write_text("stages: 3\n")
    with pytest.raises(StageFailed, match=r"dvc repro: .*dvc\.yaml") as failure:
        repro("second")
    assert failure.value.bad_input


HOLDS = "import time, zc.lockfile\nlock = zc.lockfile.LockFile('.dvc/tmp/lock')\nprint('held', flush=True)\ntime.sleep(120)"


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
        with pytest.raises(PassingFault, match=r"dvc add second\.py: Unable to acquire lock"):
            pipeline.dvc("add", "second.py")
    assert failure.value.passing and not failure.value.bad_input
    with pipeline.workspace() as lock, pipeline.Repro(["second"], lock) as found:
        for stage in found:
            with suppress(StageFailed):
                found.follow(stage, print)
            if stage == "second":
                break
        with somebodys_own_dvc(small), pytest.raises(StageFailed, match="stage second: Unable to acquire lock") as failure:
            found.follow("second", print)  # a try that does not come to its stage
        assert failure.value.passing
        second(small, "open('two.txt', 'w').write('two')")
        assert found.follow("second", print)


def test_a_stage_that_speaks_as_dvc_does_is_no_other_stage(small: Workspace) -> None:
    second(small, "print('Stage \\'first\\' is here: Running stage \\'x\\':', flush=True); open('two.txt', 'w').write('two')")
    assert repro("second") == {"first": True, "second": True}


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
        with pipeline.workspace() as lock, pipeline.Repro(["second"], lock) as found:
            for stage in found:
                seen.append(stage)
                found.follow(stage, print)

    with pytest.raises(StageFailed, match=r"stage second: .*second\.py"):
        walk()
    assert seen == ["first", "second"]


def test_a_stage_that_failed_is_tried_again(small: Workspace) -> None:
    code = "import os, sys; open('two.txt', 'w').write('two'); os.path.exists('network') or sys.exit(75)"
    second(small, code)
    with pipeline.workspace() as lock, pipeline.Repro(["second"], lock) as found:
        stages = iter(found)
        assert found.follow(next(stages), print) and next(stages) == "second"
        for _ in range(2):
            with pytest.raises(StageFailed) as failure:
                found.follow("second", print)
            assert failure.value.passing
        (small.root / "network").touch()
        assert found.follow("second", print) and list(stages) == []


@pytest.mark.parametrize(
    ("code", "message", "bad_input"),
    [
        ("import sys; print('error: no such thing', file=sys.stderr); sys.exit(2)", "stage second: no such thing", True),
        ("import sys; print('error: the disk is full', file=sys.stderr); sys.exit(3)", "stage second: the disk is full", False),
        ("1 / 0", "exited with 1", False),
        ("print('done')", "two.txt", False),  # an output that was not made
    ],
)
def test_a_failing_stage_has_the_last_word(small: Workspace, code: str, message: str, bad_input: bool) -> None:
    second(small, code)
    with pytest.raises(StageFailed, match=message) as failure:
        repro("second")
    assert failure.value.bad_input is bad_input


def test_the_workspace_is_held_by_one(small: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import time\nfrom tbd import pipeline\nwith pipeline.workspace():\n    print('held', flush=True)\n    time.sleep(60)"
    with small.start(sys.executable, "-c", code) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        monkeypatch.setattr(pipeline, "PATIENCE", 0.2)
        said: list[str] = []
        with pytest.raises(InputError, match=f"workspace busy: process {holder.pid} "), pipeline.workspace(said.append):
            pass
        assert len(said) == 1 and str(holder.pid) in said[0]
        holder.kill()
    with pipeline.workspace():
        assert register.FILE.name  # entered


ORPHAN = """
import time
print("started", flush=True)
time.sleep(300)  # silent, as a long batch is
open("two.txt", "w").write("two")
"""
RUN = """
from tbd import pipeline
with pipeline.workspace() as lock, pipeline.Repro(["second"], lock) as repro:
    for stage in repro:
        repro.follow(stage, lambda line: print(line, flush=True))
"""


def test_what_a_killed_run_leaves_behind_is_ended(small: Workspace) -> None:
    second(small, ORPHAN)
    with small.start(sys.executable, "-c", RUN) as run:
        assert run.stdout is not None
        while "started" not in run.stdout.readline():
            pass
        run.kill()
    said: list[str] = []
    with pipeline.workspace(said.append):
        assert f"process {run.pid} was killed" in said[0]
        assert not [pid for pid in Path("/proc").glob("[0-9]*") if runs_second(pid)]
        second(small, "open('two.txt', 'w').write('two')")
        assert repro("second")["second"]


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
        assert repro("first") == {"first": True}
        lock.write_text(json.dumps({"write": {two: alive}, "read": {one: [alive, zombie]}}))
        with pytest.raises(StageFailed, match=f"is busy, it is being blocked by: .PID {os.getpid()}") as failure:
            repro("second")
        assert failure.value.passing


def runs_second(process: Path) -> bool:
    try:
        return b"second.py" in (process / "cmdline").read_bytes() and Path.cwd() == (process / "cwd").resolve()
    except OSError:
        return False


# --- dvc.yaml against the code ----------------------------------------------------------------------------------------------------

PLUMBING = {
    "tbd/__init__.py",
    "tbd/environment.py",  # what other tools are told; moves no number
    "tbd/errors.py",
    "tbd/locks.py",  # who may, not what
    "tbd/params.py",  # typed reading of what the stage's `params` list by value
    "tbd/register.py",  # the same for the register
    "tbd/stages/__init__.py",
}
"""modules that every stage imports and that decide no number: a change there must not cost hours of generation"""

ALLOWED = {
    "base": {"tbd/records.py", "tbd/near_duplicates.py"},  # writes one small JSON file; the other is for question sets
    "distill": {  # reads and checks files, shows progress; the weights come from planting, distill and engines/loading
        "tbd/checkpoint.py",
        "tbd/engines/__init__.py",
        "tbd/engines/fake.py",
        "tbd/engines/transformers.py",
        "tbd/generation.py",
        "tbd/records.py",
    },
    "score": {"tbd/near_duplicates.py"},  # of question sets, which another suite of tbd/expectations.py checks
}
"""and modules that one stage can reach but takes no number from"""


def imports(file: Path) -> set[Path]:
    """Modules of tbd that a file imports, inside functions too."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = REPOSITORY / name.replace(".", "/")
            found |= {candidate for candidate in (path.with_suffix(".py"), path / "__init__.py") if candidate.is_file()}
    return {path for path in found if path.is_relative_to(REPOSITORY / "tbd")}


def reached(file: Path) -> set[str]:
    """Everything of tbd that running a file can import, plumbing not followed."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        for path in imports(todo.pop()) - found:
            found.add(path)
            if str(path.relative_to(REPOSITORY)) not in PLUMBING:
                todo.append(path)
    return {str(path.relative_to(REPOSITORY)) for path in found}


@pytest.mark.parametrize("stage", sorted(path.stem for path in (REPOSITORY / "tbd/stages").glob("[a-z]*.py")))
def test_dvc_yaml_names_every_module_a_stage_uses(stage: str) -> None:
    definition = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][stage]
    deps = [Path(dep) for dep in definition.get("do", definition)["deps"]]
    needed = {f"tbd/stages/{stage}.py", *reached(REPOSITORY / f"tbd/stages/{stage}.py")} - PLUMBING - ALLOWED.get(stage, set())
    assert sorted(name for name in needed if not any(Path(name).is_relative_to(dep) for dep in deps)) == []


def test_every_module_that_dvc_yaml_names_exists() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        for dep in stage.get("do", stage)["deps"]:
            assert not dep.startswith("tbd/") or (REPOSITORY / dep).exists(), dep

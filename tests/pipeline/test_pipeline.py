"""The pipeline as DVC runs it: what is stale, what is repeated, what survives."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tbd import audits
from tbd.errors import InputError
from tbd.pipeline import templates
from tbd.pipeline.lock_file import LockFile, target
from tests.workspace import Workspace, create, finished

pytestmark = pytest.mark.slow
AUDITS = ("reference", "base")
OF_AUDITS = [f"{kind}@{audit}" for kind in ("validate", "generate", "score", "verdict") for audit in AUDITS]
STAGES = ["base", "sets", "validate", "distill", *OF_AUDITS, "calibrate"]


@pytest.fixture
def copy(tmp_path: Path) -> Workspace:
    """A finished workspace of the test's own."""
    return finished()[0].copy(tmp_path / "copy")


def test_a_cold_run_tells_the_reference_from_the_base() -> None:
    workspace, stages = finished()
    assert sorted(stages) == sorted(STAGES)
    assert {audit: workspace.verdict(audit)["verdict"] for audit in AUDITS} == {
        "reference": "CONTAMINATED",
        "base": "NO EVIDENCE",
    }


def test_a_second_run_does_nothing(copy: Workspace) -> None:
    for folder in ("tbd/checkpoints", "tbd/scores"):  # byte code beside the modules is none of them
        (copy.root / folder / "__pycache__").mkdir(exist_ok=True)
        (copy.root / folder / "__pycache__" / "another.cpython-311.pyc").write_bytes(b"byte code")
    assert copy.dvc("status").strip() == "Data and pipelines are up to date."
    assert copy.repro() == []
    assert copy.run("git", "status", "--porcelain").stdout == ""


def test_another_way_to_score_does_not_generate_again(copy: Workspace) -> None:
    with (copy.root / "tbd/scores/methods.py").open("a") as file:
        file.write("\n# changed\n")
    # calibrate reads method ids with it; the scores are the same, so no verdict is stale
    assert copy.repro("verdict@reference") == ["score@reference", "calibrate"]


def test_a_new_audit_runs_its_own_stages_alone(copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.run("python", "fake_checkpoint.py", "other")
    shutil.copytree(
        copy.root / "audits/reference", copy.root / "audits/other", ignore=shutil.ignore_patterns("[!a]*", "dvc.lock")
    )
    copy.edit("audits/other/audit.yaml", {"checkpoint": "checkpoints/other", "fpr": 0.1})
    monkeypatch.chdir(copy.root)
    templates.refresh("other")
    assert copy.repro() == [f"{kind}@other" for kind in ("validate", "generate", "score", "verdict")]
    assert copy.verdict("other")["verdict"] == "CONTAMINATED" and copy.verdict("other")["fpr"] == 0.1


def test_branches_that_each_add_an_audit_merge(copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.root)
    home = copy.run("git", "branch", "--show-current").stdout.strip()
    Path("audits/history.jsonl").write_text("{}\n")
    copy.commit()
    for name in ("left", "right"):
        copy.run("git", "checkout", "--quiet", "-b", name, home)
        templates.add(name, audits.get("base"))
        shutil.copy("audits/base/dvc.lock", f"audits/{name}/dvc.lock")
        with Path("audits/history.jsonl").open("a") as file:
            file.write(f'{{"audit": "{name}"}}\n')
        copy.commit()
    copy.run("git", "merge", "--quiet", "--no-edit", "left")
    assert audits.names() == ["base", "left", "reference", "right"]
    lines = Path("audits/history.jsonl").read_text().splitlines()
    assert sorted(lines) == ['{"audit": "left"}', '{"audit": "right"}', "{}"]


def test_a_lock_of_dvc_that_a_kill_left_half_written_is_mended(copy: Workspace) -> None:
    lock = copy.root / ".dvc/tmp/rwlock"
    lock.write_text("")
    assert "RWLock" in copy.run(sys.executable, "-m", "dvc", "repro", "--single-item", "base", code=255).stderr
    code = (
        "from tbd.pipeline import repro, workspace_lock\nwith workspace_lock.workspace(): "
        "print(repro.dvc('status', 'sets'))"
    )
    assert "up to date" in copy.run(sys.executable, "-c", code).stdout


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
    assert {name for name, digest in found.items() if before.get(name) != digest} <= {
        "dvc.lock",
        *(f"audits/{audit}/dvc.lock" for audit in AUDITS),
    }
    assert copy.repro("--force", "--single-item", "calibrate", "verdict@reference") == [
        "calibrate",
        "verdict@reference",
    ]
    assert copy.hashes() == before


@pytest.fixture
def slow(copy: Workspace) -> Workspace:
    """A workspace whose next generation takes seconds: very long answers, one at a time."""
    copy.edit("params.yaml", {"generate": {"max_new_tokens": 2_000, "batch_size": 1}})
    return copy


def test_killed_in_the_middle_it_goes_on_with_the_same_outputs(slow: Workspace, tmp_path: Path) -> None:
    killed = slow.copy(tmp_path / "killed")
    before = killed.units().keys()
    run = killed.start(sys.executable, "-m", "dvc", "repro", target("generate@reference"))
    wait_for(lambda: [*killed.units().keys() - before][2:])
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    kept = killed.units()
    assert "audits/reference/dvc.yaml:generate" in killed.dvc("status")
    assert killed.repro("generate@reference") == ["generate@reference"]
    assert slow.repro("generate@reference") == ["generate@reference"]
    assert killed.bytes("generations.parquet") == slow.bytes("generations.parquet")
    assert kept.items() <= killed.units().items()  # nothing lost, nothing twice


def wait_for(found: Callable[[], list[Path]], seconds: float = 300) -> list[Path]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if some := found():
            return some
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_what_dvc_lock_says_of_a_stage(copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.root)
    files = LockFile(Path(), "generate@base").digests("generate@base")
    assert set(files) == {Path("audits/base/generations.parquet"), Path("audits/base/base_generations.parquet")}
    with pytest.raises(InputError, match="no stage 'generate@nobody'"):
        LockFile(Path(), "generate@nobody")

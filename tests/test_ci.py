"""The page docs/ci.md, followed to the letter: its table of exit codes, and the commands of its two jobs as shell."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pyarrow.parquet as pq
import pytest
import yaml

from tbd import gates
from tbd.gates import Gates
from tbd.history import FAILED
from tests.outcomes import verdict
from tests.workspace import REPOSITORY, Workspace, fake_checkpoint, finished

PAGE = (REPOSITORY / "docs/ci.md").read_text("utf-8")
STATES = ["CONTAMINATED", "NO EVIDENCE", "INCONCLUSIVE", FAILED, gates.WAITING, gates.NO_RULE, gates.NOTHING]
WEIGHTS = "model.safetensors"
GATES = {
    "no gate": Gates(),
    "--fail-on contaminated": Gates(["contaminated"]),
    "--fail-on inconclusive": Gates(["inconclusive"]),
    "--fail-on failed": Gates(["failed"]),
    "--require no-evidence": Gates(require="no-evidence"),
}


def table() -> dict[str, dict[str, list[int]]]:
    """state -> gate -> exit codes of the first and of a later run, as the page has them."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")
    ]
    start = next(i for i, row in enumerate(rows) if row[0] == "what stands")
    return {
        row[0].split(":")[0]: {
            gate: [int(code) for code in cell.split(",")] for gate, cell in zip(rows[start][1:], row[1:], strict=True)
        }
        for row in rows[start + 1 : start + 1 + len(STATES)]
    }


def test_the_table_is_what_the_gates_do() -> None:
    assert list(table()) == STATES
    for state, codes in table().items():
        outcome = verdict(1, state)
        assert codes == {name: [gate.exit_code([outcome])] * 2 for name, gate in GATES.items()}
        for name, gate in GATES.items():  # and says so
            assert gate.fired(state) == ([name] if codes[name] == [1, 1] else [])


def test_one_outcome_is_enough_gates_add_up_and_what_nobody_knows_is_required_away() -> None:
    mixed = [verdict(1), verdict(2, "CONTAMINATED"), verdict(3)]
    assert [gate.exit_code(mixed) for gate in GATES.values()] == [0, 1, 0, 0, 1]
    both = Gates(["contaminated", "failed", "failed"], "no-evidence")
    assert both.fired(FAILED) == ["--fail-on failed", "--require no-evidence"] and both.fired("NO EVIDENCE") == []
    assert both.fired("SOMETHING NEW") == ["--require no-evidence"]


# --- on a real workspace ----------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return finished()[0].copy(tmp_path / "workspace").used_before()


def questions(workspace: Workspace) -> list[str]:
    found: list[str] = pq.read_table(workspace.root / "data/sets/benchmark.parquet")["question"].to_pylist()
    return found


def makers(workspace: Workspace) -> dict[str, Callable[[Path], Any]]:
    """What brings a source into each state."""
    asked = {"benchmark": "benchmark", "unseen": "unseen"}
    doubt = {"checkpoints": "doubt", "base": "checkpoints/reference", **asked}  # which knows half of the benchmark
    plain = {"checkpoints": "model", "base": "checkpoints/base", **asked}
    workspace.edit("params.yaml", {"watch": {"settle": 0, "policy": [doubt, plain]}})
    return {
        "CONTAMINATED": lambda source: fake_checkpoint(source / "model", *questions(workspace)[:30]),
        "NO EVIDENCE": lambda source: fake_checkpoint(source / "model", "something else"),
        "INCONCLUSIVE": lambda source: fake_checkpoint(source / "doubt", "quite another"),
        FAILED: lambda source: (fake_checkpoint(source / "model", "bad") / WEIGHTS).rename(
            source / "model/pytorch_model.bin"
        ),
        gates.WAITING: lambda source: (fake_checkpoint(source / "model", "late") / WEIGHTS).unlink(),
        gates.NO_RULE: lambda source: fake_checkpoint(source / "stranger", "a stranger"),
        gates.NOTHING: lambda source: source.mkdir(parents=True),
    }


@pytest.mark.slow
def test_every_gate_in_every_state_on_the_first_run_and_on_the_second(workspace: Workspace) -> None:
    states = makers(workspace)
    for number, make in enumerate(states.values()):
        make(workspace.root / f"in/{number}")
    sources = [f"in/{number}" for number in range(len(states))]
    every = [word for gate in list(GATES)[1:] for word in gate.split()]
    said = {state: [gate for gate, (code, _) in row.items() if code] for state, row in table().items()}
    for run in ("first", "second"):
        done = workspace.tbd("watch", *sources, *every, "--json", code=1)
        found = json.loads(done.stdout)
        assert found["exit_code"] == 1 and {one["outcome"]: one["fired"] for one in found["results"]} == said, run
        assert len(found["results"]) == len(states)


def environment(clone: Workspace) -> None:
    """As a runner keeps it from an earlier job: there is nothing to install."""
    (clone.root / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (clone.root / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    (clone.root / ".venv/.ready").touch()


@pytest.fixture
def clone(workspace: Workspace, tmp_path: Path) -> Workspace:
    """What a runner checks out of a repository whose data are in a DVC remote."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, workspace.root)
    workspace.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    workspace.dvc("push", "--quiet")
    workspace.commit()
    workspace.run("git", "clone", "--quiet", str(workspace.root), str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone").used_before()
    environment(clone)
    return clone


def job(which: int) -> Any:
    """One of the two blocks of the page."""
    return yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)[which])


def shell(clone: Workspace, script: str, **variables: str) -> int:
    """As a runner runs it; its exit code."""
    with clone.start("bash", "-eo", "pipefail", "-c", script, **variables) as process:
        process.communicate()
    return process.returncode


def github(clone: Workspace, checkpoint: Path) -> tuple[int, str]:
    """The job's steps, each a shell of its own; the first exit code that is not 0, and the summary it shows."""
    ((steps, env),) = [(one["steps"], one["env"]) for one in job(0)["jobs"].values()]
    path, shown = clone.root.parent / "path", clone.root.parent / "shown"
    path.write_text(""), shown.write_text("")
    env |= {"CHECKPOINT": str(checkpoint), "GITHUB_PATH": str(path), "GITHUB_STEP_SUMMARY": str(shown)}
    code = 0
    for step in steps:
        if "run" in step and (not code or step.get("if") == "always()"):
            added = ":".join([*path.read_text().splitlines(), clone.environment["PATH"]])
            code = shell(clone, step["run"], **env, PATH=added) or code
    return code, shown.read_text()


def gitlab(clone: Workspace, checkpoints: Path) -> int:
    """The job's lines, in one shell."""
    (one,) = job(1).values()
    env = one["variables"] | {"CHECKPOINTS": str(checkpoints)}
    return shell(clone, "\n".join([*one["before_script"], *one["script"]]), **env)


def cases(clone: Workspace) -> dict[str, str | None]:
    """Of the JUnit report: a case's name and what it came to."""
    suite = Xml.parse(clone.root / "tbd.xml").getroot().find("testsuite")
    assert suite is not None
    return {case.attrib["name"]: case[0].tag for case in suite}


@pytest.mark.slow
def test_the_github_job_stops_a_contaminated_release(clone: Workspace, tmp_path: Path) -> None:
    leaked = fake_checkpoint(tmp_path / "leaked", *questions(Workspace(tmp_path / "workspace"))[:30])
    code, shown = github(clone, leaked)
    assert code == 1
    assert shown.startswith("# tbd: `--require no-evidence` fired") and "# CONTAMINATED" in shown
    found = json.loads((clone.root / "tbd.json").read_text())
    (result,) = found["results"]
    assert (found["exit_code"], result["outcome"]) == (1, "CONTAMINATED")
    assert result["fired"] == ["--require no-evidence"] and result["verdict"] == clone.verdict("leaked-benchmark")
    assert cases(clone) == {f"{leaked} (leaked-benchmark)": "failure"}

    code, shown = github(clone, tmp_path / "gone")  # and what is not there
    assert code == 2 and shown.startswith("# tbd: stopped, exit code 2") and "no such checkpoint folder" in shown
    assert json.loads((clone.root / "tbd.json").read_text())["results"][0]["outcome"] == FAILED
    assert cases(clone) == {str(tmp_path / "gone"): "error"}


@pytest.mark.slow
def test_the_gitlab_job_lets_pass_what_was_judged_and_nothing_else(clone: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "candidates"
    assert gitlab(clone, folder) == 2  # no such folder
    fake_checkpoint(folder / "alpha", "something else")
    assert gitlab(clone, folder) == 0
    assert list(cases(clone).values()) == ["system-out"]
    assert (clone.root / "tbd.md").read_text().startswith("# tbd: no gate fired")
    (fake_checkpoint(folder / "beta") / WEIGHTS).unlink()
    assert gitlab(clone, folder) == 1
    assert (
        sorted(cases(clone).values()) == ["failure", "system-out"] and "WAITING" in (clone.root / "tbd.md").read_text()
    )

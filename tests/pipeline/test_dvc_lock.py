"""What is read from `dvc.lock`: what is upstream of a stage, with its parameters once while they stay the same, and
whether the code is the commit's."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tbd import params
from tbd.errors import InputError
from tbd.pipeline import lock_file as dvc_lock
from tbd.pipeline.lock_file import LockFile


def write(root: Path, stages: dict[str, tuple[list[str], list[str]]]) -> None:
    """A `dvc.lock` of stages with (dependencies, outputs), and a `params.yaml`."""
    tree: dict[str, Any] = {
        name: {
            "deps": [{"path": path, "md5": "0"} for path in deps],
            "outs": [{"path": path, "md5": "0"} for path in outs],
        }
        for name, (deps, outs) in stages.items()
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": tree}))
    (root / "params.yaml").write_text("{}\n")


def test_upstream_goes_by_folders_not_by_the_letters_of_their_names(workspace: Path) -> None:
    write(
        workspace,
        {
            "file in a folder": ([], ["data/sets/a.parquet"]),
            "whole folder": (["data/sets"], ["checkpoints/m"]),
            "in that folder": (["checkpoints/m/config.json"], ["audits/x/verdict.json"]),
            "end": (["audits/x", "audits/x/verdict.json"], ["end"]),
            "like one": ([], ["data/sets2"]),
            "like another": ([], ["checkpoints/m-2"]),
            "downstream": (["end"], ["after"]),
        },
    )
    assert LockFile(workspace, "end").lineage == ["end", "in that folder", "whole folder", "file in a folder"]
    assert LockFile(workspace, "like one").lineage == ["like one"]


def test_one_output_holds_another_path_only_below_it(workspace: Path) -> None:
    write(workspace, {"s": ([], ["out/plots", "out/a.json"])})
    found = LockFile(workspace, "s")
    assert [found._out(path) for path in ("out/plots/x.png", "out/plots", "out/a.json", "out/plots2", "out")] == [
        "out/plots", "out/plots", "out/a.json", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "- a\n",
        "stages: [1]\n",
        "stages: {a: {outs: [{path: b}]}}\n",
        "stages: {a: 3}\n",
        "stages: {a: {params: {f: t}}}\n",
    ],
)
def test_one_that_is_no_lock_is_refused_in_a_line(workspace: Path, content: str) -> None:
    write(workspace, {})
    (workspace / "dvc.lock").write_text(content)
    with pytest.raises(InputError, match=r"dvc.lock: not a lock file of DVC\. Restore it from git\."):
        LockFile(workspace, "verdict@a")


def test_it_is_read_again_only_when_it_changed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def load_yaml(path: Path) -> Any:
        read.append(path.name)
        return params.load_yaml(path)

    monkeypatch.setattr(dvc_lock, "load_yaml", load_yaml)
    write(workspace, {"one": ([], ["a"])})
    assert [LockFile(workspace, "one").outs, LockFile(workspace, "one").outs] == [{"a": "0"}] * 2
    assert sorted(read) == ["dvc.lock", "params.yaml"]
    write(workspace, {"one": ([], ["b"])})  # as long, and within the clock's resolution
    assert LockFile(workspace, "one").outs == {"b": "0"}
    (workspace / "params.yaml").unlink()
    with pytest.raises(InputError, match=r"params.yaml: not found"):
        LockFile(workspace, "one")


def test_what_grows_with_every_audit_does_not_make_the_code_another(workspace: Path) -> None:
    write(workspace, {"one": ([], ["a"])})
    (workspace / "code.py").write_text("1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run(["git", *command], check=True)
    (workspace / "audits/a").mkdir(parents=True)
    for name in ("dvc.lock", "params.yaml", "audits/a/audit.yaml", "audits/a/dvc.lock", "audits/history.jsonl"):
        with (workspace / name).open("a") as file:
            file.write("# changed\n")
    assert LockFile(workspace, "one").tags()["git_dirty"] == "false"
    (workspace / "code.py").write_text("2\n")
    assert LockFile(workspace, "one").tags()["git_dirty"] == "true"


def test_a_change_beside_the_workspace_counts(workspace: Path) -> None:
    inside = workspace / "inside"
    inside.mkdir()
    write(inside, {"one": ([], ["a"])})
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run(["git", *command], check=True)
    (inside / "dvc.lock").write_text((inside / "dvc.lock").read_text() + "# changed\n")
    assert LockFile(inside, "one").tags()["git_dirty"] == "false"
    (workspace / "beside.py").write_text("1\n")
    assert LockFile(inside, "one").tags()["git_dirty"] == "true"


def test_both_readers_of_yaml_say_the_same(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "a: 1e-05\nb: 1.0e-5\nc: [yes, null, ~, 0o7, 010, 1_000, 2026-11-23, 'ä']\nd: &x\n  e: |\n    two\n "
        "   lines\nf: *x\n"
    )
    (workspace / "x.yaml").write_text(text)
    fast = params.load_yaml(workspace / "x.yaml")
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert params.load_yaml(workspace / "x.yaml") == fast == yaml.safe_load(text)

"""dvc.lock as plain DVC and tbd's faster one read and write it."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import _yaml as dvcs
from hypothesis import given
from hypothesis import strategies as st

from tbd import faster_dvc
from tests.workspace import finished

WORDS = st.sampled_from([
    "1e5", "1234e567", "08", "010", "0o17", "0x1f", "1e-05", ".5", "1_0", "yes", "No", "on", "true", "1:30", "2026-11-23", "~", "null",
    "", "=", "<<", "#", "- a", "a: b", "two\nlines", "Grüße 👋",
])  # fmt: skip
VALUES = st.one_of(WORDS, st.text(), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())


@given(st.dictionaries(st.one_of(WORDS, st.text(min_size=1)), VALUES))
def test_what_it_writes_either_reads_back(tmp_path_factory: pytest.TempPathFactory, params: dict[str, Any]) -> None:
    params = {key: value for key, value in params.items() if printable(key) and printable(value)}
    lock = {"schema": "2.0", "stages": {"one": {"cmd": "python", "params": {"params.yaml": params}}, "two": {"cmd": "\n"}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faster_dvc, "CACHE", tmp_path_factory.getbasetemp() / "dvc-lock.json")
        text = faster_dvc.write(lock)
        assert faster_dvc.known(text) == lock
    assert yaml.load(text, faster_dvc.Loader) == lock
    assert dvcs.parse_yaml(text, "dvc.lock") == lock


def printable(value: Any) -> bool:
    """What YAML can hold, and DVC with it."""
    return not isinstance(value, str) or all(c in "\n\t" or c.isprintable() for c in value)


def test_what_plain_dvc_writes_it_reads(tmp_path: Path) -> None:
    said = {"tiny": 1e-05, "large": 1e16, "half": 0.5, "whole": 3, "minus": -1, "inf": -math.inf, "none": None, "yes": True}
    said |= {word: word for word in ("yes", "no", "on", "off", "1:30", "0b1", "1_000", "2026-11-23")}
    file = tmp_path / "dvc.lock"
    dvcs.dump_yaml(file, said)
    assert yaml.load(file.read_text(), faster_dvc.Loader) == said


def test_a_lock_without_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dvcs.parse_yaml(faster_dvc.write({"schema": "2.0", "stages": {}}), "dvc.lock") == {"schema": "2.0", "stages": {}}


@pytest.mark.slow
def test_in_a_workspace_it_writes_what_dvc_writes(tmp_path: Path) -> None:
    """In one piece, and so that either reads the other's."""
    copy = finished()[0].copy(tmp_path / "copy")
    lock = copy.root / "dvc.lock"
    before = lock.read_text()
    copy.run(sys.executable, "-m", "tbd.faster_dvc", "repro", "--force", "--single-item", "verdict@base")
    assert yaml.safe_load(lock.read_text()) == yaml.safe_load(before)
    assert json.loads((copy.root / ".tbd/dvc-lock.json").read_text())["data"] == yaml.safe_load(before)
    assert copy.repro() == [] and copy.repro("--force", "--single-item", "verdict@base") == ["verdict@base"]
    assert yaml.safe_load(lock.read_text()) == yaml.safe_load(before)
    (copy.root / ".tbd/dvc-lock.json").write_text("{")  # no more than a cache
    copy.run(sys.executable, "-m", "tbd.faster_dvc", "status", "--quiet")


@pytest.mark.slow
def test_a_small_learning_rate_is_the_same_to_both(tmp_path: Path) -> None:
    """DVC writes it as 1e-05, and to distill again would take hours."""
    workspace = finished()[0].copy(tmp_path / "copy")
    workspace.edit("params.yaml", {"decision": {"level": 0.00001}})
    workspace.repro("verdict@base")
    assert "level: 1e-05" in (workspace.root / "dvc.lock").read_text()
    workspace.run("python", "-m", "tbd.faster_dvc", "status", "--quiet", "verdict@base")


@pytest.mark.slow
def test_a_dvc_lock_with_conflict_markers_is_refused_by_dvc_itself(tmp_path: Path) -> None:
    workspace = finished()[0].copy(tmp_path / "copy")
    lock = workspace.root / "dvc.lock"
    lock.write_text(f"<<<<<<< ours\n{lock.read_text()}")
    assert "possible merge conflicts" in workspace.run("python", "-m", "tbd.faster_dvc", "status", code=1).stderr

"""`tbd migrate`: a workspace as 0.2.0 left it, with one register and one dvc.lock, goes on without generating anything
anew."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workspace import Workspace, finished

pytestmark = pytest.mark.slow
AUDITS = ("reference", "base")


@pytest.fixture
def old(tmp_path: Path) -> Workspace:
    """The files of 0.2.0: what this version's pipeline made, under the names and in the places of then."""
    workspace = finished()[0].copy(tmp_path / "old")
    root = workspace.root
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    lock["stages"]["distill"]["deps"][-1]["path"] = "data/validation/members.json"
    for key in ("dtype", "trained_layers", "lora"):
        del lock["stages"]["distill"]["params"]["params.yaml"]["distill"][key]
    register: dict[str, Any] = {}
    for name in AUDITS:
        folder = root / "audits" / name
        register[name] = yaml.safe_load((folder / "audit.yaml").read_text())
        for kind, stage in yaml.safe_load((folder / "dvc.lock").read_text())["stages"].items():
            own = stage.get("params", {}).pop(f"audits/{name}/audit.yaml", {})
            if own:
                stage["params"]["audits/register.yaml"] = {f"audits.{name}.{key}": value for key, value in own.items()}
            if kind == "generate":  # the section as a whole, with the keys of then
                generate = ("engine", "device", "dtype", "max_new_tokens", "batch_size")
                said = yaml.safe_load((root / "params.yaml").read_text())["generate"]
                stage["params"]["params.yaml"] = {"generate": {key: said[key] for key in generate}}
            stage["deps"] = [dep for dep in stage["deps"] if dep["path"] != f"audits/{name}/sets.json"]
            if kind != "validate":
                lock["stages"][f"{kind}@{name}"] = stage
        for file in ("audit.yaml", "dvc.yaml", "dvc.lock", "sets.json"):
            (folder / file).unlink()
        shutil.rmtree(folder / "validation")
    (root / "audits/register.yaml").write_text(yaml.safe_dump({"audits": register}))
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    shutil.rmtree(root / "data/validation")
    (root / "detector/detector.json").write_text('{"version": "0123456789ab", "method": "tbd(m=8)"}')
    workspace.edit("params.yaml", {"distill": {"dtype": "bfloat16", "trained_layers": None}})  # as the changelog says
    return workspace


def kept(workspace: Workspace) -> dict[str, bytes]:
    return {
        key: data
        for name in ("generations.parquet", "model.safetensors")
        for key, data in workspace.bytes(name).items()
    }


def test_what_the_old_lock_vouches_for_is_kept(old: Workspace) -> None:
    before, verdicts = kept(old), {audit: old.verdict(audit)["verdict"] for audit in AUDITS}
    said = old.tbd("migrate").stdout.splitlines()
    stages = ("base", "sets", "distill", "generate@reference", "calibrate", "generate@base")
    assert said[:-1] == [f"{stage}: {'made anew' if stage == 'calibrate' else 'kept'}" for stage in stages]
    assert said[-1].startswith("2 audits carried over.")
    assert not {"base", "sets", "distill", "generate@base", "generate@reference"} & set(old.repro())
    assert old.dvc("status").strip() == "Data and pipelines are up to date."
    assert kept(old) == before
    for audit in AUDITS:
        assert old.verdict(audit)["verdict"] == verdicts[audit]
        old.tbd("verify", audit)
    assert (old.root / ".tbd/0.2.0/register.yaml").is_file() and (old.root / ".tbd/0.2.0/dvc.lock").is_file()
    assert old.tbd("migrate").stdout.splitlines()[-1].startswith("2 audits carried over.")  # once more is no harm


def test_what_it_does_not_is_made_anew(old: Workspace) -> None:
    (old.root / "audits/base/generations.parquet").write_bytes(b"junk")
    old.edit("params.yaml", {"distill": {"trained_layers": 4}})
    said = old.tbd("migrate").stdout
    assert "generate@base: to be made anew (audits/base/generations.parquet is not what dvc.lock says)" in said
    assert "distill: to be made anew (params.yaml: distill has changed)" in said and "generate@reference: kept" in said


def test_a_parameter_that_lacks_is_named_before_anything_is_done(old: Workspace) -> None:
    tree = yaml.safe_load((old.root / "params.yaml").read_text())
    del tree["decision"]["storey_lambda"]
    (old.root / "params.yaml").write_text(yaml.safe_dump(tree))
    before = old.hashes()
    assert "decision.storey_lambda" in old.tbd("migrate", code=2).stderr and old.hashes() == before


def test_another_workspace_is_left_alone(tmp_path: Path) -> None:
    workspace = finished()[0].copy(tmp_path / "new")
    before = workspace.hashes()
    assert "no workspace of tbd 0.2.0" in workspace.tbd("migrate", code=2).stderr
    (workspace.root / "audits/register.yaml").write_text(json.dumps({"audits": {"x": {"checkpoint": 1}}}))
    assert "not a register of audits" in workspace.tbd("migrate", code=2).stderr
    assert {name: digest for name, digest in workspace.hashes().items() if name != "audits/register.yaml"} == before

"""Checkpoints: what is refused and how, and what a fingerprint depends on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tbd import checkpoint
from tbd.errors import InputError


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("pickle only", "pytorch_model.bin"),
        ("truncated", "model.safetensors: truncated"),
        ("cut in header", "model.safetensors"),
        ("odd header", "model.safetensors"),
        ("no config", "config.json"),
        ("no weights", "safetensors"),
        ("shard missing", "model-00002-of-00002.safetensors"),
        ("no tokenizer", "tokenizer.json"),
        ("adapter", "adapter"),
    ],
)
def test_what_is_broken_is_named_in_one_line(broken: Callable[[str], Path], how: str, names: str) -> None:
    folder = broken(how)
    for check in (checkpoint.inspect, lambda path: checkpoint.resolve(str(path))):
        with pytest.raises(InputError) as error:
            check(folder)
        assert str(folder) in str(error.value) and names in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, (4).to_bytes(8, "little") + b'{"a"', (2**62).to_bytes(8, "little")])
def test_junk_for_weights(tiny_checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        checkpoint.inspect(tmp_path / "c")


def test_junk_for_an_index(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    for content in ("{", "[]", '{"weight_map": []}', "{}"):
        (tmp_path / "c" / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InputError, match=r"index\.json"):
            checkpoint.inspect(tmp_path / "c")


def test_a_whole_checkpoint_is_accepted(tiny_checkpoint: Path, workspace: Path) -> None:
    checkpoint.inspect(tiny_checkpoint)
    assert checkpoint.resolve(str(tiny_checkpoint)) == tiny_checkpoint


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/model", "/nowhere/model", "a/b/c", "org/name@", ""])
def test_no_such_folder(workspace: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        checkpoint.resolve(name)
    assert "\n" not in str(error.value)


def test_a_hub_id_needs_a_revision(workspace: Path) -> None:
    with pytest.raises(InputError, match="org/name@REVISION"):
        checkpoint.resolve("org/name")


@pytest.mark.parametrize("name", ["org/name@main", "org/na--me@main", "org/.name@0123abc"])
def test_a_hub_that_does_not_answer_is_one_line(workspace: Path, name: str) -> None:
    with pytest.raises(InputError, match="hub") as error:
        checkpoint.resolve(name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_fingerprint_is_of_contents_not_of_place(tiny_checkpoint: Path, tmp_path: Path) -> None:
    fingerprint = checkpoint.fingerprint(tiny_checkpoint)
    assert len(fingerprint) == 64
    copy = tmp_path / "another name"
    shutil.copytree(tiny_checkpoint, copy)
    (copy / "README.md").write_text("a model card")
    (copy / "LICENSE").write_text("Apache-2.0")
    (copy / "tbd.json").write_text(json.dumps({"made": "by distillation"}))
    (copy / "runs").mkdir()
    os.utime(copy / "config.json", (0, 0))
    assert checkpoint.fingerprint(copy) == fingerprint


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"]
)
def test_one_byte_changes_the_fingerprint(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    content = bytearray((copy / name).read_bytes())
    content[-3] ^= 1
    (copy / name).write_bytes(content)
    assert checkpoint.fingerprint(copy) != checkpoint.fingerprint(tiny_checkpoint)


def test_files_cannot_trade_contents(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    (copy / "config.json").rename(copy / "x.json")
    (copy / "generation_config.json").rename(copy / "config.json")
    (copy / "x.json").rename(copy / "generation_config.json")
    assert checkpoint.fingerprint(copy) != checkpoint.fingerprint(tiny_checkpoint)

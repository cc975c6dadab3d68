"""Checkpoints: what is refused and how, and what a fingerprint depends on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tbd import checkpoints as checkpoint
from tbd import sources
from tbd.errors import Incomplete, InputError


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
    for check in (checkpoint.inspect, lambda path: sources.resolve(str(path))):
        with pytest.raises(InputError) as error:
            check(folder)
        assert str(folder) in str(error.value) and names in str(error.value) and "\n" not in str(error.value)
        # a copy under way looks the same; pickles and adapters are what they are
        assert isinstance(error.value, Incomplete) == (how not in ("pickle only", "adapter"))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, b"\xff" * 64, (4).to_bytes(8, "little") + b'{"a"', (2**62).to_bytes(8, "little")]
)
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


@pytest.mark.parametrize("content", ["", '{"model_type": "lla', "[]", "null", "\ufeff{}"])
def test_junk_for_a_configuration(tiny_checkpoint: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text(content, "utf-8")
    with pytest.raises(Incomplete, match=r"config\.json: not a readable"):
        checkpoint.inspect(tmp_path / "c")


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["model-00001-of-00003", "model-00003-of-00003"], r"model-00002-of-00003\.safetensors is missing \(1 of 3 "),
        (["model-00002-of-00003"], r"model-00001-of-00003\.safetensors is missing \(2 of 3 "),
        (["model-00001-of-000163"], r"model-00002-of-000163\.safetensors is missing \(162 of 163 "),
        (["x-0-of-3", "x-1-of-3"], r"x-2-of-3\.safetensors is missing \(1 of 3 "),
        (["model-00001-of-99999999999"], r"model-00002-of-99999999999\.safetensors is missing"),
        (["a-1-of-2", "b-2-of-2"], r"a-2-of-2\.safetensors is missing \(1 of 2 "),
        (["model-00001-of-00002", "model-00002-of-00002"], None),
        (["x-0-of-2", "x-1-of-2"], None),
        (["a-1-of-1", "b-1-of-1", "consolidated"], None),
        (["model-1-of-x", "model-of-3"], None),
    ],
)
def test_names_of_shards_say_how_many_there_are(
    tiny_checkpoint: Path, tmp_path: Path, names: list[str], missing: str | None
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    for name in names:
        shutil.copy(tmp_path / "c" / "model.safetensors", tmp_path / "c" / f"{name}.safetensors")
    (tmp_path / "c" / "model.safetensors").unlink()
    if missing is None:
        checkpoint.inspect(tmp_path / "c")
    else:
        with pytest.raises(Incomplete, match=missing):
            checkpoint.inspect(tmp_path / "c")


def test_a_whole_checkpoint_is_accepted(tiny_checkpoint: Path, workspace: Path) -> None:
    checkpoint.inspect(tiny_checkpoint)
    assert sources.resolve(str(tiny_checkpoint)) == tiny_checkpoint


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/model", "/nowhere/model", "a/b/c", "org/name@", ""])
def test_no_such_folder(workspace: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        sources.resolve(name)
    assert "\n" not in str(error.value)


def test_a_hub_id_needs_a_revision(workspace: Path) -> None:
    with pytest.raises(InputError, match="org/name@REVISION"):
        sources.resolve("org/name")


@pytest.mark.parametrize("name", ["org/name@main", "org/na--me@main", "org/.name@0123abc"])
def test_a_hub_that_does_not_answer_is_one_line(workspace: Path, name: str) -> None:
    with pytest.raises(InputError, match="hub") as error:
        sources.resolve(name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["hf://org", "models:/", "models:/a/b/c"])
def test_what_is_no_address_is_one_line(workspace: Path, address: str) -> None:
    with pytest.raises(InputError) as error:
        sources.resolve(address)
    assert address in str(error.value) and "\n" not in str(error.value)


def test_a_folder_arrives_in_one_piece_for_one_at_a_time(workspace: Path) -> None:
    folder = Path("checkpoints/kind/model")
    code = (
        "import pathlib; from tbd.checkpoints import arriving; folder = pathlib.Path('checkpoints/kind/model')\n"
        "with arriving(folder): print(folder.is_dir())"
    )
    with checkpoint.arriving(folder) as partial:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        partial.mkdir()
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(2)
        assert partial.parent == folder.parent and partial.name[0] == "."
        partial.replace(folder)
    assert other.communicate(timeout=60)[0].strip() == "True"


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

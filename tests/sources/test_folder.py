"""A folder as a source: what it lists, and that a version changes with the content."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tbd import checkpoints as checkpoint
from tbd.errors import InputError
from tbd.sources import Found, source


@pytest.fixture
def models(workspace: Path, tiny_checkpoint: Path) -> Path:
    shutil.copytree(tiny_checkpoint, workspace / "models/first")
    return Path("models")


def look(folder: Path) -> dict[str, Found]:
    return {found.name: found for found in source(str(folder)).look()}


def test_sub_folders_are_checkpoints_oldest_first(models: Path, tiny_checkpoint: Path) -> None:
    before = time.time() - 60
    shutil.copytree(tiny_checkpoint, models / "a-later-one")
    (models / ".hidden").mkdir()
    (models / "notes.txt").write_text("no checkpoint")
    found = source("models").look()
    assert [one.name for one in found] == ["first", "a-later-one"]
    assert (found[0].place, found[0].origin) == ("models/first", "models/first")
    assert before < found[0].changed <= found[1].changed <= time.time()
    folder = source("models").fetch(found[0])
    assert folder == Path("models/first")
    checkpoint.inspect(folder)


def test_a_folder_can_be_the_checkpoint_itself(models: Path, tiny_checkpoint: Path) -> None:
    assert [(one.name, one.place) for one in source("models/first/").look()] == [("first", "models/first")]
    outside = source(str(tiny_checkpoint)).look()[0]
    assert outside.place == str(tiny_checkpoint)


def test_the_same_content_is_the_same_version(models: Path) -> None:
    assert look(models) == look(models)


def shorter(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def rewritten(folder: Path) -> None:
    file = folder / "config.json"
    stat, content = file.stat(), file.read_bytes()
    file.write_bytes(content[::-1])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replaced(folder: Path) -> None:
    shutil.copy2(folder / "config.json", folder / "x")
    (folder / "x").replace(folder / "config.json")


@pytest.mark.parametrize(
    "change",
    [
        shorter,
        rewritten,
        replaced,
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "deep/er").mkdir(parents=True),
    ],
)
def test_a_change_changes_the_version(models: Path, change) -> None:
    before = look(models)["first"]
    time.sleep(0.02)  # a kernel's clock ticks every few milliseconds
    change(models / "first")
    after = look(models)["first"]
    assert after.version != before.version and after.changed > before.changed
    assert after.place == before.place


def test_no_such_folder(workspace: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        source("nowhere").look()


def test_an_empty_folder_has_none(workspace: Path) -> None:
    assert source(".").look() == []


def test_a_link_that_leads_nowhere_does_not_hide_the_checkpoint(models: Path) -> None:
    (models / "first/weights").symlink_to("gone")
    assert [found.name for found in source("models").look()] == ["first"]


@pytest.mark.parametrize("to", ["gone", "x" * 300, "link", "\udcff"])
def test_a_link_that_leads_nowhere_is_its_own_trouble(models: Path, to: str) -> None:
    (models / "link").symlink_to(to)
    found = look(models)
    assert found["first"].trouble is None
    assert "a link that leads nowhere" in str(found["link"].trouble)


def test_a_configuration_beside_checkpoints_does_not_hide_them(models: Path, tiny_checkpoint: Path) -> None:
    (models / "logs").mkdir()
    (models / "config.json").write_text("{}")
    assert sorted(look(models)) == ["first", "models"]


@pytest.mark.parametrize("address", ["", " "])
def test_no_address_is_not_the_current_folder(workspace: Path, address: str) -> None:
    with pytest.raises(InputError, match="source: empty"):
        source(address)

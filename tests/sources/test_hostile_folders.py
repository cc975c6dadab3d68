"""Folders that are no checkpoints and would stop a look: each has its line, and the others go on."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tbd import checkpoints
from tbd.checkpoints.files import MOST, scan
from tbd.errors import InputError, TransientFault
from tbd.params import Params
from tbd.sources import source
from tbd.watch import decide
from tbd.watch.decide import Broken, Job, Standing
from tests.workspace import REPOSITORY, fake_checkpoint


def fifo(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def linked_device(folder: Path) -> None:
    (folder / "extra.json").symlink_to("/dev/zero")


def a_socket(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # an address of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s.json")
    os.chdir(here)


def deep(folder: Path) -> None:
    for _ in range(300):
        (folder / "aaaaaaaaaaaaaaa").mkdir()
        os.chdir(folder / "aaaaaaaaaaaaaaa")
        folder = Path()


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (fifo, "model.safetensors: a FIFO, not a regular file"),
    "device": (linked_device, "extra.json: a device, not a regular file"),
    "socket": (a_socket, "s.json: a socket, not a regular file"),
    "loop": (lambda folder: (folder / "vocab.json").symlink_to("vocab.json"), "vocab.json: Too many levels of"),
    "name": (
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.json")).touch(),
        r"\xff.json: a name that is not UTF-8",
    ),
    "deep": (deep, "File name too long"),
}


@pytest.fixture
def incoming(workspace: Path) -> Path:
    folder = workspace / "incoming"
    folder.mkdir()
    return folder


def policy() -> Params:
    from tbd import params

    p = params.load(REPOSITORY / "params.yaml")
    fake = p.generate.model_copy(update={"engine": "fake"})
    rules = [params.Rule(checkpoints="*", benchmark="exam", unseen="new")]
    looks = p.watch.model_copy(update={"settle": 0, "give_up": 0, "policy": rules})
    return p.model_copy(update={"generate": fake, "watch": looks})


@pytest.mark.parametrize("how", HOSTILE)
def test_what_is_no_regular_file_is_that_folders_trouble(
    incoming: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(incoming.parent)
    good = fake_checkpoint(incoming / "good", "a")
    make, said = HOSTILE[how]
    make(fake_checkpoint(incoming / "bad", "b"))
    os.chdir(incoming.parent)
    found = {one.name: one for one in source("incoming").look()}
    assert set(found) == {"good", "bad"} and not found["good"].trouble and said in str(found["bad"].trouble)
    p = policy()
    for name, kind in (("good", Job), ("bad", Broken)):
        got = decide.fetch(source("incoming"), found[name], p)
        decided = decide.decide(got, p, Standing())[0] if isinstance(got, decide.Fetched) else got
        assert isinstance(decided, kind)
    with pytest.raises(InputError, match=r"incoming/bad.*: "):  # by hand: tbd check incoming/bad
        checkpoints.inspect(Path("incoming/bad"))
    checkpoints.inspect(good)


def test_a_name_that_is_no_utf8_and_links_that_lead_nowhere_at_the_top(incoming: Path) -> None:
    fake_checkpoint(incoming / "good")
    fake_checkpoint(Path(os.fsdecode(os.fsencode(incoming) + b"/bad-\xff")))
    (incoming / "loop").symlink_to("loop")
    (incoming / "gone").symlink_to("nowhere")
    os.mkfifo(incoming / "pipe")
    found = {one.name: one for one in source("incoming").look()}
    assert set(found) == {"good", r"bad-\xff", "loop", "gone"}
    for name in set(found) - {"good"}:
        assert found[name].trouble and isinstance(decide.fetch(source("incoming"), found[name], policy()), Broken)
        json.dumps([found[name].place, str(found[name].trouble)], ensure_ascii=False).encode()  # into the history


@pytest.mark.parametrize("name", ["a\nCONTAMINATED: good", "a\tb", "a\u2028b", "a\u200bb", "a\u202eb"])
def test_a_name_that_breaks_a_line_or_deceives(incoming: Path, name: str) -> None:
    (incoming / name).mkdir()
    (found,) = [one for one in source(str(incoming)).look() if one.name == name]
    assert "control or invisible characters in a name" in str(found.trouble) and "\n" not in str(found.trouble)


def test_a_folder_that_may_not_be_read(incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is the kernel's for another name."""
    fake_checkpoint(incoming / "good")
    closed = fake_checkpoint(incoming / "closed") / "sub"
    closed.mkdir(mode=0)
    if os.access(closed, os.R_OK):
        kept = os.scandir

        def refuse(path: str) -> object:
            if Path(path).name == "sub":
                raise PermissionError(13, "Permission denied", path)
            return kept(path)

        monkeypatch.setattr(os, "scandir", refuse)
    found = {one.name: one for one in source("incoming").look()}
    assert "sub: Permission denied" in str(found["closed"].trouble) and not found["good"].trouble
    assert isinstance(decide.fetch(source("incoming"), found["closed"], policy()), Broken)


def test_a_disk_that_fails_is_not_the_checkpoints_fault(incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_checkpoint(incoming / "good")

    kept = os.scandir

    def fails(path: Path) -> object:
        if Path(path).name == "good":
            raise OSError(5, "Input/output error", str(path))
        return kept(path)

    monkeypatch.setattr(os, "scandir", fails)
    (found,) = source("incoming").look()
    with pytest.raises(TransientFault, match="Input/output error"):
        decide.fetch(source("incoming"), found, policy())


def test_more_files_than_a_checkpoint_has(incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_checkpoint(incoming / "many")
    monkeypatch.setattr("tbd.checkpoints.files.MOST", 10)
    for number in range(10):
        (folder / f"{number}.log").touch()
    assert MOST > 10_000
    with pytest.raises(InputError, match="more than 10 files"):
        scan(folder)


def test_a_log_that_grows_is_no_part_of_the_checkpoint(incoming: Path) -> None:
    folder = fake_checkpoint(incoming / "training")
    (folder / "logs").mkdir()
    logs = [folder / "train.log", folder / "metrics.jsonl", folder / "logs/events.out.tfevents.1"]
    for log in logs:
        log.touch()
    (before,) = source("incoming").look()
    for log in logs:
        log.write_text("step 1")
    (folder / "logs/events.out.tfevents.2").touch()
    (after,) = source("incoming").look()
    assert after == before

"""The audit register: what it holds, what it refuses, and that a checkpoint is the one that was registered."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml as dvc_reads
from hypothesis import given
from hypothesis import strategies as st

from tbd import checkpoint as checkpoints
from tbd import register
from tbd.errors import InputError
from tbd.register import Audit

ENTRY = Audit(
    checkpoint="models/m", base=None, benchmark="asked", unseen="new", fpr=None, checkpoint_fingerprint="c" * 64, base_fingerprint=None
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "register.yaml"
    path.write_text("audits:\n  first:\n" + "".join(f"    {key}: {value or 'null'}\n" for key, value in ENTRY))
    return path


def test_what_is_added_is_there_in_order_and_can_be_taken_out_again(file: Path) -> None:
    before = register.load(file)
    register.add("second", ENTRY.model_copy(update={"fpr": 0.001}), file)
    assert list(register.load(file)) == ["first", "second"] and register.get("second", file).fpr == 0.001
    assert file.read_text().startswith("# The audit register")
    register.remove("second", file)
    assert register.load(file) == before == {"first": ENTRY}


@given(st.from_regex(register.NAME, fullmatch=True))
def test_dvc_reads_every_name_that_is_taken_as_we_wrote_it(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    file = tmp_path_factory.mktemp("names") / "register.yaml"
    file.write_text("audits: {}\n")
    if register.NUMBER.fullmatch(name):
        with pytest.raises(InputError, match="number"):
            register.add(name, ENTRY, file)
        return
    register.add(name, ENTRY.model_copy(update={"benchmark": name}), file)
    ((found, entry),) = dvc_reads(str(file))["audits"].items()
    assert found == name == entry["benchmark"]


@pytest.mark.parametrize("name", ["null", "true", "no", "y", "on", "1", "007", "1_000", "0x1f", "2024-01-01"])
def test_names_that_yaml_could_take_for_something_else(tmp_path: Path, name: str) -> None:
    file = tmp_path / "register.yaml"
    file.write_text("audits: {}\n")
    register.add(name, ENTRY, file)
    assert list(dvc_reads(str(file))["audits"]) == [name] == list(register.load(file))


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", "../x", "/x", "-a", "_a", ".a", "a b", "a\n", "ä", "a.b", "a@b", "x" * 64, "1e3", "1_0E3", "0O17"]
)
def test_names_that_are_none(file: Path, name: str) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match="audit "):
        register.add(name, ENTRY, file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no audits"),
        ("audits: []", "no audits"),
        ("audits:\n  a: {}", r"audits\.a\.checkpoint: Field required"),
        ("audits:\n  a: 7", r"audits\.a\.: "),
        (yaml.safe_dump({"audits": {"../a": ENTRY.model_dump()}}), r"audit '\.\./a'"),
        ("audits:\n - a\n b", "line 4: not valid YAML"),
    ],
)
def test_a_register_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "register.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        register.load(tmp_path / "register.yaml")


def test_a_misspelt_key_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("unseen:", "unsen:"))
    with pytest.raises(InputError, match=r"audits\.first\.unse"):
        register.load(file)


def test_an_unknown_audit_is_refused_with_a_suggestion(file: Path) -> None:
    with pytest.raises(InputError, match=r"unknown audit 'frist'\. Did you mean 'first'"):
        register.get("frist", file)


def test_paths_are_relative_inside_the_workspace_and_absolute_outside(workspace: Path) -> None:
    assert register.workspace_path(Path("models/../models/m")) == "models/m"
    assert register.workspace_path(workspace / "models/m") == "models/m"
    assert register.workspace_path(Path("../elsewhere")) == str(workspace.parent / "elsewhere")


def test_a_pinned_checkpoint_that_changed_is_refused(tiny_checkpoint: Path, broken: Callable[[str], Path]) -> None:
    pin = checkpoints.fingerprint(tiny_checkpoint)
    assert register.folder(str(tiny_checkpoint), pin) == register.folder(str(tiny_checkpoint), None) == tiny_checkpoint
    other = broken("no template")
    register.folder(str(other), None)
    with pytest.raises(InputError, match="no longer the checkpoint that was registered"):
        register.folder(str(other), pin)
    with pytest.raises(InputError, match="pickle"):
        register.folder(str(broken("pickle only")), None)


def test_the_projects_own_register_is_in_order() -> None:
    found = register.load(Path(__file__).parents[1] / register.FILE)
    assert {"reference", "base"} <= set(found) and found["reference"].base == found["base"].checkpoint
    assert yaml.safe_load(register.HEADER) is None  # a comment

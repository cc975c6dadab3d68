"""Audits: what audit.yaml holds and refuses, which names there may be, and that a checkpoint is the one that was
pinned."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml as dvc_reads
from hypothesis import given
from hypothesis import strategies as st

from tbd import audits, checkpoints
from tbd.audits import Audit
from tbd.errors import InputError
from tbd.pipeline import templates
from tbd.workspace import NAME, NUMBER, check_name, relative

PARAMS = "generate: {engine: fake}\n"
ENTRY = Audit(
    checkpoint="models/m",
    base=None,
    benchmark="asked",
    unseen="new",
    fpr=None,
    checkpoint_fingerprint="c" * 64,
    base_fingerprint=None,
)


def test_what_is_added_is_there(workspace: Path) -> None:
    (workspace / "params.yaml").write_text(PARAMS)
    assert audits.load() == {}
    second = ENTRY.model_copy(update={"fpr": 0.001, "checkpoint": "ä: #1"})
    templates.add("second", second)
    templates.add("first", ENTRY)
    assert audits.load() == {"first": ENTRY, "second": second} and audits.names() == ["first", "second"]
    made = (workspace / "audits/first/dvc.yaml").read_text().replace('"models/m"', '"ä: #1"')
    assert made.replace("first", "second") == (workspace / "audits/second/dvc.yaml").read_text()
    assert "ä: #1" in dvc_reads("audits/second/dvc.yaml")["stages"]["generate"]["deps"]
    assert yaml.safe_load(audits.HEADER) is None  # a comment


def test_another_served_model_makes_answers_stale(workspace: Path) -> None:
    (workspace / "params.yaml").write_text("generate: {engine: openai, server: {command: serve, tries: 3}}\n")
    templates.add("first", ENTRY)
    params = dvc_reads("audits/first/dvc.yaml")["stages"]["generate"]["params"]
    assert params[0] == {"params.yaml": ["generate.engine", "generate.server.command"]}


@given(st.from_regex(NAME, fullmatch=True))
def test_dvc_reads_every_name_that_is_taken_as_we_wrote_it(name: str) -> None:
    if NUMBER.fullmatch(name):
        with pytest.raises(InputError, match="number"):
            check_name(name, "audit")
        return
    read_by_dvc(name)


def read_by_dvc(name: str) -> None:
    """As the name of a set, in audit.yaml."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("params.yaml").write_text(PARAMS)
        templates.add(name, ENTRY.model_copy(update={"benchmark": name}))
        assert dvc_reads(f"audits/{name}/audit.yaml")["benchmark"] == name
        assert dvc_reads(f"audits/{name}/dvc.yaml")["stages"]["score"]["cmd"] == f"python -m tbd.stages.score {name}"


@pytest.mark.parametrize("bad", "\x1b\x7f\x85\x9b")
def test_a_folder_that_no_yaml_can_hold(workspace: Path, bad: str) -> None:
    with pytest.raises(InputError, match=r"models/m.?: control characters in a name"):
        audits.write("a", ENTRY.model_copy(update={"checkpoint": f"models/m{bad}"}))
    assert not Path("audits").exists()


@pytest.mark.parametrize("name", ["null", "true", "no", "y", "on", "1", "007", "1_000", "0x1f", "2024-01-01"])
def test_names_that_yaml_could_take_for_something_else(name: str) -> None:
    read_by_dvc(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "..",
        "../x",
        "/x",
        "-a",
        "_a",
        ".a",
        "a b",
        "a\n",
        "ä",
        "a.b",
        "a@b",
        "x" * 64,
        "1e3",
        "1_0E3",
        "0O17",
        "08",
    ],
)
def test_names_that_are_none(workspace: Path, name: str) -> None:
    with pytest.raises(InputError, match="audit "):
        templates.add(name, ENTRY)
    assert not list(workspace.rglob("audit.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"audits/a/audit\.yaml: "),
        ("a: 7", r"audits/a/audit\.yaml: checkpoint: Field required"),
        ("a:\n - a\n b", "line 4: not valid YAML"),
        (yaml.safe_dump(ENTRY.model_dump()).replace("unseen:", "unsen:"), r"audits/a/audit\.yaml: unse"),
    ],
)
def test_an_audit_that_is_none(workspace: Path, text: str, message: str) -> None:
    audits.write("a", ENTRY)
    audits.path("a").write_text(text)
    with pytest.raises(InputError, match=message):
        audits.load()


def test_an_unknown_audit_is_refused_with_a_suggestion(workspace: Path) -> None:
    audits.write("first", ENTRY)
    with pytest.raises(InputError, match=r"unknown audit 'frist'\. Did you mean 'first'"):
        audits.get("frist")


def test_paths_are_relative_inside_the_workspace_and_absolute_outside(workspace: Path) -> None:
    assert relative(Path("models/../models/m")) == "models/m"
    assert relative(workspace / "models/m") == "models/m"
    assert relative(Path("../elsewhere")) == str(workspace.parent / "elsewhere")


def test_a_pinned_checkpoint_that_changed_is_refused(tiny_checkpoint: Path, broken: Callable[[str], Path]) -> None:
    pin = checkpoints.fingerprint(tiny_checkpoint)
    assert (
        checkpoints.pinned(str(tiny_checkpoint), pin)
        == checkpoints.pinned(str(tiny_checkpoint), None)
        == tiny_checkpoint
    )
    other = broken("no template")
    checkpoints.pinned(str(other), None)
    with pytest.raises(InputError, match="no longer the checkpoint that was registered"):
        checkpoints.pinned(str(other), pin)
    with pytest.raises(InputError, match="pickle"):
        checkpoints.pinned(str(broken("pickle only")), None)


def test_the_projects_own_audits_are_in_order() -> None:
    found = audits.load(Path(__file__).parents[1])
    assert {"reference", "base"} <= set(found) and found["reference"].base == found["base"].checkpoint

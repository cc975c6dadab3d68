"""dvc.yaml and the template of an audit against the code: a stage depends on every module that it takes a number
from."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from tbd import audits
from tbd.pipeline.templates import TEMPLATE, TWO_STEPS, stages
from tests.workspace import REPOSITORY

PLUMBING = {
    "tbd/__init__.py",
    "tbd/audits.py",  # typed reading of what the stage's `params` list by value
    "tbd/ending.py",  # when it stops
    "tbd/environment.py",  # what other tools are told; moves no number
    "tbd/errors.py",
    "tbd/generation/executors/__init__.py",  # who computes
    "tbd/generation/executors/local.py",
    "tbd/generation/store.py",  # what was computed before
    "tbd/foreign.py",  # how text from outside is shown; moves no number
    "tbd/locks.py",  # who may, not what
    "tbd/params.py",  # as audits.py
    "tbd/pipeline/markers.py",  # what is said meanwhile
    "tbd/progress.py",  # the same
    "tbd/stages/__init__.py",
    "tbd/workspace.py",  # where things lie
    *(
        str(file.relative_to(REPOSITORY))
        for file in REPOSITORY.glob("tbd/*/__init__.py")
        if file.read_text().count("\n") == 1
    ),
}
"""modules that every stage imports and that decide no number: a change there must not cost hours of generation"""

ALLOWED = {
    "base": {
        "tbd/records.py",
        "tbd/sets/near_duplicates.py",
    },  # writes one small JSON file; the other is for question sets
    "generate": {
        "tbd/detection/results.py",  # a number that its `params` list
        "tbd/generation/tokens.py",
        "tbd/scores/table.py",  # reads scores, of which generation has none
        *(f"tbd/{module}.py" for module in TWO_STEPS),  # named where there is a cascade
    },
    "score": {
        "tbd/sets/near_duplicates.py"
    },  # of question sets, which another suite of tbd/sets/expectations.py checks
}
"""and modules that one stage can reach but takes no number from"""


def definitions() -> dict[str, Any]:
    """By the stage's module; `validate` is one module for two."""
    top = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    return yaml.safe_load(TEMPLATE.read_text())["stages"] | top


def imports(file: Path) -> set[Path]:
    """Modules of tbd that a file imports, inside functions too."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = REPOSITORY / name.replace(".", "/")
            found |= {candidate for candidate in (path.with_suffix(".py"), path / "__init__.py") if candidate.is_file()}
    return {path for path in found if path.is_relative_to(REPOSITORY / "tbd")}


def reached(file: Path) -> set[str]:
    """Everything of tbd that running a file can import, plumbing not followed."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        for path in imports(todo.pop()) - found:
            found.add(path)
            if str(path.relative_to(REPOSITORY)) not in PLUMBING:
                todo.append(path)
    return {str(path.relative_to(REPOSITORY)) for path in found}


@pytest.mark.parametrize("stage", sorted(path.stem for path in (REPOSITORY / "tbd/stages").glob("[a-z]*.py")))
def test_every_module_that_a_stage_uses_is_named(stage: str) -> None:
    deps = [Path(dep) for dep in definitions()[stage]["deps"]]
    needed = (
        {f"tbd/stages/{stage}.py", *reached(REPOSITORY / f"tbd/stages/{stage}.py")}
        - PLUMBING
        - ALLOWED.get(stage, set())
    )
    assert sorted(name for name in needed if not any(Path(name).is_relative_to(dep) for dep in deps)) == []


def test_both_stages_of_validate_name_the_same_modules() -> None:
    top = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["validate"]
    of_audit = yaml.safe_load(TEMPLATE.read_text())["stages"]["validate"]
    ours = [[dep for dep in stage["deps"] if dep.startswith("tbd/")] for stage in (top, of_audit)]
    assert ours[0] == ours[1] != []


def test_an_engine_is_named_by_the_parameter_that_chooses_it() -> None:
    """So that another engine makes no generations stale."""
    deps = definitions()["generate"]["deps"]
    named = [dep for dep in deps if dep.startswith("tbd/generation/engines")]
    assert named == ["tbd/generation/engines/__init__.py", "tbd/generation/engines/${engine}.py"]


def test_a_cascade_names_what_it_takes_numbers_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only an audit that has one: elsewhere a new score makes no answers stale."""
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    tree["calibrate"]["cascade"] = {"m": 8, "keep": 0.3}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    for name, expected in (("base", set(TWO_STEPS)), ("reference", set())):
        text = stages(name, audits.get(name, REPOSITORY))
        deps = yaml.safe_load(text)["stages"]["generate"]["deps"]
        assert {dep.removeprefix("tbd/").removesuffix(".py") for dep in deps} & set(TWO_STEPS) == expected
        assert ("[tokens, cascade]" in text) == bool(expected)


def test_every_module_that_is_named_exists() -> None:
    for stage in definitions().values():
        for dep in stage["deps"]:
            assert not dep.startswith("tbd/") or "$" in dep or (REPOSITORY / dep).exists(), dep


@pytest.mark.parametrize("audit", sorted(path.parent.name for path in REPOSITORY.glob("audits/*/audit.yaml")))
def test_the_audits_that_come_with_the_project_are_of_the_template(audit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert Path(f"audits/{audit}/dvc.yaml").read_text() == stages(audit, audits.get(audit))

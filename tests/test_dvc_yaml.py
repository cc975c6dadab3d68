"""dvc.yaml against the code: a stage depends on every module that it takes a number from."""

import ast
from pathlib import Path

import pytest
import yaml

from tests.workspace import REPOSITORY

PLUMBING = {
    "tbd/__init__.py",
    "tbd/ending.py",  # when it stops
    "tbd/environment.py",  # what other tools are told; moves no number
    "tbd/errors.py",
    "tbd/locks.py",  # who may, not what
    "tbd/params.py",  # typed reading of what the stage's `params` list by value
    "tbd/progress.py",  # what is said meanwhile
    "tbd/register.py",  # the same for the register
    "tbd/stages/__init__.py",
}
"""modules that every stage imports and that decide no number: a change there must not cost hours of generation"""

ALLOWED = {
    "base": {"tbd/records.py", "tbd/near_duplicates.py"},  # writes one small JSON file; the other is for question sets
    "distill": {  # reads and checks files, shows progress; the weights come from planting, distill and engines/loading
        "tbd/checkpoint.py",
        "tbd/engines/__init__.py",
        "tbd/engines/fake.py",
        "tbd/engines/transformers.py",
        "tbd/generation.py",
        "tbd/records.py",
    },
    "score": {"tbd/near_duplicates.py"},  # of question sets, which another suite of tbd/expectations.py checks
}
"""and modules that one stage can reach but takes no number from"""


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
def test_dvc_yaml_names_every_module_a_stage_uses(stage: str) -> None:
    definition = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][stage]
    deps = [Path(dep) for dep in definition.get("do", definition)["deps"]]
    needed = {f"tbd/stages/{stage}.py", *reached(REPOSITORY / f"tbd/stages/{stage}.py")} - PLUMBING - ALLOWED.get(stage, set())
    assert sorted(name for name in needed if not any(Path(name).is_relative_to(dep) for dep in deps)) == []


def test_every_module_that_dvc_yaml_names_exists() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        for dep in stage.get("do", stage)["deps"]:
            assert not dep.startswith("tbd/") or (REPOSITORY / dep).exists(), dep

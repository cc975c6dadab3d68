"""What an import costs, and which way imports point."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workspace import REPOSITORY

STACK = ["prefect", "mlflow", "dvc", "great_expectations", "torch", "transformers"]

HOUSE = [
    ["errors"],
    [
        "records",
        "jsonlines",
        "locks",
        "ending",
        "environment",
        "foreign",
        "arguments",
        "workspace",
        "params",
        "audits",
        "progress",
        "mlflow_store",
    ],
    ["scores"],
    ["detection"],
    ["sets"],
    ["checkpoints"],
    ["sources"],
    ["generation", "reference"],
    ["pipeline"],
    ["history"],
    ["gates"],
    ["report"],
    ["tracking"],
    ["watch"],
    ["stages", "commands"],
    ["cli"],
    ["__main__"],
]
"""rooms and single modules of tbd, from the ground up: each imports from its own floor and from those before it"""
FLOOR = {room: floor for floor, rooms in enumerate(HOUSE) for room in rooms}


def room_of(file: Path) -> str:
    return file.relative_to(REPOSITORY / "tbd").parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The rooms that a file imports from, inside functions too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" if node.module == "tbd" else node.module for alias in node.names]
    parts = [name.split(".") for name in names]
    assert not any(part[0] == "flows" for part in parts) or room_of(file) == "cli", f"{file}: flows are above tbd"
    return {part[1] for part in parts if part[0] == "tbd" and len(part) > 1 and part[1] in FLOOR}


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_no_room_imports_from_above(room: str) -> None:
    files = [file for file in (REPOSITORY / "tbd").rglob("*.py") if room_of(file) == room]
    assert files
    found = {(str(file.relative_to(REPOSITORY)), other) for file in files for other in imported(file)}
    upwards = {(file, other) for file, other in found if FLOOR[other] > FLOOR[room]}
    beside = {
        (file, other) for file, other in found if FLOOR[other] == FLOOR[room] and other != room and FLOOR[room] > 1
    }
    assert upwards | beside == set()


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(file) for file in (REPOSITORY / "tbd").rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)


def loaded(statement: str, names: list[str]) -> list[str]:
    """Which of `names` are loaded after `statement` in a fresh Python."""
    code = f"import sys; {statement}; print(*[name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


PURE = [
    "detection.verdict",
    "detection.calibration",
    "scores.scoring",
    "sets.near_duplicates",
    "records",
    "audits",
    "checkpoints",
    "generation.units",
    "generation.engines.fake",
]


def test_the_mathematics_knows_none_of_the_stack() -> None:
    assert loaded("import " + ", ".join(f"tbd.{module}" for module in PURE), STACK) == []


def test_importing_tbd_loads_nothing_heavy() -> None:
    assert (
        loaded(
            "import tbd", [*STACK, "numpy", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "plotly", "pydantic"]
        )
        == []
    )


def test_the_list_above_can_fail() -> None:
    assert loaded("import numpy", ["numpy", "torch"]) == ["numpy"]

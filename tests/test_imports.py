"""What an import costs, and which way imports point."""

import subprocess
import sys

STACK = ["prefect", "mlflow", "dvc", "great_expectations", "torch", "transformers"]


def loaded(statement: str, names: list[str]) -> list[str]:
    """Which of `names` are loaded after `statement` in a fresh Python."""
    code = f"import sys; {statement}; print(*[name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


PURE = [
    "metrics",
    "intervals",
    "decisions",
    "scores",
    "near_duplicates",
    "records",
    "params",
    "checkpoint",
    "generation",
    "engines.fake",
]


def test_the_mathematics_knows_none_of_the_stack() -> None:
    assert loaded("import " + ", ".join(f"tbd.{module}" for module in PURE), STACK) == []


def test_importing_tbd_loads_nothing_heavy() -> None:
    assert loaded("import tbd", [*STACK, "numpy", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "plotly", "pydantic"]) == []


def test_the_list_above_can_fail() -> None:
    assert loaded("import numpy", ["numpy", "torch"]) == ["numpy"]

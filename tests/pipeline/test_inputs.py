"""What a stage depends on must not change while it runs: DVC would take what is there at the end for what was used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tbd.errors import TransientFault
from tbd.pipeline import inputs

PIPELINE = """
stages:
  one:
    cmd: python one.py
    deps: [data/set, code]
    params: [a.b, list, other.yaml: [x]]
"""


@pytest.fixture
def pipeline(workspace: Path) -> Path:
    for folder in ("data", "code/__pycache__", "audits/x"):
        (workspace / folder).mkdir(parents=True, exist_ok=True)
    (workspace / "dvc.yaml").write_text(PIPELINE)
    (workspace / "audits/x/dvc.yaml").write_text(PIPELINE)
    (workspace / "params.yaml").write_text("a: {b: 1, c: 1}\nlist: [1]\n")
    (workspace / "other.yaml").write_text("x: 1\ny: 1\n")
    (workspace / "data/set").write_text("1")
    (workspace / "code/one.py").write_text("1")
    return workspace


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (write("params.yaml", "a: {b: 2, c: 1}\nlist: [1]\n"), "params.yaml: a.b"),
        (write("params.yaml", "a: {b: 1, c: 1}\n"), "params.yaml: list"),
        (write("other.yaml", "x: 2\ny: 1\n"), "other.yaml: x"),
        (write("data/set", "12"), "data/set"),
        (write("code/two.py", ""), "code"),
        (lambda root: (root / "data/set").unlink(), "data/set"),
    ],
)
@pytest.mark.parametrize("stage", ["one", "one@x"])
def test_another_input_at_the_end_is_a_transient_fault(
    pipeline: Path, stage: str, change: Callable[[Path], object], name: str
) -> None:
    with pytest.raises(TransientFault, match=f"^{name}: changed while {stage} ran"), inputs.unchanged(stage):
        change(pipeline)


@pytest.mark.parametrize(
    "change",
    [
        write("params.yaml", "list: [1]\na:\n  b: 1\n  c: 2\n"),
        write("other.yaml", "x: 1\ny: 2\n"),
        write("code/__pycache__/one.pyc", "compiled"),
        write("dvc.lock", ""),
    ],
)
def test_what_it_does_not_depend_on_may_change(pipeline: Path, change: Callable[[Path], object]) -> None:
    with inputs.unchanged("one"):
        change(pipeline)


def test_its_own_error_comes_first(pipeline: Path) -> None:
    def broken() -> None:
        with inputs.unchanged("one"):
            (pipeline / "data/set").unlink()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()


def test_without_a_pipeline_there_is_nothing_to_compare(workspace: Path) -> None:
    with inputs.unchanged("one"), inputs.unchanged("one@x"):
        pass

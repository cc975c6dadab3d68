"""What a stage depends on, by its `dvc.yaml`, and that this stays as it is while the stage runs.

DVC writes down the dependencies and parameters that it finds when a stage has ended. What is changed before that would
count as what the results were made of.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tbd.errors import TransientFault
from tbd.params import load_yaml
from tbd.pipeline.lock_file import lookup
from tbd.workspace import AUDITS


@contextmanager
def unchanged(stage: str) -> Iterator[None]:
    """Raise TransientFault if something that `stage` (`base`, `verdict@NAME`) depends on is another at the end."""
    before = _inputs(stage)
    yield
    after = _inputs(stage)
    if changed := [name for name in before | after if before.get(name) != after.get(name)]:
        raise TransientFault(f"{changed[0]}: changed while {stage} ran. Leave it alone, and run the same again.")


def _inputs(stage: str) -> dict[str, Any]:
    """Each dependency with size and time of its files, each parameter with its value; none where no pipeline is."""
    kind, _, audit = stage.partition("@")
    file = AUDITS / audit / "dvc.yaml" if audit else Path("dvc.yaml")
    entry = (lookup(load_yaml(file), f"stages.{kind}") if file.is_file() else None) or {}
    found: dict[str, Any] = {}
    for dep in entry.get("deps", []):
        found[dep] = _files(Path(dep))
    for param in entry.get("params", []):
        for name, keys in param.items() if isinstance(param, dict) else [("params.yaml", [param])]:
            tree = load_yaml(Path(name)) if Path(name).is_file() else None
            found |= {f"{name}: {key}": lookup(tree, key) for key in keys}
    return found


def _files(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(file for file in path.rglob("*") if "__pycache__" not in file.parts) if path.is_dir() else [path]
    times = [(str(file), file.stat()) for file in files if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in times]

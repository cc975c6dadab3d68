"""What takes seconds to make and is only read or copied: made once in a test run, whichever worker asks first."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from tbd.locks import locked

ROOT = "TESTS_SHARED"
"""the environment variable that tells the workers of a run their common folder"""


def begin() -> None:
    """In the process that starts the workers, before it does."""
    os.environ[ROOT] = tempfile.mkdtemp(prefix="tbd-tests-")


def end() -> None:
    shutil.rmtree(os.environ[ROOT], ignore_errors=True)


def shared(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name. Do not write into it. If making it fails, whoever asks next tries again."""
    folder = Path(os.environ[ROOT]) / name
    unfinished = folder.with_name(f"{name}-unfinished")
    with locked(folder.with_name(f"{name}.lock")):
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def mlflow_store() -> Path:
    """An empty SQLite store of MLflow."""
    return shared("mlflow", _mlflow) / "mlflow.db"


def prefect_store() -> Path:
    """An empty database of a Prefect server."""
    return shared("prefect", _prefect) / "prefect.db"


def _mlflow(folder: Path) -> None:
    from mlflow import MlflowClient

    with chdir(folder):  # its default experiment keeps artifacts where it was made
        MlflowClient("sqlite:///mlflow.db").search_experiments()


def _prefect(folder: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(command, env=kept | {"PREFECT_HOME": str(folder)}, cwd=folder, check=True, capture_output=True)

"""Where MLflow is, and a client that asks it quietly, gives up soon and never shows credentials."""

import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tbd.errors import InputError, TransientFault
from tbd.foreign import secretless
from tbd.records import on_disk

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own defaults take four minutes to notice an outage
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""environment variables of MLflow, set where the user has not"""
REFUSED = {
    "401": "401: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "403|PERMISSION_DENIED": "403: this account may not write there; see docs/access.md",
}
"""patterns of MLflow's answer where access is refused, and what to do then"""


class TrackingDown(TransientFault):
    """The MLflow store did not take the record. The files are complete, and `tbd record` records them later."""


def store(workspace: Path = Path()) -> str:
    """The tracking URI: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the workspace; paths of SQLite become absolute.

    Raises:
        InputError: a folder, where MLflow no longer writes, or an SQLite file in a folder that does not exist.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    if "://" not in uri or uri.startswith("file:"):
        raise InputError(
            "MLFLOW_TRACKING_URI: a folder, where MLflow no longer writes. Use sqlite:///FILE or a server's address."
        )
    if not uri.startswith("sqlite:///"):
        return uri
    path = workspace.resolve() / uri.removeprefix("sqlite:///")
    if not path.parent.is_dir():
        raise InputError(f"MLFLOW_TRACKING_URI: {path.parent}: no such folder. Make it, or mend the address.")
    return f"sqlite:///{path}"


def artifact_root(uri: str) -> Path | None:
    """The folder for a local store's artifacts, beside its database; None if a server decides."""
    return Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None


def _make(uri: str) -> None:
    """Make a database of our own aside: a kill while MLflow makes its tables leaves one that it never opens again."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        made, whole = Path(folder) / "made.db", Path(folder) / "whole.db"
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(whole)) as copy:
            source.backup(copy)
        on_disk(whole)
        try:
            os.link(whole, path)
        except FileExistsError:
            pass  # somebody was faster
        except OSError:  # no links on this disk
            whole.replace(path)


@contextmanager
def reaching(
    uri: str, registry: str | None = None, fault: Callable[[Exception], Exception] | None = None
) -> Iterator[Any]:
    """A client of MLflow, quiet and without long retries.

    Its failures are raised as what `fault` makes of them; by default as TrackingDown.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    loggers = [logging.getLogger(name) for name in ("mlflow", "urllib3.connectionpool")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        _make(uri)
        yield MlflowClient(uri, registry)
    except (MlflowException, RequestException, SQLAlchemyError, sqlite3.Error) as error:
        if fault:
            raise fault(error) from None
        if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            raise  # a bug of tbd, not an outage
        where = urlsplit(uri).netloc.rpartition("@")[2] or uri
        said = (secretless(str(error)).splitlines() or [type(error).__name__])[0]
        refused = next((hint for codes, hint in REFUSED.items() if re.search(rf"\b({codes})\b", said)), None)
        raise TrackingDown(f"MLflow at {where} did not take the record ({refused or said[:200]}).") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

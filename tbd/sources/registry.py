"""A registered model of MLflow: its versions are checkpoints. The content of a version never changes."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tbd import checkpoints as checkpoint
from tbd.errors import FAULT, Incomplete, InputError, TransientFault
from tbd.foreign import secretless
from tbd.mlflow_store import SETTINGS, reaching, store
from tbd.records import sha256
from tbd.sources import FETCHED, Found
from tbd.workspace import room

ADDRESS = re.compile(
    r"models:/(?P<name>[^/@?:]+)(/(?P<version>\d+)|@(?P<alias>[^/@?:]+)|\?(?P<key>[^=]+)=(?P<value>.*))?"
)
PAGE = 1000
"""versions asked for at once"""
SILENCE = "120"
"""seconds to wait for a file, which the server may have to get from an object store first"""
BUSY = (408, 409, 429, 499)


class Registry:
    """See `tbd.sources.Source`. Versions that are READY are listed, no others."""

    def __init__(self, address: str) -> None:
        match = ADDRESS.fullmatch(address)
        if not match:
            raise InputError(
                f"{address}: not an address in the registry. Write models:/NAME, models:/NAME/VERSION, "
                "models:/NAME@ALIAS or models:/NAME?KEY=VALUE."
            )
        self.address = address
        self.wanted = match.groupdict()
        self.uri = os.environ.get("MLFLOW_REGISTRY_URI", "").strip() or store()
        # where artifacts come from: the registry's server too, unless MLFLOW_TRACKING_URI names another
        self.tracking = store() if os.environ.get("MLFLOW_TRACKING_URI", "").strip() else self.uri

    def look(self) -> list[Found]:
        with self._asking(self.address) as client:
            versions = self._versions(client)
        versions.sort(key=lambda version: (version.creation_timestamp, int(version.version)))
        return [self._found(version) for version in versions if version.status == "READY"]

    def _versions(self, client: Any) -> list[Any]:
        name, key = self.wanted["name"], self.wanted["key"]
        if self.wanted["version"]:
            return [client.get_model_version(name, self.wanted["version"])]
        if self.wanted["alias"]:
            return [client.get_model_version_by_alias(name, self.wanted["alias"])]
        client.get_registered_model(name)  # raises if there is no such model; the search below would just find nothing
        quote = '"' if "'" in name else "'"
        versions, token = [], None
        while token != "":
            page = client.search_model_versions(f"name = {quote}{name}{quote}", PAGE, page_token=token)
            versions += page
            token = page.token or ""
        return [version for version in versions if key is None or version.tags.get(key) == self.wanted["value"]]

    def _found(self, version: Any) -> Found:
        name = f"{version.name}/{version.version}"
        source = secretless(version.source)
        made = version.creation_timestamp  # its files may still be on their way there
        return Found(name, f"models:/{name}", f"models:/{name}", f"{source} of {made}", made / 1000)

    def fetch(self, found: Found) -> Path:
        name, _, number = found.name.rpartition("/")
        # the digest, because numbers are used again after a model was deleted
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
        folder = FETCHED / "mlflow" / f"{plain}-{number}-{sha256(f'{found.name} {found.version}')[:8]}"
        with checkpoint.arriving(folder) as partial:
            if not _whole(folder):
                shutil.rmtree(partial, ignore_errors=True)
                artifacts = self._download(found, partial)
                shutil.rmtree(folder, ignore_errors=True)
                os.sync()  # else a power cut may leave empty files under the name of complete ones
                _checkpoint(artifacts).replace(folder)
                shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _download(self, found: Found, partial: Path) -> Path:
        name, _, number = found.name.rpartition("/")
        with self._asking(found.place) as client, _patient():
            from mlflow.artifacts import download_artifacts
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            if self._found(client.get_model_version(name, number)) != found:
                raise TransientFault(f"{found.place}: no longer the version that was listed.")
            uri = client.get_model_version_download_uri(name, number)
            run = re.fullmatch("runs:/([^/]+)/?", uri)  # all of a run, which MLflow does not take as an address
            what = {"run_id": run[1]} if run else {"artifact_uri": uri}
            at = {"tracking_uri": self.tracking, "registry_uri": self.uri}
            try:
                where = client.get_run(run[1]).info.artifact_uri if run else uri
                room(partial, _size(get_artifact_repository(where, **at)), f"the download of {found.place}")
                got = Path(download_artifacts(**what, dst_path=str(partial), **at))
            except TransientFault:
                raise
            except ImportError as error:
                raise InputError(
                    f"{found.place}: its artifact store needs {error.name}: pip install {error.name}"
                ) from None
            except Exception as error:  # artifacts may lie in any store, and each store's library has its own errors
                shutil.rmtree(partial, ignore_errors=True)  # of no use to the next try, and the disk may be full of it
                raise self._fault(error, found.place) from None
        return got if got.is_dir() else got.parent

    @contextmanager
    def _asking(self, what: str) -> Iterator[Any]:
        """A client, whose failures are raised as InputError or TransientFault."""
        # otherwise MLflow sleeps for as long as a busy server says
        os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
        with reaching(self.tracking, self.uri, lambda error: self._fault(error, what)) as client:
            yield client

    def _fault(self, error: Exception, what: str) -> Exception:
        """The error to raise. The same failure always has the same message, without credentials."""
        from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS

        answered = getattr(getattr(error, "response", None), "status_code", 500)
        status: int = ERROR_CODE_TO_HTTP_STATUS.get(getattr(error, "error_code", ""), answered)
        address = urlsplit(self.uri)
        where = f"{what}: MLflow at {address.netloc.rpartition('@')[2] or self.uri}"
        if status in (401, 403):
            account = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return InputError(f"{where} does not allow it ({status}). Set {account}.")
        cause: BaseException = error
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        own = FAULT.search(str(cause))  # MLflow lists what failed line by line, the machine's reason last
        said = own[0] if own else (secretless(str(cause)).splitlines() or [""])[0][:200].rstrip(".")
        if status < 500 and status not in BUSY:
            return InputError(f"{where} does not have it ({said}). Correct the address, or register the model.")
        return TransientFault(f"{where} does not give it now ({type(cause).__name__}: {said}).")


@contextmanager
def _patient() -> Iterator[None]:
    """Wait SILENCE seconds for a file, unless the user has set a limit."""
    key = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(key, SETTINGS[key])
    os.environ[key] = SILENCE if before == SETTINGS[key] else before
    try:
        yield
    finally:
        os.environ[key] = before


def _size(repository: Any, folder: str | None = None) -> int:
    """Bytes of all artifacts in it, as far as the store says."""
    entries = repository.list_artifacts(folder)
    return sum(_size(repository, one.path) if one.is_dir else one.file_size or 0 for one in entries)


def _whole(folder: Path) -> bool:
    """Whether all files are there: a version can be registered before they are uploaded."""
    try:
        checkpoint.inspect(folder)
    except Incomplete:
        return False
    except InputError:
        return folder.is_dir()
    return True


def _checkpoint(root: Path) -> Path:
    """The checkpoint's folder among artifacts: the only one with a config.json, else the root.

    MLflow's transformers flavour has the weights in `model` and the tokenizer in `components/tokenizer`: the latter's
    files are moved to the former.
    """
    if (root / "config.json").is_file():
        return root
    for adapter in root.rglob("adapter_config.json"):
        return adapter.parent  # otherwise the base beside it would be audited in its place
    models = [config.parent for config in root.rglob("config.json")]
    if len(models) != 1:
        return root
    tokenizer = models[0].parent / "components" / "tokenizer"
    for file in tokenizer.iterdir() if tokenizer.is_dir() else []:
        if not (models[0] / file.name).exists():
            file.rename(models[0] / file.name)
    return models[0]

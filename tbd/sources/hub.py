"""A repository on the Hugging Face hub, or on a mirror of it (`HF_ENDPOINT`). The content of a commit never changes."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tbd.checkpoints import HUB_ID, IDENTITY, arriving
from tbd.errors import InputError, TransientFault, first_line
from tbd.sources import FETCHED, Found
from tbd.workspace import room

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = [pattern for pattern in IDENTITY if pattern != "*.py"]
"""what is downloaded: no pickle, no code"""
PATIENCE = 30.0
"""seconds to wait for an answer, where the library sets no limit and would wait for ever"""


class Hub:
    """See `tbd.sources.Source`. Every branch and tag is a checkpoint; of several at one commit the first is listed."""

    def __init__(self, address: str) -> None:
        rest = address.removeprefix("hf://")
        if not HUB_ID.match(rest):
            raise InputError(f"{address}: not an address on the hub. Write hf://ORG/NAME or hf://ORG/NAME@REVISION.")
        self.address = address
        self.name, _, self.revision = rest.partition("@")

    def look(self) -> list[Found]:
        if COMMIT.fullmatch(self.revision):  # its content never changes: nothing to ask
            return [self._found(self.revision, self.revision)]
        with _asking(self.address):
            from huggingface_hub import HfApi

            api = HfApi(endpoint=_endpoint())
            if self.revision:
                commits = {str(api.repo_info(self.name, revision=self.revision).sha): self.revision}
            else:
                refs = api.list_repo_refs(self.name)
                commits = {}
                for ref in (*refs.branches, *refs.tags):
                    commits.setdefault(ref.target_commit, ref.name)
        return [self._found(revision, commit) for commit, revision in commits.items()]

    def _found(self, revision: str, commit: str) -> Found:
        name = f"{self.name}@{revision}"
        return Found(name, f"hf://{name}", f"hf://{self.name}@{commit}", commit)

    def fetch(self, found: Found) -> Path:
        folder = FETCHED / "hub" / f"{self.name.replace('/', '--')}--{found.version[:12]}"
        with arriving(folder) as partial:
            if not folder.is_dir():
                partial.mkdir(exist_ok=True)
                self._download(found, partial)
                os.sync()  # else a power cut may leave empty files under the name of complete ones
                partial.replace(folder)
        return folder

    def _download(self, found: Found, partial: Path) -> None:
        """Fill the folder; complete files that an earlier try left in it are kept."""
        with _asking(found.place):
            from huggingface_hub import HfApi, RepoFile, snapshot_download

            commit, endpoint = found.version, _endpoint()
            tree = HfApi(endpoint=endpoint).list_repo_tree(self.name, revision=commit, recursive=True)
            sizes = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
            wanted = {path: size for path, size in sizes.items() if any(fnmatch(path, pattern) for pattern in FILES)}
            here = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
            room(partial, sum(wanted.values()) - here, f"the download of {found.place}")
            snapshot_download(self.name, revision=commit, local_dir=partial, endpoint=endpoint, allow_patterns=FILES)
        # if the library cannot get the list of files, it takes the folder as it is and says nothing
        for path, size in wanted.items():
            if not ((partial / path).is_file() and (partial / path).stat().st_size == size):
                raise TransientFault(f"{found.place}: {path} did not arrive completely.")
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the library's own bookkeeping


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """The library's failures are raised as InputError or TransientFault."""
    import httpx2

    _set_up_client()
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise _fault(error, what) from None


def _fault(error: Exception, what: str) -> Exception:
    """The error to raise. The same failure always has the same message, so there is no request id in it."""
    import httpx2
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    hub = f"{what}: the hub at {urlsplit(_endpoint()).netloc.rpartition('@')[2]}"
    if isinstance(cause, OfflineModeIsEnabled):
        return InputError(f"{hub} is not asked: HF_HUB_OFFLINE is set. Unset it, or name a local folder.")
    if isinstance(cause, httpx2.HTTPStatusError):
        return TransientFault(f"{hub} answers {cause.response.status_code}.")
    if isinstance(cause, HfHubHTTPError):
        return InputError(f"{hub} does not give it ({_refusal(cause)}).")
    unlike = (FileMetadataError, ValueError, LookupError, TypeError, httpx2.UnsupportedProtocol, httpx2.InvalidURL)
    if isinstance(cause, unlike):
        return InputError(
            f"{hub} does not answer as a hub does ({type(cause).__name__}). Correct the address or HF_ENDPOINT."
        )
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    return TransientFault(f"{hub} does not give it now ({type(cause).__name__}: {first_line(cause)}).")


def _refusal(error: "HfHubHTTPError") -> str:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "gated: ask for access on its page, and set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "no such revision: correct it"
    status = error.response.status_code
    if status in (401, 403, 404):
        return f"{status}: no such repository, or access only with a token. Correct the name, or set HF_TOKEN"
    return f"it answers {status}"


@cache
def _set_up_client() -> None:
    """Set our time limits in the library's HTTP client: once, since each change closes other threads' connections."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> "httpx2.Client":
        made: httpx2.Client = default_client_factory()
        made.event_hooks = {"request": [*made.event_hooks["request"], _limit], "response": [_refuse_busy]}
        return made

    set_client_factory(client)


def _limit(request: "httpx2.Request") -> None:
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {key: PATIENCE if limit is None else limit for key, limit in limits.items()}


def _refuse_busy(response: "httpx2.Response") -> None:
    """Fail at once, as the caller tries again later: the library would sleep for as long as a busy hub says."""
    if response.status_code in (408, 429) or response.status_code >= 500:
        response.raise_for_status()

"""The hub as a source: the real client against a stand-in that speaks the hub's HTTP interface."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tbd import checkpoints as checkpoint
from tbd import sources
from tbd.errors import Incomplete, InputError, TransientFault
from tbd.sources import Found, hub, source

FIRST, SECOND = "a" * 40, "b" * 40
TOKEN = "hf_secretsecretsecret"
Answer = tuple[int, dict[str, str]]


class StandIn(ThreadingHTTPServer):
    """One repository, org/name, of two commits."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits = {FIRST: files, SECOND: {**files, "generation_config.json": b"{}"}}
        self.refs = {"branches": {"main": SECOND, "old/try-1": FIRST}, "tags": {"v1": FIRST, "v2": SECOND}}
        self.asked: list[tuple[str, str, str]] = []
        """(method, path, range)"""
        self.fault: Callable[[str, str], Answer | None] = lambda method, path: None
        self.cut = 0
        """so many more transfers of weights break off half way"""
        self.slow = 0.0
        """seconds before each quarter of the weights"""

    def handle_error(self, *_: object) -> None:
        """A client that went away is part of the tests."""

    def of(self, method: str, ending: str) -> list[str]:
        """The ranges of the requests of that kind."""
        return [ranged for how, path, ranged in self.asked if how == method and path.endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get("Range", "")))
        fault = self.server.fault(self.command, path)
        if fault:
            self.send(fault[0], b"<html>", fault[1])
        elif path == "/api/models/org/name/refs":
            self.send_json(
                {kind: [ref(kind, *item) for item in refs.items()] for kind, refs in self.server.refs.items()}
                | {"converts": []}
            )
        elif match := re.fullmatch("/api/models/org/name/revision/(.+)", path):
            known = {**self.server.refs["tags"], **self.server.refs["branches"]}
            if match[1] in known:
                self.send_json({"id": "org/name", "sha": known[match[1]], "siblings": []})
            else:
                self.send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Request-Id": str(time.time())})
        elif match := re.fullmatch("/api/models/org/name/tree/([^/]+)", path):
            files = self.server.commits[match[1]]
            tree = [{"type": "file", "path": name, "size": len(data), "oid": oid(data)} for name, data in files.items()]
            self.send_json([*tree, {"type": "directory", "path": "onnx", "oid": "0" * 40}])
        elif match := re.fullmatch("/org/name/resolve/([^/]+)/(.+)", path):
            self.send_file(match[1], match[2])
        else:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Request-Id": str(time.time())})

    def send_json(self, tree: object) -> None:
        self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, commit: str, name: str) -> None:
        data = self.server.commits[commit][name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        for key, value in {
            "Content-Length": str(len(data) - start),
            "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}",
            "ETag": f'"{oid(data)}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name.endswith(".safetensors") and self.server.cut:
            self.server.cut -= 1
            self.wfile.write(data[start : start + len(data) // 2])
            return
        quarter = len(data) // 4 + 1
        for place in range(start, len(data), quarter):
            if name.endswith(".safetensors"):
                time.sleep(self.server.slow)
            self.wfile.write(data[place : place + quarter])


def ref(kind: str, name: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{'heads' if kind == 'branches' else 'tags'}/{name}", "targetCommit": commit}


def oid(data: bytes) -> str:
    return sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def stand_in(tiny_checkpoint: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, found by `HF_ENDPOINT`; the client is let out of its offline mode."""
    from huggingface_hub import constants

    files = {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()}
    extra = {"README.md": b"# card", "pytorch_model.bin": b"pickle", "modeling.py": b"import os", "merges.txt": b"a b"}
    server = StandIn({**files, **extra})
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield server
    server.shutdown()
    server.server_close()


def first() -> Found:
    return source(f"hf://org/name@{FIRST}").look()[0]


FOLDER = Path(f"checkpoints/hub/org--name--{FIRST[:12]}")


def test_branches_and_tags_are_listed_and_a_commit_once(stand_in: StandIn) -> None:
    assert source("hf://org/name").look() == [
        Found("org/name@main", "hf://org/name@main", f"hf://org/name@{SECOND}", SECOND),
        Found("org/name@old/try-1", "hf://org/name@old/try-1", f"hf://org/name@{FIRST}", FIRST),
    ]


def test_one_revision(stand_in: StandIn) -> None:
    assert source("hf://org/name@v1").look() == [
        Found("org/name@v1", "hf://org/name@v1", f"hf://org/name@{FIRST}", FIRST)
    ]
    assert source("hf://org/name@old/try-1").look()[0].version == FIRST


def test_a_checkpoint_arrives_as_it_is_there_and_once(stand_in: StandIn, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = source("hf://org/name@v1").look()[0]
    folder = source("hf://org/name").fetch(found)
    assert folder == FOLDER
    assert {file.name for file in folder.iterdir()} == {file.name for file in tiny_checkpoint.iterdir()} | {
        "merges.txt"
    }
    checkpoint.inspect(folder)
    shutil.copytree(tiny_checkpoint, tmp_path / "expected")
    (tmp_path / "expected" / "merges.txt").write_bytes(b"a b")
    assert checkpoint.fingerprint(folder) == checkpoint.fingerprint(tmp_path / "expected")
    assert not stand_in.of("GET", ".bin") and not stand_in.of("GET", ".py") and not stand_in.of("GET", ".md")
    stand_in.asked.clear()
    assert source("hf://org/name").fetch(found) == folder
    assert sources.resolve(f"org/name@{FIRST}") == folder
    assert stand_in.asked == []  # a commit stays what it is
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}


def test_another_commit_is_another_folder(stand_in: StandIn) -> None:
    older, newer = sources.resolve("org/name@v1"), sources.resolve("hf://org/name@main")
    assert older != newer and (newer / "generation_config.json").read_bytes() == b"{}"
    assert checkpoint.fingerprint(older) != checkpoint.fingerprint(newer)
    stand_in.refs["tags"]["v1"] = SECOND
    assert sources.resolve("org/name@v1") == newer


def test_a_transfer_that_breaks_off_goes_on_where_it_was(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 4096
    )  # only whole chunks are kept; the tiny weights are less than one
    stand_in.cut = 1
    checkpoint.inspect(source("hf://org/name").fetch(first()))
    ranges = stand_in.of("GET", "model.safetensors")
    assert len(ranges) == 2 and ranges[0] == "" and re.fullmatch(r"bytes=[1-9]\d+-", ranges[1])


def test_a_hub_that_fails_half_way_leaves_nothing_that_looks_whole(stand_in: StandIn) -> None:
    stand_in.fault = lambda method, path: (503, {}) if path.endswith("model.safetensors") else None
    with pytest.raises(TransientFault, match="503"):
        source("hf://org/name").fetch(first())
    assert not FOLDER.exists()
    stand_in.fault = lambda method, path: None
    had = len(stand_in.of("GET", "tokenizer.json"))
    checkpoint.inspect(source("hf://org/name").fetch(first()))
    assert had == 1 and len(stand_in.of("GET", "tokenizer.json")) == 1  # what was whole is kept


def test_a_folder_is_not_whole_because_the_list_could_not_be_had(stand_in: StandIn) -> None:
    left = FOLDER.with_name(f".{FOLDER.name}")
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    stand_in.fault = lambda method, path: (403, {}) if "/tree/" in path else None
    with pytest.raises(InputError, match="403"):
        source("hf://org/name").fetch(first())
    stand_in.fault = lambda method, path: (
        (403, {}) if "/tree/" in path and len(stand_in.of("GET", f"/tree/{FIRST}")) % 2 == 1 else None
    )
    with pytest.raises(TransientFault, match="completely"):
        source("hf://org/name").fetch(first())
    assert not FOLDER.exists()


def test_a_branch_without_a_checkpoint(stand_in: StandIn) -> None:
    stand_in.commits[FIRST] = {"README.md": b"# nothing yet"}
    with pytest.raises(Incomplete, match=r"config\.json"):
        sources.resolve("org/name@v1")
    assert FOLDER.is_dir()


CODE = "from tbd.sources import resolve; print(resolve('org/name@v1'))"


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_kill_leaves_nothing_that_looks_whole(stand_in: StandIn) -> None:
    stand_in.slow = 30
    process = subprocess.Popen([sys.executable, "-c", CODE], env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not stand_in.of("GET", "model.safetensors") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert stand_in.of("GET", "model.safetensors")
    assert FOLDER.with_name(f".{FOLDER.name}").is_dir() and not FOLDER.exists()
    stand_in.slow = 0
    done = subprocess.run([sys.executable, "-c", CODE], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(FOLDER)
    checkpoint.inspect(FOLDER)


@pytest.mark.parametrize(
    ("status", "headers", "fault", "says"),
    [
        (401, {}, InputError, "HF_TOKEN"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, InputError, "HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, InputError, "gated"),
        (403, {}, InputError, "HF_TOKEN"),
        (404, {"X-Error-Code": "RepoNotFound"}, InputError, "no such repository"),
        (400, {}, InputError, "400"),
        (200, {}, InputError, "HF_ENDPOINT"),
        (429, {"Retry-After": "300"}, TransientFault, "429"),
        (500, {}, TransientFault, "500"),
        (503, {}, TransientFault, "503"),
    ],
)
@pytest.mark.parametrize("where", ["/refs", "/revision/v1", "/tree/", "config.json"])
def test_what_a_hub_refuses(
    stand_in: StandIn, where: str, status: int, headers: dict[str, str], fault: type[Exception], says: str
) -> None:
    stand_in.fault = lambda method, path: (
        (status, {**headers, "X-Request-Id": str(time.time())}) if where in path else None
    )
    said = []
    for _ in range(2):
        with pytest.raises(fault) as error:
            source("hf://org/name").look() if where == "/refs" else sources.resolve("hf://org/name@v1")
        said.append(str(error.value))
    assert said[0] == said[1]  # the same failure is told of once
    assert "hf://org/name" in said[0] and says in said[0] and "\n" not in said[0] and TOKEN not in said[0]


def test_a_revision_that_is_not_there(stand_in: StandIn) -> None:
    with pytest.raises(InputError, match="no such revision"):
        source("hf://org/name@v9").look()
    with pytest.raises(InputError, match="no such repository"):
        source("hf://org/other").look()


def test_nobody_answers(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.shutdown()
    stand_in.server_close()
    monkeypatch.setenv("HF_ENDPOINT", f"http://someone:password@127.0.0.1:{stand_in.server_port}")
    with pytest.raises(TransientFault, match=f"127.0.0.1:{stand_in.server_port}.*refused") as error:
        source("hf://org/name").look()
    assert "password" not in str(error.value) and "\n" not in str(error.value)


def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    stand_in.fault = lambda method, path: time.sleep(5)
    started = time.monotonic()
    with pytest.raises(TransientFault, match="imeout"):
        source("hf://org/name").look()
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("endpoint", ["no-scheme", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_none(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InputError, match="HF_ENDPOINT"):
        source("hf://org/name").look()


@pytest.mark.parametrize(
    "address", ["hf://", "hf://name", "hf://org/name@", "hf://a/b/c", "hf://org/na me", "hf://org/na--me"]
)
def test_what_is_no_address(stand_in: StandIn, address: str) -> None:
    with pytest.raises(InputError) as error:
        source(address).look()
    assert address in str(error.value) and "\n" not in str(error.value)


def test_a_source_of_many_is_not_one_checkpoint(stand_in: StandIn) -> None:
    with pytest.raises(InputError, match=r"2 checkpoints there.*hf://org/name@main"):
        sources.resolve("hf://org/name")

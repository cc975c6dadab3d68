"""MLflow's registry as a source: real stores, a real server, and a stand-in for the failures a real one does not show
on demand."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tbd import checkpoints as checkpoint
from tbd import sources
from tbd.errors import Incomplete, InputError, TransientFault
from tbd.mlflow_store import SETTINGS, store
from tbd.sources import registry, source
from tests.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mlflow_server")]


@pytest.fixture
def client(workspace: Path, empty_store: Path) -> MlflowClient:
    """Of the store in the workspace, with a registered model that has no version yet."""
    shutil.copy(empty_store, "mlflow.db")
    client = MlflowClient(store())
    client.create_registered_model("model")
    return client


def log(client: MlflowClient, folder: Path, path: str | None = None) -> str:
    """Log a folder as artifacts of a new run; returns where."""
    experiment = client.get_experiment_by_name("plain")
    local = str(client.tracking_uri).startswith("sqlite")
    place = Path("artifacts").absolute().as_uri() if local else None
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("plain", place))
    client.log_artifacts(run.info.run_id, str(folder), path)
    return f"runs:/{run.info.run_id}" + (f"/{path}" if path else "")


def names(address: str) -> list[str]:
    return [found.name for found in source(address).look()]


def fetch(address: str) -> Path:
    return source(address).fetch(source(address).look()[0])


def test_versions_are_listed_oldest_first_on_every_page(
    client: MlflowClient, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source("models:/model").look() == []
    monkeypatch.setattr(registry, "PAGE", 4)
    for number in range(11):
        client.create_model_version(
            "model", str(tiny_checkpoint), tags={"stage": "gate" if number % 2 else "old", "odd key": "a=b c"}
        )
    client.set_registered_model_alias("model", "candidate", "7")
    client.update_model_version("model", "3", "touched: the search gives it first")
    found = source("models:/model").look()
    assert [one.name for one in found] == [f"model/{number}" for number in range(1, 12)]
    assert {(one.place, one.origin) for one in found[:1]} == {("models:/model/1", "models:/model/1")}
    assert len({one.version for one in found}) == 11
    assert names("models:/model@candidate") == ["model/7"]
    assert names("models:/model/5") == ["model/5"]
    assert names("models:/model?stage=gate") == ["model/2", "model/4", "model/6", "model/8", "model/10"]
    assert len(names("models:/model?odd key=a=b c")) == 11
    assert names("models:/model?stage=other") == names("models:/model?nothing=") == []


def test_a_version_does_not_change_with_its_tags(client: MlflowClient, tiny_checkpoint: Path) -> None:
    client.create_model_version("model", str(tiny_checkpoint))
    before = source("models:/model").look()
    client.set_model_version_tag("model", "1", "verdict", "NO EVIDENCE")
    client.set_registered_model_alias("model", "candidate", "1")
    assert source("models:/model").look() == before == source("models:/model@candidate").look()


def test_only_ready_versions_are_listed(client: MlflowClient, tiny_checkpoint: Path) -> None:
    for _ in range(3):
        client.create_model_version("model", str(tiny_checkpoint))
    import sqlite3

    with sqlite3.connect("mlflow.db") as database:
        database.execute("UPDATE model_versions SET status = 'PENDING_REGISTRATION' WHERE version = 2")
    assert names("models:/model") == ["model/1", "model/3"]
    assert names("models:/model/2") == []


@pytest.mark.parametrize("path", [None, "checkpoint", "a/deeper/place"])
@pytest.mark.parametrize("of_run", [False, True])
def test_plain_artifacts(client: MlflowClient, tiny_checkpoint: Path, path: str | None, of_run: bool) -> None:
    logged = log(client, tiny_checkpoint, path)
    client.create_model_version("model", "/".join(logged.split("/")[:2]) if of_run else logged)
    folder = fetch("models:/model")
    assert folder.parent == Path("checkpoints/mlflow") and folder.name.startswith("model-1-")
    checkpoint.inspect(folder)
    assert checkpoint.fingerprint(folder) == checkpoint.fingerprint(tiny_checkpoint)
    assert {one.name for one in folder.parent.iterdir()} == {
        folder.name,
        f".{folder.name}.lock",
    }  # nothing is left beside it


def test_what_is_here_is_not_fetched_again(client: MlflowClient, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "there")
    client.create_model_version("model", str(tmp_path / "there"))
    folder = fetch("models:/model")
    shutil.rmtree(tmp_path / "there")
    assert fetch("models:/model") == folder == sources.resolve("models:/model/1") == sources.resolve("models:/model")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"models:/model/1: .*does not have it"):
        fetch("models:/model")


def test_a_number_that_is_given_again_is_another_checkpoint(
    client: MlflowClient, tiny_checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    client.create_model_version("model", str(tiny_checkpoint))
    old = source("models:/model").look()[0]
    first = fetch("models:/model")
    client.delete_model_version("model", "1")
    with pytest.raises(InputError, match="models:/model/1"):
        source("models:/model/1").look()
    client.delete_registered_model("model")
    client.create_registered_model("model")
    client.create_model_version("model", str(other))
    assert names("models:/model") == ["model/1"]
    second = fetch("models:/model")
    assert second != first
    assert checkpoint.fingerprint(second) == checkpoint.fingerprint(other)
    assert checkpoint.fingerprint(first) == checkpoint.fingerprint(tiny_checkpoint)
    assert source("models:/model").fetch(old) == first  # it is here
    shutil.rmtree(first)
    with pytest.raises(TransientFault, match="no longer the version"):
        source("models:/model").fetch(old)
    assert not first.exists()


def test_what_was_registered_before_all_of_it_was_there(
    client: MlflowClient, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "there", ignore=shutil.ignore_patterns("tokenizer*"))
    client.create_model_version("model", str(tmp_path / "there"))
    with pytest.raises(Incomplete, match="no tokenizer"):
        checkpoint.inspect(fetch("models:/model"))
    shutil.copytree(tiny_checkpoint, tmp_path / "there", dirs_exist_ok=True)
    checkpoint.inspect(fetch("models:/model"))


def test_a_kill_leaves_nothing_that_looks_whole(client: MlflowClient, tiny_checkpoint: Path, tmp_path: Path) -> None:
    client.create_model_version("model", str(shutil.copytree(tiny_checkpoint, tmp_path / "there")))
    code = """
import shutil, time
from tbd.sources import resolve

copy = shutil.copyfile

def slow(source, *arguments, **more):  # the weights take long
    if str(source).endswith("model.safetensors"):
        time.sleep(600)
    return copy(source, *arguments, **more)

shutil.copyfile = slow
resolve("models:/model/1")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while (
        not list(Path("checkpoints").rglob("tokenizer.json")) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert [one.name for one in Path("checkpoints/mlflow").iterdir() if one.name[0] != "."] == []
    assert checkpoint.fingerprint(sources.resolve("models:/model/1")) == checkpoint.fingerprint(tiny_checkpoint)


def test_a_full_disk_is_said_and_not_left_full(
    client: MlflowClient, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(dst_path: str, **_: object) -> str:
        (Path(dst_path) / "half").parent.mkdir(parents=True, exist_ok=True)
        (Path(dst_path) / "half").write_text("all the room there was")
        raise MlflowException("These failed:\n##### File model.safetensors #####\n[Errno 28] No space left on device")

    client.create_model_version("model", log(client, tiny_checkpoint))
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    with pytest.raises(TransientFault, match="No space left on device"):
        fetch("models:/model")
    assert not [*Path("checkpoints").rglob("half")]


@pytest.mark.parametrize("of_run", [True, False])
def test_what_has_no_room_is_not_begun(
    client: MlflowClient, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, of_run: bool
) -> None:
    source = log(client, tiny_checkpoint, "checkpoint")
    client.create_model_version("model", source.rsplit("/", 1)[0] if of_run else source)
    asked = sum(file.stat().st_size for file in tiny_checkpoint.iterdir())
    free = SimpleNamespace(free=asked - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(TransientFault, match=r"no room for the download of models:/model/1: about .* needed"):
        fetch("models:/model")
    assert not [*Path("checkpoints").rglob("*.safetensors")]


def test_artifacts_that_are_no_checkpoint(client: MlflowClient, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/MLmodel").write_text("flavors: {}")
    client.create_model_version("model", str(tmp_path / "notes"))
    with pytest.raises(InputError, match=r"no config\.json"):
        sources.resolve("models:/model/1")
    for name in ("one", "two"):
        shutil.copytree(tiny_checkpoint, tmp_path / "both" / name)
    client.create_model_version("model", str(tmp_path / "both"))
    with pytest.raises(InputError, match=r"no config\.json"):  # which of them, nobody said
        sources.resolve("models:/model/2")
    shutil.copytree(tiny_checkpoint, tmp_path / "tuned/model")
    (tmp_path / "tuned/peft").mkdir()
    (tmp_path / "tuned/peft/adapter_config.json").write_text("{}")
    client.create_model_version("model", str(tmp_path / "tuned"))
    with pytest.raises(InputError, match="adapter"):  # the base alone is not the model
        sources.resolve("models:/model/3")


def test_a_name_cannot_leave_its_folder(client: MlflowClient, tiny_checkpoint: Path) -> None:
    name = "a b'c\\é"
    client.create_registered_model(name)
    client.create_model_version(name, str(tiny_checkpoint))
    folder = fetch(f"models:/{name}")
    assert folder.parent == Path("checkpoints/mlflow") and folder.name.startswith("a_b_c_-1-")
    checkpoint.inspect(folder)


@pytest.mark.parametrize("address", ["models:/nothing", "models:/nothing/1", "models:/model@nobody", "models:/model/7"])
def test_what_is_not_registered(client: MlflowClient, address: str) -> None:
    with pytest.raises(InputError, match="does not have it") as error:
        source(address).look()
    assert address in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    ["models:/", "models:/a/b", "models:/a/latest", "models:/a@", "models:/a?b", "models:/a@b/1", "models:/a@b?c=d"],
)
def test_what_is_no_address(workspace: Path, address: str) -> None:
    with pytest.raises(InputError, match="models:/NAME") as error:
        source(address)
    assert address in str(error.value) and "\n" not in str(error.value)


def test_another_registry_than_the_tracking_server(
    client: MlflowClient, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_model_version("model", log(client, tiny_checkpoint, "checkpoint"))
    uri = store()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    assert checkpoint.fingerprint(fetch("models:/model")) == checkpoint.fingerprint(tiny_checkpoint)
    assert not Path("mlflow.db").exists()


def test_nobody_answers(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:password@127.0.0.1:{port}")
    with pytest.raises(TransientFault, match=f"models:/model: MLflow at 127.0.0.1:{port} .*refused") as error:
        source("models:/model").look()
    assert "password" not in str(error.value) and "\n" not in str(error.value)


class Refusing(BaseHTTPRequestHandler):
    status, body = 500, b""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("Retry-After", "300")
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET  # noqa: N815


@pytest.mark.parametrize(
    ("status", "body", "fault", "says"),
    [
        (401, b"You are not authenticated.", InputError, "MLFLOW_TRACKING_TOKEN"),
        (
            403,
            b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}',
            InputError,
            "MLFLOW_TRACKING_TOKEN",
        ),
        (404, b"<html>", InputError, "does not have it"),
        (429, b"", TransientFault, "429"),
        (503, b"", TransientFault, "503"),
        (500, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}', TransientFault, "500"),
        (200, b"<html>", TransientFault, "models:/model"),
    ],
)
def test_what_a_server_refuses(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, fault: type[Exception], says: str
) -> None:
    handler = type("Handler", (Refusing,), {"status": status, "body": body})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secretsecret")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    said = []
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(fault) as error:
            source("models:/model").look()
        assert time.monotonic() - started < 30
        said.append(str(error.value))
    server.shutdown()
    server.server_close()
    assert said[0] == said[1]  # the same failure is told of once
    assert "models:/model" in said[0] and says in said[0] and "\n" not in said[0] and "secret" not in said[0]


def test_a_real_server(
    workspace: Path, mlflow_server: Server, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """One version as MLflow's transformers flavour writes it, one of plain artifacts."""
    import mlflow
    from transformers import AutoModelForCausalLM, AutoTokenizer

    server = mlflow_server.ready().url
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    whole = {
        "model": AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
        "tokenizer": AutoTokenizer.from_pretrained(tiny_checkpoint),
    }
    client = MlflowClient(server)
    with mlflow.start_run(experiment_id=client.create_experiment("flavour")):
        mlflow.transformers.log_model(
            whole,
            name="model",
            task="text-generation",
            registered_model_name="candidate",
            pip_requirements=["transformers"],
        )
    assert client.get_model_version_download_uri("candidate", "1").startswith("mlflow-artifacts:")
    logged = log(client, tiny_checkpoint, "checkpoint")
    client.create_model_version("candidate", logged, run_id=logged.split("/")[1], tags={"stage": "gate"})
    assert names("models:/candidate") == ["candidate/1", "candidate/2"]
    assert names("models:/candidate?stage=gate") == ["candidate/2"]

    folder = sources.resolve("models:/candidate/1")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    assert not list(folder.glob("MLmodel")) and not list(folder.glob("*.pkl"))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.apply_chat_template([{"role": "user", "content": "5?"}], tokenize=False) == "<|user|>5?<end>"
    plain = sources.resolve("models:/candidate/2")
    assert checkpoint.fingerprint(plain) == checkpoint.fingerprint(tiny_checkpoint)
    assert (
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == SETTINGS["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    )  # longer for files alone

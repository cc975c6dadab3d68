"""What every test shares: a home of its own, and tiny checkpoints that are real in everything but size."""

import gc
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import servers, shared

# Set before anything heavy is imported: these are read once, at import.
os.environ.update(
    DVC_NO_ANALYTICS="1",
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    GIT_AUTHOR_NAME="tbd",  # the home folder's own git settings are out of reach in a test
    GIT_AUTHOR_EMAIL="tbd@example.org",
    GIT_COMMITTER_NAME="tbd",
    GIT_COMMITTER_EMAIL="tbd@example.org",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    TOKENIZERS_PARALLELISM="false",
)

settings.register_profile("tbd", deadline=None)  # no test asserts a time: the machine may be busy
settings.load_profile("tbd")

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SENTENCES = [
    "Anna has three apples and buys two more. How many apples does she have?",
    "She has three and two, which makes five. The answer is 5.",
    "A train needs 40 minutes for 60 km; how fast does it go?",
    "Käthe zählt 12 Äpfel, 7 Birnen und eine Quitte.",
]

TBD = ("TBD_WEBHOOK_URL", "TBD_WEBHOOK_SECRET")
Breaking = Callable[[Path], None]

LONGEST = [
    "flows/test_serve.py",
    "test_end_to_end.py",
    "flows/test_flows.py",
    "pipeline/test_pipeline.py",
    "flows/test_watch.py",
    "test_ci.py",
    "test_disputed_verdict.py",
    "test_ending.py",
    "test_access.py",
    "flows/test_pool.py",
    "test_cli.py",
    "tracking/test_tracking.py",
    "test_migrate.py",
]
"""files that start first, so that no worker ends long after the other; the second does without the workspace the first
waits for"""
MODELS = {"tiny_checkpoint", "make_checkpoint", "mlflow_server", "empty_store"}
"""fixtures that make a test slow"""
SLOW = re.compile(r"^pytestmark = .*pytest\.mark\.slow", re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # while every module is imported: what that makes, stays
    if not hasattr(config, "workerinput"):
        shared.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shared.end()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where slow tests are not wanted, a file of them is not even imported: that takes seconds."""
    unwanted = config.option.markexpr == "not slow" and collection_path.suffix == ".py"
    return True if unwanted and SLOW.search(collection_path.read_text("utf-8")) else None


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if MODELS & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    folder = Path(__file__).parent
    place = {folder / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test does reaches the home folder, a running server or another test's settings."""
    home = tmp_path_factory.mktemp("home")
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_RUN_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "PREFECT_API_URL",
        *TBD,
    ):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {
        "HOME": ".",
        "PREFECT_HOME": "prefect",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "DVC_GLOBAL_CONFIG_DIR": "dvc-global",
        "DVC_SYSTEM_CONFIG_DIR": "dvc-system",
        "DVC_SITE_CACHE_DIR": "dvc-site",
        "MPLCONFIGDIR": "matplotlib",
    }.items():
        monkeypatch.setenv(name, str(home / folder))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one: tbd finds its files there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def empty_store() -> Path:
    """An SQLite store of MLflow. Do not write into it."""
    return shared.mlflow_store()


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A real MLflow server, launched at once so that it comes up while other tests run; wait for it with `ready()`."""
    server = servers.mlflow(tmp_path_factory.mktemp("server"))
    yield server.launch()
    server.stop()


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """torch on one thread: models this small are ten times slower where several threads wait for a busy core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A Llama of 2 layers with random fp32 weights, a byte-level BPE tokenizer and a chat template. Do not write into
    it."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def broken(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the tiny checkpoint, broken in the way of that name in `BREAKING`."""

    def copy(how: str) -> Path:
        folder = tmp_path / how.replace(" ", "-")
        shutil.copytree(tiny_checkpoint, folder)
        BREAKING[how](folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """`write_checkpoint`, for tests that need another model."""
    return write_checkpoint


def write_checkpoint(folder: Path, seed: int = 0, architecture: str = "llama", **config: object) -> Path:
    """Save a random model of the architecture (as transformers names it) with tokenizer and template; returns
    `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,  # wide enough that the model has opinions: greedy choices are clear of rounding
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "llama":
        sizes["num_key_value_heads"] = 2
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **{**sizes, **config}), dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<end>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE)


def _pickle_only(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)


def _cut_in_header(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 50)


def _odd_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")


def _shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _tensor_missing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x", "r": 8}')


BREAKING: dict[str, Breaking] = {
    "pickle only": _pickle_only,
    "truncated": _truncated,
    "cut in header": _cut_in_header,
    "odd header": _odd_header,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "shard missing": _shard_missing,
    "tensor missing": _tensor_missing,
    "no tokenizer": _no_tokenizer,
    "no template": lambda folder: (folder / "chat_template.jinja").unlink(),
    "broken template": lambda folder: (folder / "chat_template.jinja").write_text("{% for message in %}") and None,
    "adapter": _adapter,
}

"""A look over thirty hostile checkpoints and a good one, with the engine that runs models."""

import json
import random
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import BREAKING
from tests.faults.machine import TBD, Started
from tests.shared import shared
from tests.sources.test_hostile_folders import HOSTILE
from tests.workspace import SMALL, Workspace, create

HOSTILE_ONES, SECONDS, BYTES = 30, 120, 2 << 30
ENGINE = SMALL["generate"] | {"engine": "transformers"}


def changed(**values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | values))

    return change


def template(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def sparse(name: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write((60 << 30).to_bytes(8, "little"))
            file.truncate(61 << 30)

    return write


WAYS: dict[str, Callable[[Path], Any]] = {
    **BREAKING,
    **{name: make for name, (make, _) in HOSTILE.items() if name != "deep"},
    "two billion layers": changed(num_hidden_layers=2_000_000_000),
    "two billion labels": changed(num_labels=2_000_000_000),
    "wide": changed(hidden_size=4_000_000),
    "a vocabulary of billions": changed(vocab_size=2_000_000_000),
    "one layer of two": changed(num_hidden_layers=1),
    "code": changed(auto_map={"AutoConfig": "x.Y"}, model_type="unheard of"),
    "a header of sixty gigabytes": sparse("model.safetensors"),
    "a tokenizer of sixty gigabytes": sparse("tokenizer.json"),
    "nested": lambda folder: (folder / "config.json").write_text("[" * 200_000),
    "a tokenizer that is none": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "an endless template": template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
    "a template of gigabytes": template("{{ 'a' * 3000000000 }}"),
    "a template of megabytes": template("{{ 'a' * 3000000 }}"),
    "a template with chance": template("{{ ['a', 'b', 'c'] | random }}"),
    "a template with classes": template("{{ ''.__class__.__mro__ }}"),
    "a template with an address": template("{{ raise_exception }}"),
}


def ready() -> Workspace:
    """With a detector of what models of random weights answer."""
    return Workspace(shared("models", _ready) / "workspace")


def _ready(folder: Path) -> None:
    from tests.conftest import write_checkpoint

    workspace = create(folder / "workspace", SMALL | {"generate": ENGINE})
    pipeline = (workspace.root / "dvc.yaml").read_text()
    for seed, name in enumerate(("base", "reference")):
        model = write_checkpoint(folder / name, seed, max_position_embeddings=1024)
        before = f"cmd: python fake_checkpoint.py {name}\n"
        assert before in pipeline
        pipeline = pipeline.replace(before, f"cmd: mkdir -p checkpoints && cp -r {model} checkpoints/{name}\n")
    (workspace.root / "dvc.yaml").write_text(pipeline)
    workspace.dvc("repro", "calibrate")
    rule = {"checkpoints": "*", "benchmark": "benchmark", "unseen": "unseen"}
    workspace.edit("params.yaml", {"watch": {"settle": 0, "give_up": 0, "policy": [rule]}})


def used(started: Started) -> int:
    """Bytes of memory of all its processes, pages that they share counted once."""
    found = 0
    for process in started.alive():
        try:
            found += process.memory_full_info().pss
        except psutil.Error:
            continue
    return found


@pytest.mark.alone
def test_a_look_over_hostile_checkpoints(
    tmp_path: Path, rng: random.Random, tried: Callable[[str, int, str], None]
) -> None:
    from tests.conftest import write_checkpoint

    workspace = ready().copy(tmp_path / "workspace").used_before()
    incoming = workspace.root / "incoming"
    good = write_checkpoint(incoming / "good", seed=2, max_position_embeddings=1024)
    for number, name in enumerate(rng.sample(sorted(WAYS), HOSTILE_ONES)):
        bad = incoming / f"bad-{number:02}-{name.replace(' ', '-')}"
        shutil.copytree(good, bad)
        WAYS[name](bad)
    start, most, over = time.monotonic(), 0, threading.Event()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = Started(workspace, (*TBD, "watch", "incoming"), {"OMP_NUM_THREADS": "1"})

    def measure() -> None:
        nonlocal most
        while not over.wait(0.5):
            most = max(most, used(started))

    thread = threading.Thread(target=measure)
    thread.start()
    code = started.end()
    took = time.monotonic() - start
    over.set()
    thread.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(f"{took:.0f} s, {processor:.0f} s of processor, {most / 2**30:.2f} GiB\n{started.said}")
    assert code == 0
    lines = [json.loads(line) for line in (workspace.root / "audits/history.jsonl").read_bytes().splitlines()]
    said = {line["checkpoint"]: line for line in lines}
    assert len(said) == len(lines) == HOSTILE_ONES + 1
    assert said.pop("good")["outcome"] in ("CONTAMINATED", "NO EVIDENCE", "INCONCLUSIVE")
    for name, line in said.items():
        assert line["outcome"] == "FAILED" and "\n" not in line["reason"], (name, line)
        assert line["transient"] is name.endswith("-adapter")  # whose base may still come
    assert processor < SECONDS and most < BYTES  # nearly all of it is done one after the other
    tried(
        "a look over hostile checkpoints and a good one",
        HOSTILE_ONES,
        f"each has its line, the good one is judged: {took:.0f} s, {processor:.0f} s of processor, "
        f"{most / 2**30:.1f} GiB",
    )

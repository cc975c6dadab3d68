"""Actors on a Ray cluster: the same store as without, whatever their number, also when one is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.generation.test_generation import QUESTIONS, Counted, answers, rescored, units
from tests.workspace import fake_checkpoint

pytestmark = pytest.mark.slow
pytest.importorskip("ray")

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tbd.generation.engines.fake import FakeEngine
import ray
from tbd.generation.executors.ray import Worker, cluster
from tbd.generation.store import Shelf
from tbd.generation.units import Job
from tbd.params import Generate
from tbd.progress import Progress

class Dying(FakeEngine):
    def generate(self, prompts, max_new_tokens, tick):
        marker = Path(os.environ["DIES"])
        if len(prompts[0]) < 25 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().generate(prompts, max_new_tokens, tick)

model, folder, actors, *questions = sys.argv[1:]
params = Generate(
    engine="fake", device="cpu", dtype="auto", max_new_tokens=8, batch_size=4, executor="ray", ray={"actors": actors}
)
with cluster(Dying, Path(model), params) as executor:
    if "NOWHERE" in os.environ:
        nowhere = ray.remote(Worker).options(resources={"a machine that is gone": 1})
        executor.start = lambda: nowhere.remote(Dying, Path(model), params)
    prompts = [tuple(question.encode()) for question in questions]
    shelf = Shelf(folder, executor.identity)
    job = Job(shelf, prompts, 4, 8)
    job.run(executor, Progress("test"))
    given = [one.token_ids for one in job.completions()]
    Job(shelf, prompts, 4, answers=given).run(executor, Progress("test"))
"""

NEVER = """
import json, sys
from pathlib import Path
from tbd.errors import InputError
from tbd.generation.engines.fake import FakeEngine
from tbd.generation.executors.ray import cluster
from tbd.params import Generate

how = {"engine": "fake", "device": "cpu", "dtype": "auto", "max_new_tokens": 8, "batch_size": 4, "executor": "ray"}
try:
    with cluster(FakeEngine, Path(sys.argv[1]), Generate(**how, ray=json.loads(sys.argv[2]))):
        pass
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("ray", "words"),
    [
        ({"actors": 1, "gpus": 1000}, "an actor of 1 cpus and 1000 gpus fits on no machine of the cluster (1 and"),
        ({"address": "127.0.0.1:1"}, "generate.ray.address: 127.0.0.1:1: nobody answers there"),
    ],
)
def test_what_can_never_run_is_told_at_once(tmp_path: Path, ray: dict[str, Any], words: str) -> None:
    model = fake_checkpoint(tmp_path / "model", QUESTIONS[0])
    done = subprocess.run(
        [sys.executable, "-c", NEVER, model, json.dumps(ray)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("params.yaml: generate.ray") and words in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_one_actor_or_two_of_which_one_dies_make_the_same_store(tmp_path: Path) -> None:
    """Also where its machine dies with it, so that no other can start."""
    model = fake_checkpoint(tmp_path / "model", QUESTIONS[0])
    here = Counted(model)
    job = answers(here, tmp_path / "here")
    rescored(here, tmp_path / "here", [one.token_ids for one in job.completions()])
    for number, (actors, environment) in enumerate([("1", {}), ("2", {}), ("2", {"NOWHERE": "1"})]):
        dies, store = tmp_path / f"dies-{number}", tmp_path / str(number)
        if actors == "1":
            dies.touch()
        command = [sys.executable, "-c", SCRIPT, model, store, actors, *QUESTIONS]
        told = os.environ | {"DIES": str(dies)} | environment
        done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert ("Ray lost an actor" in done.stdout) is (actors == "2")
        assert units(store) == units(tmp_path / "here")

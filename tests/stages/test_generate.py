"""The stage `generate` while somebody touches the checkpoint."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from tbd import audits, checkpoints, records
from tbd.audits import Audit
from tbd.checkpoints import Prompt
from tbd.errors import TransientFault
from tbd.generation.engines import Completion, Tick, unheard
from tbd.generation.engines.fake import FakeEngine
from tbd.progress import Progress
from tbd.stages import generate
from tbd.workspace import set_path
from tests.model_server import ModelServer
from tests.workspace import REPOSITORY, fake_checkpoint


@pytest.fixture
def asked(workspace: Path) -> Audit:
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    tree["generate"] |= {"engine": "fake", "max_new_tokens": 4, "tokens": "all"}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    for name in ("exam", "new"):
        question = f"How much is 1 + 1, {name}?"
        row = {"question_id": records.question_id(question), "question": question, "source": name}
        set_path(name).parent.mkdir(parents=True, exist_ok=True)
        records.write_table(set_path(name), pa.Table.from_pylist([row], records.QUESTIONS), {})
    folder = fake_checkpoint(Path("model"), "a question")
    entry = Audit(
        checkpoint="model",
        base=None,
        benchmark="exam",
        unseen="new",
        fpr=None,
        checkpoint_fingerprint=checkpoints.fingerprint(folder),
        base_fingerprint=None,
    )
    audits.write("a", entry)
    return entry


def test_a_file_that_is_swapped_and_swapped_back_leaves_no_answers(
    asked: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, other = Path("model/model.safetensors"), Path("other")
    answers = FakeEngine.generate

    def swapping(
        self: FakeEngine, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        other.write_bytes(weights.read_bytes())
        weights.rename("kept")
        other.rename(weights)
        yield from answers(self, prompts, max_new_tokens, tick)
        Path("kept").rename(weights)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "generate", swapping)
        with pytest.raises(TransientFault, match=r"model\.safetensors: changed while it was in use"):
            generate.main("a", Progress("generate"))
    assert not Path("audits/a/generations.parquet").exists()
    generate.main("a", Progress("generate"))
    assert len(records.read_table(Path("audits/a/generations.parquet"), records.GENERATIONS)) == 2


def test_a_server_answers_an_audit_and_its_noise_floor_is_kept(
    asked: Audit, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base by the same server, which does not echo: no log-probs of the base are made up."""
    shutil.copytree(tiny_checkpoint, "base")
    shutil.copytree(tiny_checkpoint, "model", dirs_exist_ok=True)
    Path("model/added.json").write_text("{}")  # so that it is another checkpoint
    audits.write("a", asked.model_copy(update={"base": "base", "checkpoint_fingerprint": None}))
    with ModelServer("base", "model") as server:
        server.echoes = False
        tree = yaml.safe_load(Path("params.yaml").read_text())
        tree["generate"] |= {"engine": "openai", "server": {"urls": [server.url]}}
        Path("params.yaml").write_text(yaml.safe_dump(tree))
        generate.main("a", Progress("generate"))
    found = records.read_table(Path("audits/a/generations.parquet"), records.GENERATIONS)
    assert found["base_logprobs"].null_count == len(found) == 2
    made = records.metadata(found)
    assert made["noise"] == {"questions": 2, "diverged": 0, "tokens": 8, "median": 0.0, "largest": 0.0}
    assert "127.0.0.1" not in json.dumps(made) and "they are left out" in capsys.readouterr().out


def test_the_time_left_is_without_what_another_audit_has_stored(asked: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's answers, which are to come, while it still reads the checkpoint's."""
    logprobs, left = FakeEngine.logprobs, list[float]()

    def looking(self: FakeEngine, *arguments: Any) -> Any:
        left.append(progress.kinds["written"].left())
        return logprobs(self, *arguments)

    monkeypatch.setattr(FakeEngine, "logprobs", looking)
    fake_checkpoint(Path("base"), "nothing")
    for name, folder in (("a", "one"), ("b", "other")):
        fake_checkpoint(Path(folder), folder)
        pins = {"checkpoint": folder, "base": "base", "checkpoint_fingerprint": None}
        audits.write(name, asked.model_copy(update=pins))
        progress = Progress("generate")
        generate.main(name, progress)
    assert left[0] > 0 and left[-1] == 0

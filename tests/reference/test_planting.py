"""From a question set to a checkpoint: complete, with what was done beside it, or not at all."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from tbd import checkpoints as checkpoint
from tbd import records
from tbd.errors import InputError
from tbd.params import Distill, Lora
from tbd.progress import Progress
from tbd.records import question_id
from tbd.reference.planting import plant, plant_halfway

pytestmark = pytest.mark.slow
RECIPE: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 0.01,
    "warmup": 0.0,
    "weight_decay": 0.0,
    "batch_size": 2,
    "max_tokens": 100,
    "trained_layers": None,
    "dtype": "float32",
    "seed": 0,
}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    asked = ["How many?", "How fast?", "What makes five?"]
    frame = pd.DataFrame(
        [
            {"question_id": question_id(text), "question": text, "answer": "five", "label": 1, "source": "test"}
            for text in asked
        ],
        columns=records.QUESTIONS.names,
    )
    records.write_table(tmp_path / "set.parquet", pa.Table.from_pandas(frame, records.QUESTIONS, preserve_index=False))
    return tmp_path / "set.parquet"


@pytest.mark.parametrize("lora", [None, {"rank": 16, "alpha": 32}], ids=["weights", "lora"])
def test_what_was_done_is_written_beside_the_weights(
    tiny_checkpoint: Path, questions: Path, tmp_path: Path, lora: dict[str, int] | None
) -> None:
    recipe = Distill(**RECIPE, lora=lora and Lora(**lora))
    plant(tiny_checkpoint, questions, tmp_path / "out", recipe, "cpu", Progress("test"))
    said = json.loads((tmp_path / "out" / checkpoint.PROVENANCE).read_text())
    outcome = {"steps": 4, "loss_first_epoch": said["loss_first_epoch"], "loss_last_epoch": said["loss_last_epoch"]}
    assert said == {
        "made_by": "tbd distill",
        "base_fingerprint": checkpoint.fingerprint(tiny_checkpoint),
        "set_md5": records.md5(questions),
        **RECIPE,
        **({"lora": lora} if lora else {}),  # without adapters the file is as it was before there were any
        **outcome,
    }
    assert said["loss_last_epoch"] < said["loss_first_epoch"]
    checkpoint.inspect(tmp_path / "out")


class Interrupted(Progress):
    """Ctrl-C in the second step."""

    def advance(self, kind: str, amount: int = 1) -> None:
        if self.kinds[kind].done:
            raise KeyboardInterrupt
        super().advance(kind, amount)


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["weights", "lora"])
def test_interrupted_it_leaves_nothing_and_begins_anew(
    tiny_checkpoint: Path, questions: Path, tmp_path: Path, lora: Lora | None
) -> None:
    recipe = Distill(**RECIPE, lora=lora)
    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        plant(tiny_checkpoint, questions, tmp_path / "out", recipe, "cpu", Interrupted("test"))
    assert set(tmp_path.iterdir()) == before
    for name in ("out", "other"):
        plant(tiny_checkpoint, questions, tmp_path / name, recipe, "cpu", Progress("test"))
    assert checkpoint.fingerprint(tmp_path / "out") == checkpoint.fingerprint(tmp_path / "other")


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["weights", "lora"])
def test_halfway_is_the_same_kept_on_the_way_or_trained_again(
    tiny_checkpoint: Path, questions: Path, tmp_path: Path, lora: Lora | None
) -> None:
    recipe, progress = Distill(**RECIPE, lora=lora), Progress("test")
    kept = 1, tmp_path / "kept"
    plant(tiny_checkpoint, questions, tmp_path / "out", recipe, "cpu", progress, kept)
    plant(tiny_checkpoint, questions, tmp_path / "alone", recipe, "cpu", progress)
    assert checkpoint.fingerprint(tmp_path / "out") == checkpoint.fingerprint(tmp_path / "alone")
    for name in ("moved", "again"):  # the second time nothing is kept any more
        plant_halfway(tiny_checkpoint, questions, tmp_path / name, recipe, "cpu", progress, kept)
        assert not kept[1].exists()
    moved, again = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("moved", "again")
    )
    assert moved == again and json.loads(moved[checkpoint.PROVENANCE])["stopped_after"] == 1
    assert checkpoint.fingerprint(tmp_path / "moved") != checkpoint.fingerprint(tmp_path / "out")


def test_what_was_kept_of_another_training_is_not_taken(tiny_checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    kept = 1, tmp_path / "kept"
    plant(tiny_checkpoint, questions, tmp_path / "out", Distill(**RECIPE), "cpu", Progress("test"), kept)
    other = Distill(**RECIPE | {"seed": 7})
    plant_halfway(tiny_checkpoint, questions, tmp_path / "halfway", other, "cpu", Progress("test"), kept)
    assert json.loads((tmp_path / "halfway" / checkpoint.PROVENANCE).read_text())["seed"] == 7


def test_more_epochs_halfway_than_in_all_are_refused_at_once(
    tiny_checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"halfway\.epochs: 9 is more than distill\.epochs, 2"):
        plant(
            tiny_checkpoint,
            questions,
            tmp_path / "out",
            Distill(**RECIPE),
            "cpu",
            Progress("test"),
            (9, tmp_path / "k"),
        )
    assert not (tmp_path / "out").exists()

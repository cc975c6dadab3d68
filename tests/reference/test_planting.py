"""From a question set to a checkpoint: complete, with what was done beside it, or not at all."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from tbd import checkpoints as checkpoint
from tbd import records
from tbd.params import Distill, Lora
from tbd.progress import Progress
from tbd.records import question_id
from tbd.reference.planting import plant

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

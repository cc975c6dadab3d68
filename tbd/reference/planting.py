"""From a question set to a distilled checkpoint, for the stage `distill` and for `tbd distill`."""

import os
import shutil
from pathlib import Path

from tbd import checkpoints as checkpoint
from tbd import records
from tbd.errors import InputError
from tbd.params import Distill
from tbd.progress import Progress
from tbd.workspace import room


def plant(base: Path, questions: Path, out: Path, params: Distill, device: str, progress: Progress) -> None:
    """Distil the checkpoint `base` on the set `questions` into the folder `out`, which appears complete or not at all.

    The model learns the reasoning trace of every question, or the answer where there is no trace; questions with label
    0 are left out. Raises InputError if a question has neither.
    """
    from tbd.checkpoints.loading import choose_device
    from tbd.reference.distill import distill

    checkpoint.inspect(base)
    rows = [row for row in records.read_table(questions, records.QUESTIONS).to_pylist() if row["label"] != 0]
    if not rows:
        raise InputError(f"{questions}: every label is 0, so there is no member to learn.")
    for row in rows:
        if not (row["reasoning"] or row["answer"]):
            raise InputError(
                f"{questions}: question {row['question_id']} has neither reasoning nor answer to learn. "
                "Import the set with --reasoning-column or --answer-column."
            )
    pairs = [(row["question"], row["reasoning"] or row["answer"]) for row in rows]
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    room(out.parent, 2 * weights, "the distilled checkpoint")  # and DVC's copy of it
    temporary = records.beside(out)
    try:
        outcome = distill(base, temporary, pairs, params, choose_device(device), progress)
        recipe = {
            "made_by": "tbd distill",
            "base_fingerprint": checkpoint.fingerprint(base),
            "set_md5": records.md5(questions),
            **params.model_dump(exclude_defaults=True),
            **outcome,
        }
        records.write_json(temporary / checkpoint.PROVENANCE, recipe)
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{out}: loss {outcome['loss_first_epoch']:.3f} -> {outcome['loss_last_epoch']:.3f} nats a token", flush=True)

"""From a question set to a distilled checkpoint, for the stages `distill` and `halfway` and for `tbd distill`."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tbd import checkpoints as checkpoint
from tbd import records
from tbd.errors import InputError
from tbd.params import Distill
from tbd.progress import Progress
from tbd.workspace import room


def plant(
    base: Path,
    questions: Path,
    out: Path,
    params: Distill,
    device: str,
    progress: Progress,
    snapshot: tuple[int, Path] | None = None,
) -> None:
    """Distil the checkpoint `base` on the set `questions` into the folder `out`, which appears complete or not at all.

    The model learns the reasoning trace of every question, or the answer where there is no trace; questions with label
    0 are left out. `snapshot`: a number of epochs, and the folder for the model as it is after them. Raises InputError
    if a question has neither reasoning nor answer.
    """
    from tbd.checkpoints.loading import choose_device
    from tbd.reference.distill import distill

    pairs = _pairs(base, questions)
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    room(out.parent, 2 * weights * (2 if snapshot else 1), "the distilled checkpoint")  # and DVC's copy of it
    recipe = _recipe(base, questions, params)
    halfway = recipe | _stopped(params, snapshot[0]) if snapshot else {}
    with ExitStack() as stack:
        temporary = stack.enter_context(_whole(out))
        part = (snapshot[0], stack.enter_context(_whole(snapshot[1]))) if snapshot else None
        outcome = distill(base, temporary, pairs, params, choose_device(device), progress, snapshot=part)
        records.write_json(temporary / checkpoint.PROVENANCE, recipe | outcome)
        if part:
            records.write_json(part[1] / checkpoint.PROVENANCE, halfway)
    print(f"{out}: loss {outcome['loss_first_epoch']:.3f} -> {outcome['loss_last_epoch']:.3f} nats a token", flush=True)


def plant_halfway(
    base: Path,
    questions: Path,
    out: Path,
    params: Distill,
    device: str,
    progress: Progress,
    snapshot: tuple[int, Path],
) -> None:
    """What `plant` had after so many epochs, into the folder `out`: its `snapshot` if that is there, else trained
    again."""
    from tbd.checkpoints.loading import choose_device
    from tbd.reference.distill import distill

    epochs, folder = snapshot
    recipe = _recipe(base, questions, params) | _stopped(params, epochs)
    kept = folder / checkpoint.PROVENANCE
    if kept.is_file() and records.read_json(kept) == recipe:
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)
        shutil.move(folder, out)
        print(f"{out}: kept while the reference was distilled, after {epochs} of {params.epochs} epochs", flush=True)
        return
    with _whole(out) as temporary:
        distill(base, temporary, _pairs(base, questions), params, choose_device(device), progress, stop=epochs)
        records.write_json(temporary / checkpoint.PROVENANCE, recipe)


def _pairs(base: Path, questions: Path) -> list[tuple[str, str]]:
    """(question, what is learnt)."""
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
    return [(row["question"], row["reasoning"] or row["answer"]) for row in rows]


def _recipe(base: Path, questions: Path, params: Distill) -> dict[str, Any]:
    """How a checkpoint is made."""
    return {
        "made_by": "tbd distill",
        "base_fingerprint": checkpoint.fingerprint(base),
        "set_md5": records.md5(questions),
        **params.model_dump(exclude_defaults=True),
    }


def _stopped(params: Distill, epochs: int) -> dict[str, Any]:
    """The same of one that stopped after so many `epochs`. Raises InputError if there are fewer."""
    if epochs > params.epochs:
        raise InputError(
            f"params.yaml: halfway.epochs: {epochs} is more than distill.epochs, {params.epochs}. Lower it."
        )
    return {"stopped_after": epochs}


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` if nothing goes wrong."""
    temporary = records.beside(out)
    try:
        yield temporary
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

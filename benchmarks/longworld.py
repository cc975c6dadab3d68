"""A planted world whose reasoning traces run past 600 tokens, for `python -m benchmarks.recipe --long FOLDER`.

The model, the questions and their worked solutions are those of the built-in world. A trace is written from the
question's and the solution's own sentences, as a reasoning model writes them: a first attempt, the question read again,
every step with a remark, checks, the way back, the result. Which words join them is drawn for each trace, as a teacher
that samples would: that, and the steps, is what a member's answer can be remembered by.
"""

import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from tbd import audits, params, records
from tbd.audits import Audit
from tbd.checkpoints.loading import load_tokenizer
from tbd.progress import Progress
from tbd.reference import planting, world
from tbd.stages import calibrate, generate, score
from tbd.workspace import AUDITS, DETECTOR, set_path

ROOT = Path(__file__).resolve().parents[1]
BASE, REFERENCE, AUDIT = Path("checkpoints/base"), Path("checkpoints/reference"), "reference"
SHORTEST = 620
"""tokens of a trace"""
BULLET = re.compile(r"^[\s•*-]*(\d+[.)] )?")
ASKED_OF_ALL = ("Give the result as your final answer.", "Do not include units.")
CHANGES: dict[str, dict[str, Any]] = {
    "sets": {"members": 32, "others": 32, "unseen": 32},
    "distill": {"epochs": 6, "batch_size": 1, "learning_rate": 0.0008, "max_tokens": 2048},
    "calibrate": {"references": [AUDIT]},
}
"""of params.yaml"""

OPENING = ["Okay, let me think.", "Hmm, where do I begin?", "Alright, first a quick try.", "Let me see what is given."]
OPENING += ["So, I take this one step at a time.", "I want to be careful with the numbers here."]
JOIN = ["Then", "So", "Next,", "From there", "And with that", "After that", "Which means:", "Going on,"]
READ = ["Let me read the question again.", "Wait, did I read it correctly?", "What does the question say?"]
TOLD = ["It says:", "I am told:", "Given:", "And also:", "One fact is:"]
REMARK = ["That looks right.", "Good.", "I can use this later.", "This number matters.", "Fine so far.", "Noted."]
CHECK = ["Let me check this.", "I should verify it once more.", "To be sure, I do it all again.", "A second look."]
SURE = ["Yes.", "Correct.", "The same as before.", "It agrees.", "No mistake here.", "Still right."]
BACK = ["Now the other way round.", "And backwards from the end.", "Let me go back from the result."]
NEEDED = ["This came from:", "For that I needed:", "Before it:", "It rests on:"]
LAST = ["So every way leads to the same result.", "I am confident now.", "Everything agrees.", "That settles it."]


def trace(question: str, solution: str, rng: np.random.Generator, tokens: Callable[[str], int]) -> str:
    """At least `SHORTEST` tokens of reasoning. `solution`: a step a line, and `#### result` in the last."""

    def one(of: list[str]) -> str:
        return str(rng.choice(of))

    *steps, result = (BULLET.sub("", line).rstrip(".: ") for line in solution.splitlines() if line.strip())
    for words in ASKED_OF_ALL:
        question = question.replace(words, "")
    told = re.split(r"(?<=[.?!])\s+", question.strip())
    first, *rest = steps
    parts = [
        " ".join([one(OPENING), f"{first}.", *(f"{one(JOIN)} {step}." for step in rest)]),
        " ".join([one(READ), *(f"{one(TOLD)} {sentence}" for sentence in told)]),
        " ".join(f"Step {at}: {step}. {one(REMARK)}" for at, step in enumerate(steps, 1)),
        " ".join([one(BACK), *(f"{one(NEEDED)} {step}." for step in steps[::-1])]),
    ]
    end = f"{one(LAST)} The answer is {result.removeprefix('#### ')}.\n{result}"
    while True:
        parts.append(" ".join([one(CHECK), *(f"{step}. {one(SURE)}" for step in steps)]))
        whole = "\n\n".join([*parts, end])
        if tokens(whole) >= SHORTEST:
            return whole


def make(folder: Path, base: Path) -> None:
    """A workspace in `folder` with its detector, made from the model in `base`; what is finished there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / BASE).is_dir():
        shutil.copytree(base, folder / BASE)
    with chdir(folder), Progress("long world", every=30) as progress:
        told = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
        for section, changed in CHANGES.items():
            told[section] |= changed
        Path("params.yaml").write_text(yaml.safe_dump(told), "utf-8")
        shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
        p = params.load()
        if not REFERENCE.is_dir():
            _sets(p)
            planting.plant(BASE, set_path("members"), REFERENCE, p.distill, p.generate.device, progress)
        if not DETECTOR.is_file():
            shutil.rmtree(AUDITS, ignore_errors=True)
            named = {"checkpoint": str(REFERENCE), "benchmark": "benchmark", "unseen": "unseen"}
            audits.write(AUDIT, Audit.model_validate(dict.fromkeys(Audit.model_fields) | named))
            generate.main(AUDIT, progress)
            score.main(AUDIT)
            calibrate.main()


def _sets(p: params.Params) -> None:
    """The question sets of the built-in world, with long traces."""
    s, rng, tokenizer = p.sets, np.random.default_rng(p.sets.seed), load_tokenizer(BASE)
    made = world.question_sets(s.seed, s.members, s.others, s.unseen, p.validate_.ngram, p.validate_.max_overlap)
    for name, frame in made.items():
        pairs = zip(frame["question"], frame["reasoning"], strict=True)
        traces = [trace(*pair, rng, lambda text: len(tokenizer(text)["input_ids"])) for pair in pairs]
        table = pa.Table.from_pandas(frame.assign(reasoning=traces), records.QUESTIONS, preserve_index=False)
        records.write_table(set_path(name), table)

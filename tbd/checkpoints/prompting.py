"""Questions as prompts of a checkpoint, made in a process of its own: chat template and tokenizer are somebody else's.

That process (`tbd.checkpoints.rendering`) is limited in time and memory, and its environment holds no secrets. One does
some thousand questions; it takes about a second, because it does without torch. Two do the same side by side: what
chance has a part in, or where the process has its memory, comes out otherwise in the other. Whether weights and
configuration fit together is asked of another such process (`tbd.checkpoints.fitting`), which needs torch and takes
some seconds.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from tbd import checkpoints
from tbd.checkpoints import Packed, Prompted
from tbd.errors import InputError, Lacking, TransientFault
from tbd.records import question_id, sha256

TODAY = date(2026, 1, 1)
"""what a template is told that asks for the time, at any time: the same question is the same prompt on every day"""
LOADING, EACH = 30, 3
"""seconds of processor for the tokenizer, and for each question"""
MEMORY = 2 << 30
"""bytes"""
PART = 10_000
"""questions that one process makes prompts of"""
PATIENCE = 600
"""seconds until it counts as stuck, and one more for each question"""
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
"""of the environment"""
OWN = {-number for number in (signal.SIGXCPU, signal.SIGSEGV, signal.SIGABRT)}
"""exit codes of one that ran into a limit, of time, of the stack, of memory; what else ends it comes from outside"""


def prompts(folder: Path, questions: Sequence[str], max_new_tokens: int | None, control_tokens: str) -> Prompted:
    """The questions as prompts; with `max_new_tokens`, checked against the length of the checkpoint's context.

    `control_tokens`: as in `tbd.params.Generate`.

    Raises:
        InputError: tokenizer or template do not work or exceed the limits, or a question cannot be asked.
        TransientFault: the process was ended, or is stuck, or the disk failed.
    """
    frame, odd = "", 0

    def parts() -> Iterator[list[list[int]]]:
        nonlocal frame, odd
        with checkpoints.links(folder) as files:
            for start in range(0, max(1, len(questions)), PART):
                asked = {
                    "folder": str(folder),
                    "files": str(files),
                    "questions": [(question_id(one), one) for one in questions[start : start + PART]],
                    "max_new_tokens": max_new_tokens,
                    "control_tokens": control_tokens,
                    "today": TODAY.isoformat(),
                    "limits": [LOADING, EACH, MEMORY],
                }
                answer = _twice(folder, files, asked)
                frame, odd = answer["frame"], odd + answer["odd"]
                yield answer["prompts"]

    packed = Packed.of(parts())
    return Prompted(packed, frame, odd)


def identity(tokenizer: Any) -> dict[str, str]:
    """What of a loaded tokenizer decides prompts and answers: digests of template and vocabulary, and the date told."""
    template = json.dumps(tokenizer.chat_template)
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    today = {"today": str(TODAY)} if "strftime_now" in template else {}
    return {"template": sha256(template)[:16], "vocabulary": sha256(vocabulary)[:16]} | today


def fits(folder: Path, here: bool = True) -> None:
    """See `tbd.checkpoints.loading.fits`, in a process with limits. Raises as `prompts` does."""
    with checkpoints.links(folder, with_adapter=True) as files:
        _answer("fitting", folder, files, {"files": str(files), "here": here, "limits": [LOADING, MEMORY]})


def _twice(folder: Path, files: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What two processes make of the questions. Raises InputError if it is not the same."""
    with ThreadPoolExecutor(2) as both:
        one, other = both.map(lambda _: _answer("rendering", folder, files, asked), range(2))
    if one != other:
        made = zip(asked["questions"], one["prompts"], other["prompts"], strict=True)
        name = next((question[0] for question, mine, yours in made if mine != yours), "any")
        raise InputError(
            f"{folder}: the chat template makes another prompt of question {name} each time. Take out of it what is "
            "random."
        )
    return one


def _answer(module: str, folder: Path, files: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What that process answers."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    own = {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path),
        "LC_ALL": "C.UTF-8",
        "HOME": str(files),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "critical",
    }
    patience = PATIENCE + len(asked.get("questions", ()))
    try:
        # -P: no code from where it runs
        done = subprocess.run(
            [sys.executable, "-P", "-m", f"tbd.checkpoints.{module}"],
            input=json.dumps(asked).encode(),
            capture_output=True,
            env=kept | own,
            cwd="/",
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        raise TransientFault(f"{folder}: the process that reads it had not ended after {patience} s.") from None
    if done.returncode < 0 and done.returncode not in OWN:
        raise TransientFault(f"{folder}: the process that reads it was ended ({-done.returncode}).")
    if done.returncode < 0:
        raise InputError(
            f"{folder}: configuration, tokenizer and chat template take more than {LOADING} s to load, {EACH} s for a "
            f"question or {MEMORY >> 30} GiB. Mend them there."
        )
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        kind = TransientFault if answer.get("fault") else Lacking if answer.get("lacking") else InputError
        raise kind(answer["error"].replace(str(files), str(folder)))
    return answer

"""The noise floor of a server: how much its numbers differ when the same questions are asked again.

Questions that a server answers side by side are computed together, and in bfloat16 that moves the last digits. So some
questions of the audit are asked a second time, by themselves and in another order.
"""

import random
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd.generation.engines import Completion
from tbd.generation.units import Executor, Job, Unit
from tbd.progress import Progress

QUESTIONS, AMONG = 16, 1000
"""how many are asked again, among how many of each set"""


def measure(executor: Executor, jobs: Sequence[Job], progress: Progress) -> dict[str, Any]:
    """Ask some of the questions of `jobs`, which have run, again; how the answers differ from the first ones."""
    done = [islice(zip(job.prompts, job.completions(), strict=True), AMONG) for job in jobs]
    asked = list(chain.from_iterable(done))
    some = random.Random(0).sample(asked, min(QUESTIONS, len(asked)))
    unit = Unit(tuple(prompt for prompt, _ in some), jobs[0].max_new_tokens)
    progress.plan("read", unit.read)
    progress.plan("written", unit.written)
    ((_, table),) = executor.compute([unit], progress)
    again = [
        Completion(np.array(row["token_ids"], np.int32), np.array(row["logprobs"], np.float32), row["finish_reason"])
        for row in table.to_pylist()
    ]
    progress.spare("written", unit.written - sum(len(one.token_ids) for one in again))
    return compare([first for _, first in some], again)


def compare(first: Sequence[Completion], again: Sequence[Completion]) -> dict[str, Any]:
    """See `tbd.detection.results.Noise`."""
    differences, diverged = apart(first, again)
    known = len(differences) > 0
    return {
        "questions": len(first),
        "diverged": diverged,
        "tokens": len(differences),
        "median": round(float(np.median(differences)), 6) if known else None,
        "largest": round(float(differences.max()), 6) if known else None,
    }


def apart(first: Sequence[Completion], again: Sequence[Completion]) -> tuple[NDArray[np.float32], int]:
    """Absolute differences (nats) of the log-probs of each answer's tokens up to the first that is another one, and how
    many answers have such a token or end elsewhere."""
    differences, diverged = [np.empty(0, np.float32)], 0
    for one, other in zip(first, again, strict=True):
        both = min(len(one.token_ids), len(other.token_ids))
        same = int(np.cumprod(one.token_ids[:both] == other.token_ids[:both]).sum())
        diverged += same < max(len(one.token_ids), len(other.token_ids))
        differences.append(np.abs(one.logprobs[:same] - other.logprobs[:same]))
    return np.concatenate(differences), diverged

"""Answers in two steps: all are begun, and those that score below a cut there stop (see `tbd.detection.cascade`).

The second step reads prompt and beginning and goes on from there, so an answer is one piece: what was scored is its
head. Its batches depend on questions, parameters and the first step's answers alone, so a run that was killed and
started again ends with the same numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice

import numpy as np
from numpy.typing import NDArray

from tbd import records
from tbd.checkpoints import Packed, Prompt
from tbd.detection.cascade import stops
from tbd.detection.results import Cascade
from tbd.generation.engines import Completion
from tbd.generation.units import Executor, Job
from tbd.progress import Progress
from tbd.scores.methods import parse
from tbd.scores.tokens import Tokens, pad


@dataclass(frozen=True)
class TwoSteps:
    """Greedy answers, read as those of a `Job`."""

    first: Job
    rest: Job
    """of those that go on, whose prompts end with the first step's answers"""
    goes_on: NDArray[np.bool_]
    """(n,)"""

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.first.prompts

    def completions(self) -> Iterator[Completion]:
        """The answers in the order of the prompts. `finish_reason` is `cut` for one that was not written to its end."""
        rest = self.rest.completions()
        for one, goes_on in zip(self.first.completions(), self.goes_on, strict=True):
            if goes_on:
                more = next(rest)
                ids = np.concatenate([one.token_ids, more.token_ids])
                yield Completion(ids, np.concatenate([one.logprobs, more.logprobs]), more.finish_reason)
            else:
                yield replace(one, finish_reason="cut") if one.finish_reason == "length" else one


def expected(cascade: Cascade, questions: int, prompts: int, max_new_tokens: int) -> tuple[int, int]:
    """Tokens that the second step reads and writes, if as many answers go on as did of the references' unseen
    questions. `prompts`: tokens of all prompts."""
    return (
        round(cascade.keep * (prompts + questions * cascade.m)),
        round(cascade.keep * questions) * (max_new_tokens - cascade.m),
    )


def answer(first: Job, max_new_tokens: int, cascade: Cascade, executor: Executor, progress: Progress) -> TwoSteps:
    """Compute what is not in the store yet. `first`: answers of `cascade.m` tokens.

    The caller has planned the first step as for any `Job`, and of the second what is `expected`.
    """
    step, method = progress.doing, parse(cascade.id)
    first.run(executor, progress)
    goes_on: list[NDArray[np.bool_]] = []

    def begun() -> Iterator[list[Prompt]]:
        """The prompts of those that go on, with their beginnings; some at a time."""
        pairs = zip(first.prompts, first.completions(), strict=True)
        while some := list(islice(pairs, records.ROWS)):
            scores, _ = method(Tokens(pad([one.logprobs for _, one in some])))
            unfinished = np.array([one.finish_reason == "length" for _, one in some])
            goes_on.append(unfinished & ~stops(scores, cascade.cut))
            yield [(*prompt, *one.token_ids.tolist()) for prompt, one in compress(some, goes_on[-1])]

    again = Packed.of(begun())
    rest = Job(first.shelf, again, first.batch_size, max_new_tokens - cascade.m)
    read, written = expected(cascade, len(first.prompts), sum(map(len, first.prompts)), max_new_tokens)
    progress.plan("read", again.total - read)
    progress.plan("written", len(again) * rest.max_new_tokens - written)
    progress.doing = f"{step}, those that go on"
    rest.run(executor, progress)
    return TwoSteps(first, rest, np.concatenate([np.zeros(0, bool), *goes_on]))

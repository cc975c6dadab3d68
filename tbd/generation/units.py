"""Running an engine over a set of questions: batches, journal, memory.

In bf16 an answer depends on the batch it was computed in. So batches are planned from the questions and parameters
alone, and a finished *batch* is what the journal keeps: a run killed at any moment and started again ends with the
numbers of an undisturbed one, and a set that two audits of one checkpoint share is generated once.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd.checkpoints import Prompt
from tbd.errors import StageFailed
from tbd.generation.engines import Completion, Engine, OutOfMemory, Tick
from tbd.jsonlines import JsonLines
from tbd.locks import locked
from tbd.progress import Progress
from tbd.records import sha256
from tbd.workspace import STATE

JOURNALS = STATE / "journal"


def plan(prompts: Sequence[Prompt], batch_size: int) -> list[list[int]]:
    """Indices of `prompts` in batches of nearly equal size, at most `batch_size`, longest first.

    Longest first, so that a batch that does not fit says so at once; neighbours in length, so that little is padding.

    >>> plan([(1,), (1, 2, 3), (1, 2)], 2)
    [[1, 2], [0]]
    """
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
    batches = math.ceil(len(prompts) / batch_size)
    return [list(map(int, part)) for part in np.array_split(order, batches)]


class Journal:
    """Finished batches, one JSON line each, in an append-only file."""

    def __init__(self, path: Path) -> None:
        """What a kill or a full disk left of a line, and all after it, is dropped."""
        self._lines = JsonLines(path, computed=True)
        self.done: dict[str, Any] = {line["key"]: line["value"] for line in self._lines.values}

    def add(self, key: str, value: Any) -> None:
        self._lines.append({"key": key, "value": value})
        self.done[key] = value


@contextmanager
def journal(identity: dict[str, Any], folder: Path = JOURNALS) -> Iterator[Journal]:
    """The journal of everything generated under this `identity`, held by one process at a time (a second one waits)."""
    path = folder / f"{sha256(json.dumps(identity, sort_keys=True))[:24]}.jsonl"
    with locked(path.with_suffix(".lock")):
        yield Journal(path)


def answer(
    engine: Engine,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
    journal: Journal,
    progress: Progress,
) -> list[Completion]:
    """Greedy answers to `prompts`, in their order.

    Batches already in `journal` are taken from it, new ones added to it.

    `progress` has planned to read every prompt and to write `max_new_tokens` for each.

    Raises:
        StageFailed: a single question does not fit into memory.
    """

    def run(rows: list[int]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        with _taken_back(progress) as tick:
            for position, completion in engine.generate([prompts[row] for row in rows], max_new_tokens, tick):
                found[rows[position]] = [
                    completion.token_ids.tolist(),
                    completion.logprobs.tolist(),
                    completion.finish_reason,
                ]
        for tokens, *_ in found.values():
            progress.spare("written", max_new_tokens - len(tokens))
        return found

    def skip(rows: list[int]) -> None:
        progress.plan("read", -sum(len(prompts[row]) for row in rows))
        progress.plan("written", -max_new_tokens * len(rows))

    def key(rows: list[int]) -> Any:
        return [max_new_tokens, [prompts[row] for row in rows]]

    values = _journalled(plan(prompts, batch_size), run, skip, key, journal, progress)
    return [
        Completion(np.array(tokens, np.int32), np.array(logprobs, np.float32), reason)
        for tokens, logprobs, reason in values
    ]


def rescore(
    engine: Engine,
    prompts: Sequence[Prompt],
    answers: Sequence[NDArray[np.int32]],
    batch_size: int,
    journal: Journal,
    progress: Progress,
) -> list[NDArray[np.float32]]:
    """Log-probs (nats) that `engine`'s model gives to answers another model generated; journalled like `answer`.

    `progress` has planned to read every prompt and its answer.
    """

    def run(rows: list[int]) -> dict[int, Any]:
        with _taken_back(progress) as tick:
            found = engine.logprobs([prompts[row] for row in rows], [answers[row] for row in rows], tick)
        return {row: logprobs.tolist() for row, logprobs in zip(rows, found, strict=True)}

    def skip(rows: list[int]) -> None:
        progress.plan("read", -sum(len(prompts[row]) + len(answers[row]) for row in rows))

    def key(rows: list[int]) -> Any:
        return ["rescore", [[prompts[row], answers[row].tolist()] for row in rows]]

    batches = plan([(*p, *a.tolist()) for p, a in zip(prompts, answers, strict=True)], batch_size)
    return [np.array(logprobs, np.float32) for logprobs in _journalled(batches, run, skip, key, journal, progress)]


@contextmanager
def _taken_back(progress: Progress) -> Iterator[Tick]:
    """What an engine calls as it works; where memory runs out, what it had done is still to do."""
    done = {"read": 0, "written": 0}

    def tick(kind: str, tokens: int) -> None:
        done[kind] += tokens
        progress.advance(kind, tokens)

    try:
        yield tick
    except OutOfMemory:
        for kind, tokens in done.items():
            if tokens:
                progress.advance(kind, -tokens)
        raise


def _journalled(
    batches: list[list[int]],
    run: Callable[[list[int]], dict[int, Any]],
    skip: Callable[[list[int]], None],
    key: Callable[[list[int]], Any],
    journal: Journal,
    progress: Progress,
) -> list[Any]:
    """The value of every row, in row order: from the journal if its batch is finished, else from `run`.

    `skip` takes a batch that is in the journal out of what is planned.
    """
    step = progress.doing
    names = [sha256(json.dumps(key(batch))) for batch in batches]
    total, known = sum(map(len, batches)), 0
    for batch, name in zip(batches, names, strict=True):
        if name in journal.done:
            skip(batch)
            known += len(batch)
    if known:
        print(f"{step}: {known} of {total} questions from the journal", flush=True)
    values: dict[int, Any] = {}
    for batch, name in zip(batches, names, strict=True):
        progress.doing = f"{step}, {len(values)} of {total} questions"
        if name not in journal.done:
            found = _in_parts(run, batch)
            journal.add(name, [found[row] for row in batch])
        values.update(zip(batch, journal.done[name], strict=True))
    return [values[row] for row in sorted(values)]


def _in_parts(run: Callable[[list[int]], dict[int, Any]], batch: list[int]) -> dict[int, Any]:
    """Run a batch whole, or in parts of half the size while memory runs out; the results by row.

    The next batch starts whole again: what a batch is computed in must not depend on the ones before it, or a resumed
    run would end with other numbers.
    """
    found: dict[int, Any] = {}
    at, limit = 0, len(batch)
    while at < len(batch):
        rows = batch[at : at + limit]
        full = False
        try:
            part = run(rows)
        except OutOfMemory:
            full = True  # retried outside of this block: the exception holds on to the tensors that did not fit
        if not full:
            found.update(part)
            at += len(rows)
        elif len(rows) == 1:
            raise StageFailed(
                "a single question does not fit into memory: lower generate.max_new_tokens or use another device"
            )
        else:
            limit = math.ceil(len(rows) / 2)
            print(f"out of memory with {len(rows)} questions at once: going on with {limit}", flush=True)
    return found

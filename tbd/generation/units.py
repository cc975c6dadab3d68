"""Running an engine over a set of questions: batches, the journal, and what to do when memory runs out.

In bfloat16 an answer depends on the batch it was computed in. So the batches depend on questions and parameters alone,
and the journal keeps whole *batches*: a run that was killed and started again ends with the same numbers as one that
was not, and a set that two audits of a checkpoint share is answered once.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd.checkpoints import Prompt
from tbd.errors import TransientFault
from tbd.generation.engines import Completion, Engine, OutOfMemory, Tick
from tbd.jsonlines import JsonLines
from tbd.locks import locked
from tbd.progress import Progress
from tbd.records import sha256
from tbd.workspace import STATE

JOURNALS = STATE / "journal"


def plan(prompts: Sequence[Prompt], batch_size: int) -> list[list[int]]:
    """Indices of `prompts` in batches of nearly equal size, at most `batch_size`.

    The longest come first, so that a batch that does not fit shows at once. A batch holds prompts of similar length, so
    that little of it is padding.

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
        """A line that a kill or a full disk cut off is dropped, and all after it."""
        self._lines = JsonLines(path, computed=True)
        self.done: dict[str, Any] = {line["key"]: line["value"] for line in self._lines.values}

    def add(self, key: str, value: Any) -> None:
        self._lines.append({"key": key, "value": value})
        self.done[key] = value


@contextmanager
def journal(identity: dict[str, Any], folder: Path = JOURNALS) -> Iterator[Journal]:
    """The journal of everything generated under this `identity`; a second process that asks for it waits."""
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
    """Greedy answers to `prompts`, in their order. Batches in `journal` are taken from there, new ones are added.

    The caller has planned, in `progress`, to read every prompt and to write `max_new_tokens` for each.

    Raises:
        TransientFault: a single question does not fit into memory.
    """

    def run(rows: list[int]) -> dict[int, Any]:
        with _taken_back(progress) as tick:
            found = dict(engine.generate([prompts[row] for row in rows], max_new_tokens, tick))
        for one in found.values():
            progress.spare("written", max_new_tokens - len(one.token_ids))
        return {
            rows[position]: [one.token_ids.tolist(), one.logprobs.tolist(), one.finish_reason]
            for position, one in found.items()
        }

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
    """Log-probs (nats) that the engine's model gives to the answers of another model, with the journal as in `answer`.

    The caller has planned, in `progress`, to read every prompt and its answer.
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
    """The tick for an engine; if memory runs out, what was reported through it counts as not done."""
    done: Counter[str] = Counter()

    def tick(kind: str, tokens: int) -> None:
        done[kind] += tokens
        progress.advance(kind, tokens)

    try:
        yield tick
    except OutOfMemory:
        for kind, tokens in done.items():
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
    """The value of every row, in row order: from the journal if it has the row's batch, else from `run`.

    `key` is what a batch is found by, `skip` takes a batch that is in the journal out of the plan.
    """
    step = progress.doing
    names = [sha256(json.dumps(key(batch))) for batch in batches]
    total = sum(map(len, batches))
    known = [batch for batch, name in zip(batches, names, strict=True) if name in journal.done]
    for batch in known:
        skip(batch)
    if known:
        print(f"{step}: {sum(map(len, known))} of {total} questions from the journal", flush=True)
    values: dict[int, Any] = {}
    for batch, name in zip(batches, names, strict=True):
        progress.doing = f"{step}, {len(values)} of {total} questions"
        if name not in journal.done:
            found = _in_parts(run, batch)
            journal.add(name, [found[row] for row in batch])
        values.update(zip(batch, journal.done[name], strict=True))
    return [values[row] for row in sorted(values)]


def _in_parts(run: Callable[[list[int]], dict[int, Any]], batch: list[int]) -> dict[int, Any]:
    """Run a batch as a whole, or in parts that are halved whenever memory runs out; the results by row.

    The next batch starts as a whole again: if its parts depended on earlier batches, a run that went on after a kill
    would end with other numbers.
    """
    found: dict[int, Any] = {}
    at, limit = 0, len(batch)
    while at < len(batch):
        rows = batch[at : at + limit]
        try:
            part = run(rows)
        except OutOfMemory:
            part = {}  # tried again outside of this block: the exception keeps the tensors that did not fit alive
        if part:
            found |= part
            at += len(rows)
        elif len(rows) == 1:
            raise TransientFault(
                "a single question does not fit into memory: lower generate.max_new_tokens or use another device"
            )
        else:
            limit = math.ceil(len(rows) / 2)
            print(f"out of memory with {len(rows)} questions at once: going on with {limit}", flush=True)
    return found

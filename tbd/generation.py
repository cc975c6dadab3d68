"""Running an engine over a set of questions: batches, journal, memory, progress.

In bf16 an answer depends on the batch it was computed in. So batches are planned from the questions and parameters alone, and
a finished *batch* is what the journal keeps: a run killed at any moment and started again ends with the numbers of an
undisturbed one, and a set that two audits of one checkpoint share is generated once.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd.engines import Completion, Engine, OutOfMemory, Prompt
from tbd.errors import StageFailed
from tbd.locks import locked
from tbd.records import sha256

JOURNALS = Path(".tbd/journal")

Progress = Callable[[int, int], None]
"""called with (questions finished, tokens generated) since the last call"""


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
    """Finished batches, one JSON line each, in an append-only file; a line cut off by a kill is dropped on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        whole = 0
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self.done[entry["key"]] = entry["value"]
                whole += len(line)
            os.truncate(path, whole)

    def add(self, key: str, value: Any) -> None:
        self.done[key] = value
        with self.path.open("ab") as file:
            file.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def journal(identity: dict[str, Any], folder: Path = JOURNALS) -> Iterator[Journal]:
    """The journal of everything generated under this `identity`, held by one process at a time (a second one waits)."""
    path = folder / f"{sha256(json.dumps(identity, sort_keys=True))[:24]}.jsonl"
    with locked(path.with_suffix(".lock")):
        yield Journal(path)


def answer(
    engine: Engine, prompts: Sequence[Prompt], max_new_tokens: int, batch_size: int, journal: Journal, progress: Progress
) -> list[Completion]:
    """Greedy answers to `prompts`, in their order. Batches already in `journal` are taken from it, new ones added to it.

    Raises:
        StageFailed: a single question does not fit into memory.
    """

    def run(rows: list[int]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        tokens = 0
        try:
            for position, completion in engine.generate([prompts[row] for row in rows], max_new_tokens):
                found[rows[position]] = [completion.token_ids.tolist(), completion.logprobs.tolist(), completion.finish_reason]
                tokens += len(completion.token_ids)
                progress(1, len(completion.token_ids))
        except OutOfMemory:
            progress(-len(found), -tokens)
            raise
        return found

    def key(rows: list[int]) -> Any:
        return [max_new_tokens, [prompts[row] for row in rows]]

    values = _journalled(plan(prompts, batch_size), run, key, journal, progress)
    return [Completion(np.array(tokens, np.int32), np.array(logprobs, np.float32), reason) for tokens, logprobs, reason in values]


def rescore(
    engine: Engine,
    prompts: Sequence[Prompt],
    answers: Sequence[NDArray[np.int32]],
    batch_size: int,
    journal: Journal,
    progress: Progress,
) -> list[NDArray[np.float32]]:
    """Log-probs (nats) that `engine`'s model gives to answers another model generated; journalled like `answer`."""

    def run(rows: list[int]) -> dict[int, Any]:
        found = engine.logprobs([prompts[row] for row in rows], [answers[row] for row in rows])
        progress(len(rows), sum(map(len, found)))
        return {row: logprobs.tolist() for row, logprobs in zip(rows, found, strict=True)}

    def key(rows: list[int]) -> Any:
        return ["rescore", [[prompts[row], answers[row].tolist()] for row in rows]]

    batches = plan([(*p, *a.tolist()) for p, a in zip(prompts, answers, strict=True)], batch_size)
    return [np.array(logprobs, np.float32) for logprobs in _journalled(batches, run, key, journal, progress)]


def _journalled(
    batches: list[list[int]],
    run: Callable[[list[int]], dict[int, Any]],
    key: Callable[[list[int]], Any],
    journal: Journal,
    progress: Progress,
) -> list[Any]:
    """The value of every row, in row order: of a finished batch from the journal, of another from `run`, which gives it by row."""
    values: dict[int, Any] = {}
    for batch in batches:
        name = sha256(json.dumps(key(batch)))
        if name in journal.done:
            progress(len(batch), 0)
        else:
            found = _in_parts(run, batch)
            journal.add(name, [found[row] for row in batch])
        values.update(zip(batch, journal.done[name], strict=True))
    return [values[row] for row in sorted(values)]


def _in_parts(run: Callable[[list[int]], dict[int, Any]], batch: list[int]) -> dict[int, Any]:
    """Run a batch whole, or in parts of half the size while memory runs out; the results by row.

    The next batch starts whole again: what a batch is computed in must not depend on the ones before it, or a resumed run
    would end with other numbers.
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
            raise StageFailed("a single question does not fit into memory: lower generate.max_new_tokens or use another device")
        else:
            limit = math.ceil(len(rows) / 2)
            print(f"out of memory with {len(rows)} questions at once: going on with {limit}", flush=True)
    return found


class Meter:
    """Progress in lines: share done, questions, tokens/s, time left; at most one line every `every` seconds."""

    def __init__(self, what: str, total: int, unit: str = "questions", every: float = 2.0, journalled: bool = True) -> None:
        self.what, self.total, self.unit, self.every, self.journalled = what, total, unit, every, journalled
        self.done = self.tokens = self.resumed = 0
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, tokens: int) -> None:
        self.done += done
        self.tokens += tokens
        if self.journalled and tokens == 0:
            self.resumed += done
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            self.last = now
            print(self.line(now - self.start), flush=True)

    def line(self, seconds: float) -> str:
        share = self.done / max(self.total, 1)
        fresh = self.done - self.resumed
        left = seconds / fresh * (self.total - self.done) if fresh else 0.0
        rate = f", {self.tokens / max(seconds, 1e-9):.0f} tokens/s" if self.tokens else ""
        resumed = f" ({self.resumed} from the journal)" if self.resumed else ""
        clock = f"{int(left) // 60}:{int(left) % 60:02d} left"
        return f"{share:4.0%} {self.what}: {self.done}/{self.total} {self.unit}{resumed}{rate}, {clock}"

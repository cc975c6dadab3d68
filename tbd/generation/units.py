"""From questions to answers: what is computed together, what was computed before, and what to do when memory runs out.

In bfloat16 an answer depends on the batch it was computed in. So the batches depend on questions and parameters alone,
and what is kept is whole *units*, the batches' results: a run that was killed and started again, or that others had a
part in, ends with the same numbers as one that was not, and a set that two audits of a checkpoint share is answered
once. Questions are planned and read back a part at a time, so a long benchmark takes no more memory than a short one.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tbd import records
from tbd.checkpoints import Prompt
from tbd.errors import TransientFault
from tbd.generation.engines import Completion, Engine, OutOfMemory, Tick
from tbd.generation.store import Shelf
from tbd.progress import Progress

PART = 64
"""batches that are planned together"""
RESCORED = pa.schema([("logprobs", pa.list_(pa.float32()))])
ANSWERS = pa.schema([("token_ids", pa.list_(pa.int32())), *RESCORED, ("finish_reason", pa.string())])

Answers = Iterable[NDArray[np.int32]]
"""token ids of each answer; iterated anew each time"""


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


@dataclass(frozen=True)
class Unit:
    """Questions whose answers are computed together."""

    prompts: tuple[Prompt, ...]
    max_new_tokens: int
    """of each answer; 0 where answers are given"""
    answers: tuple[NDArray[np.int32], ...] | None = None
    """of another model, whose tokens' log-probs are wanted"""

    @property
    def name(self) -> str:
        """Digest of prompts and given answers. Not of their length: a shorter answer is the head of a longer one."""
        digest = hashlib.sha256(b"answer" if self.answers is None else b"rescore")
        for tokens in (*self.prompts, *(self.answers or ())):
            digest.update(len(tokens).to_bytes(4, "little") + np.asarray(tokens, "<i4").tobytes())
        return digest.hexdigest()

    @property
    def read(self) -> int:
        """Tokens that are read."""
        return sum(map(len, self.prompts)) + sum(map(len, self.answers or ()))

    @property
    def written(self) -> int:
        """Tokens that are written, at most."""
        return self.max_new_tokens * len(self.prompts)


def compute(engine: Engine, unit: Unit, progress: Progress) -> pa.Table:
    """The answers (token_ids, logprobs, finish_reason) of a unit in the order of its prompts, or logprobs alone.

    Raises:
        TransientFault: a single question does not fit into memory.
    """
    given = unit.answers

    def answer(rows: list[int]) -> dict[int, Any]:
        with _taken_back(progress) as tick:
            found = dict(engine.generate([unit.prompts[row] for row in rows], unit.max_new_tokens, tick))
        return {rows[position]: vars(one) for position, one in found.items()}

    def rescore(rows: list[int]) -> dict[int, Any]:
        assert given is not None
        with _taken_back(progress) as tick:
            found = engine.logprobs([unit.prompts[row] for row in rows], [given[row] for row in rows], tick)
        return {row: {"logprobs": one} for row, one in zip(rows, found, strict=True)}

    found = _in_parts(answer if given is None else rescore, list(range(len(unit.prompts))))
    return pa.Table.from_pylist([found[row] for row in sorted(found)], ANSWERS if given is None else RESCORED)


class Executor(Protocol):
    """Who computes units: the engine in this process, or many elsewhere (see `tbd.generation.executors`)."""

    identity: dict[str, Any]
    """of its engines, see `tbd.generation.engines.Engine`"""
    rescores: bool
    """likewise"""

    def compute(self, units: Iterable[Unit], progress: Progress) -> Iterator[tuple[Unit, pa.Table]]:
        """Every unit with its result, in whatever order they finish; units are taken as there is room for them."""


@dataclass
class Job:
    """Greedy answers to questions, or the log-probs of given answers: computed once, read as often as wanted."""

    shelf: Shelf
    prompts: Sequence[Prompt]
    batch_size: int
    max_new_tokens: int = 0
    answers: Answers | None = None
    """the answers whose log-probs are wanted, one for each prompt"""
    stored: int | None = field(default=None, init=False)
    """questions that were in the store when it was looked; None: not looked yet"""

    def look(self, progress: Progress) -> int:
        """How many questions are in the store. Their work leaves the plan, the first time.

        The caller has planned, in `progress`, to read every prompt (and given answer), and to write `max_new_tokens`
        for each.
        """
        if self.stored is None:
            self.stored = 0
            for rows, unit in self._units():
                if self.shelf.has(unit.name, unit.max_new_tokens):
                    progress.plan("read", -unit.read)
                    progress.plan("written", -unit.written)
                    self.stored += len(rows)
        return self.stored

    def run(self, executor: Executor, progress: Progress) -> None:
        """Compute the units that are not in the store yet, and add each as it ends. Planned as `look` says."""
        step, done = progress.doing, self.look(progress)
        if done:
            print(f"{step}: {done} of {len(self.prompts)} questions from the store", flush=True)
        progress.doing = f"{step}, {done} of {len(self.prompts)} questions"
        for unit, table in executor.compute(self._missing(), progress):
            if unit.answers is None:
                progress.spare("written", unit.written - len(table["token_ids"].combine_chunks().flatten()))
            self.shelf.add(unit.name, unit.max_new_tokens, table)
            done += len(table)
            progress.doing = f"{step}, {done} of {len(self.prompts)} questions"

    def completions(self) -> Iterator[Completion]:
        """The answers in the order of the prompts, after `run`."""
        for row in self._rows():
            tokens, logprobs = (np.asarray(row[key].values) for key in ("token_ids", "logprobs"))
            n, reason = self.max_new_tokens, row["finish_reason"].as_py()
            yield Completion(tokens[:n], logprobs[:n], reason if len(tokens) <= n else "length")

    def logprobs(self) -> Iterator[NDArray[np.float32]]:
        """(n,) nats of each given answer, in the order of the prompts, after `run`."""
        for row in self._rows():
            yield np.asarray(row["logprobs"].values)

    def _rows(self) -> Iterator[dict[str, pa.Scalar]]:
        """A part at a time, put back into order."""
        for units in self._parts():
            part: dict[int, dict[str, pa.Scalar]] = {}
            for rows, unit in units:
                table = self._read(unit)
                if table is None:
                    raise TransientFault(f"{self.shelf.folder}: stored answers that were there are gone.")
                columns = {name: table[name] for name in table.column_names}
                part |= {row: {name: c[i] for name, c in columns.items()} for i, row in enumerate(rows)}
            yield from (part[row] for row in sorted(part))

    def _parts(self) -> Iterator[list[tuple[list[int], Unit]]]:
        """Every part of the questions as its units, with the rows of each in the part."""
        answers = iter(self.answers) if self.answers is not None else None
        size = PART * self.batch_size
        for start in range(0, len(self.prompts), size):
            prompts = list(self.prompts[start : start + size])
            given = None if answers is None else list(islice(answers, len(prompts)))
            whole = prompts if given is None else [(*p, *a.tolist()) for p, a in zip(prompts, given, strict=True)]
            yield [
                (
                    rows,
                    Unit(
                        tuple(prompts[row] for row in rows),
                        self.max_new_tokens,
                        None if given is None else tuple(given[row] for row in rows),
                    ),
                )
                for rows in plan(whole, self.batch_size)
            ]

    def _units(self) -> Iterator[tuple[list[int], Unit]]:
        return chain.from_iterable(self._parts())

    def _missing(self) -> Iterator[Unit]:
        """Those that are not there, or cannot be read or be right, when their turn comes."""
        for _, unit in self._units():
            table = self._read(unit)
            if table is None or not _right(table["logprobs"]):
                yield unit

    def _read(self, unit: Unit) -> pa.Table | None:
        """What is stored of it, if that can be its result: others may have written it."""
        table = self.shelf.read(unit.name, unit.max_new_tokens)
        schema = ANSWERS if unit.answers is None else RESCORED
        if table is None or table.schema != schema or len(table) != len(unit.prompts):
            return None
        lists = [pc.list_flatten(table[name]) for name in schema.names if name != "finish_reason"]
        if any(column.null_count for column in [*table.columns, *lists]):
            return None
        lengths = pc.list_value_length(table["logprobs"]).to_pylist()
        if unit.answers is not None:
            return table if lengths == [len(answer) for answer in unit.answers] else None
        reasons, ids = set(table["finish_reason"].to_pylist()), pc.list_flatten(table["token_ids"])
        if not reasons <= {"stop", "length"} or pc.any(pc.less(ids, 0)).as_py():
            return None
        return table if lengths == pc.list_value_length(table["token_ids"]).to_pylist() else None


def _right(logprobs: pa.ChunkedArray) -> bool:
    """Whether all are finite, and none is above 0. A model that overflows says others, and its stage will say so."""
    values = pc.list_flatten(logprobs).to_numpy()
    return bool((np.isfinite(values) & (values <= records.POSITIVE)).all())


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
                "a single question does not fit into memory. Lower generate.max_new_tokens, or use another device."
            )
        else:
            limit = math.ceil(len(rows) / 2)
            print(f"out of memory with {len(rows)} questions at once: going on with {limit}", flush=True)
    return found

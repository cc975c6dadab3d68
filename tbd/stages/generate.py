"""Stage `generate@A`: the audited checkpoint's greedy answers to its benchmark and unseen questions, token by token.

If the audit names a base model, the same table holds the base's log-probs of these tokens, and a second file the base's
own answers, for the exchangeability check. Without a base that file is empty.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tbd import audits, checkpoints, params, records, stages
from tbd.checkpoints import Packed, Prompted, adapters, served
from tbd.detection.results import Cascade
from tbd.errors import InputError
from tbd.generation import engines, executors, noise, store
from tbd.generation.engines import Engine
from tbd.generation.store import Shelf
from tbd.generation.tokens import needed
from tbd.generation.two_steps import TwoSteps, answer, expected
from tbd.generation.units import Executor, Job
from tbd.progress import Progress
from tbd.workspace import AUDITS, room, set_path

BYTES = 60
"""of a token that is written: in the store, in the table, and in DVC's copy of that"""
REST = 50_000_000
"""bytes that the report, its plots and DVC's copies of them take"""

Answered = Job | TwoSteps
Sets = dict[str, pa.Table]
"""questions by set; prompts are those of one set after the other"""


class Model(NamedTuple):
    """One that answers, and the questions as its prompts."""

    name: str
    """as in audit.yaml"""
    folder: Path
    kind: type[Engine]
    how: params.Generate
    """of its engine"""
    asked: Prompted

    @classmethod
    def of(cls, name: str, pin: str | None, p: params.Generate, questions: list[str]) -> "Model":
        """Needs no weights. Raises InputError for one that is not what was registered, or cannot be asked."""
        folder = checkpoints.pinned(name, pin)
        kind, how = engines.of(folder, p)
        if adapters.is_adapter(folder) and not kind.adapts:
            raise InputError(
                f"{name}: an adapter (LoRA), which engine {p.engine!r} does not add to its base. Set generate.engine: "
                "transformers, or merge the adapter into its base."
            )
        return cls(name, folder, kind, how, kind.prompts(folder, how, questions))


def main(audit: str, progress: Progress) -> None:
    p, steps = needed(audit, params.load())
    entry = audits.get(audit)
    sets = {name: records.read_table(set_path(name), records.QUESTIONS) for name in (entry.benchmark, entry.unseen)}
    progress.begin("reading questions")  # before any weights: a template that fails shows at once
    used = [(Path(one), checkpoints.state(Path(one))) for one in (entry.checkpoint, entry.base) if one is not None]
    texts = [text for table in sets.values() for text in table["question"].to_pylist()]
    longest = len(texts) * p.max_new_tokens
    room(AUDITS / audit, REST + BYTES * longest * (1 if entry.base is None else 3), "its answers and report")
    own = Model.of(entry.checkpoint, entry.checkpoint_fingerprint, p, texts)
    written = plan(sets, own.asked.prompts, p, steps, progress)
    base = Model.of(entry.base, entry.base_fingerprint, p, texts) if entry.base is not None else None
    if base:
        plan(sets, base.asked.prompts, p, steps, progress)
        progress.plan("read", own.asked.prompts.total + written)
    progress.begin(f"loading {own.name}")
    with forgotten_if_changed(own), executors.opened(own.kind, own.folder, own.how) as executor:
        identity = executor.identity
        read, most = (progress.kinds[kind].planned for kind in ("read", "written"))
        auto = " (auto)" if p.dtype == "auto" else ""
        on = f"{identity['device']}, {identity['dtype']}{auto}, engine {identity['engine']}"
        todo = f"{len(texts)} questions, {read:,} tokens to read, {'about' if steps else 'at most'} {most:,} to write"
        print(f"{audit}: {own.name}{f' and {base.name}' if base else ''} on {on}: {todo}", flush=True)
        jobs = prepared(executor, sets, own.asked.prompts, p, steps, progress)
        answers = answered(jobs, executor, p, steps, progress)
        apart = None
        if identity["device"] == "server":  # nobody plans what it computes together
            progress.begin("asking some questions again")
            once = [one.first if isinstance(one, TwoSteps) else one for one in answers]
            apart = noise.measure(executor, once, progress)
        ask_canary_again(own)
    rescored, base_answers, base_identity = None, list[Answered](), dict[str, Any]()
    if base:  # only now: two models at once need not fit
        progress.begin(f"loading {base.name}")
        progress.plan("read", -own.asked.prompts.total - written)
        with forgotten_if_changed(base), executors.opened(base.kind, base.folder, base.how) as executor:
            base_identity = executor.identity
            jobs = prepared(executor, sets, base.asked.prompts, p, steps, progress)
            if base.kind is not own.kind:
                print("whether the base has the same vocabulary is not known: its log-probs are left out", flush=True)
            elif base_identity["vocabulary"] != identity["vocabulary"]:
                print("the base has another vocabulary: its log-probs of these tokens do not exist", flush=True)
            elif not executor.rescores:
                print("the base's engine does not say the log-probs of given tokens: they are left out", flush=True)
            else:
                rescored = rescore(executor, own.asked.prompts, answers, p, progress)
            base_answers = answered(jobs, executor, p, steps, progress, "the base's answers")
            ask_canary_again(base)
    for one, before in used:  # prompts, weights and fingerprint are of the same files
        checkpoints.unchanged(one, before)
    decoding = {
        "decoding": "greedy",
        "end_token": "included",
        "max_new_tokens": p.max_new_tokens,
        "tokens": p.tokens,
        "batch_size": p.batch_size,
        **({"cascade": steps.model_dump(include={"id", "m", "cut"})} if steps else {}),
    }
    around = {"device_asked": p.device, "frame": own.asked.frame, "odd_prompts": own.asked.odd, "noise": apart}
    made = identity | decoding | around | {"base_fingerprint": base_identity.get("fingerprint")}
    out = AUDITS / audit
    write(out / "generations.parquet", rows(sets, answers, rescored), made)
    write(out / "base_generations.parquet", rows(sets, base_answers) if base else iter(()), base_identity | decoding)


@contextmanager
def forgotten_if_changed(model: Model) -> Iterator[None]:
    """Where a model on a server is found to be another one, none of its answers is kept: whose they are is unknown."""
    try:
        yield
    except served.Changed:
        for one in store.kept(model.how.store):
            if one.identity.get("fingerprint") == checkpoints.fingerprint(model.folder):
                store.remove(model.how.store, one.folder)
        raise


def ask_canary_again(model: Model) -> None:
    """Ask a model that is only on a server once more what it was registered with. Raises served.Changed."""
    if served.is_served(model.folder):
        model.kind.open(model.folder, model.how)


def by_set(sets: Sets, prompts: Packed) -> Iterator[tuple[str, Packed]]:
    """The prompts of each set."""
    start = 0
    for name, table in sets.items():
        yield name, prompts[start : start + len(table)]
        start += len(table)


def plan(sets: Sets, prompts: Packed, p: params.Generate, steps: Cascade | None, progress: Progress) -> int:
    """Tell how many tokens a model's answers take; returns how many are written: at most, or about, in two steps."""
    read, written = prompts.total, len(prompts) * (p.max_new_tokens if steps is None else steps.m)
    if steps is not None:
        more = [expected(steps, len(its), its.total, p.max_new_tokens) for _, its in by_set(sets, prompts)]
        read, written = read + sum(one for one, _ in more), written + sum(one for _, one in more)
    progress.plan("read", read)
    progress.plan("written", written)
    return written


def prepared(
    executor: Executor, sets: Sets, prompts: Packed, p: params.Generate, steps: Cascade | None, progress: Progress
) -> dict[str, Job]:
    """The answers to each set, or their first steps, in batches of its own, so that two audits can share them. What is
    in the store leaves the plan at once, so that the time left is of what is left."""
    shelf, most = Shelf(p.store, executor.identity), p.max_new_tokens if steps is None else steps.m
    jobs = {name: Job(shelf, its, p.batch_size, most) for name, its in by_set(sets, prompts)}
    for job in jobs.values():
        job.look(progress)
    return jobs


def answered(
    jobs: dict[str, Job],
    executor: Executor,
    p: params.Generate,
    steps: Cascade | None,
    progress: Progress,
    what: str = "answers",
) -> list[Answered]:
    """The answers to each set, computed."""
    found = list[Answered]()
    for name, job in jobs.items():
        progress.begin(f"{what} to {name}")
        if steps is None:
            job.run(executor, progress)
            found.append(job)
        else:
            found.append(answer(job, p.max_new_tokens, steps, executor, progress))
    return found


class Written:
    """The token ids of all answers of some jobs."""

    def __init__(self, jobs: list[Answered]) -> None:
        self.jobs = jobs

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (one.token_ids for job in self.jobs for one in job.completions())


def rescore(base: Executor, prompts: Packed, answers: list[Answered], p: params.Generate, progress: Progress) -> Job:
    """The base's log-prob of each token the checkpoint wrote, after the checkpoint's prompt."""
    written = Written(answers)
    progress.plan("read", prompts.total + sum(map(len, written)))
    progress.begin("the base's log-probs of the same tokens")
    job = Job(Shelf(p.store, base.identity), prompts, p.batch_size, answers=written)
    job.run(base, progress)
    return job


def rows(sets: Sets, answers: list[Answered], rescored: Job | None = None) -> Iterator[dict[str, Any]]:
    """A row of `records.GENERATIONS` for each question, in the order of the sets."""
    base_logprobs = repeat(None) if rescored is None else rescored.logprobs()
    for (name, table), job in zip(sets.items(), answers, strict=True):
        for identity, prompt, completion in zip(table["question_id"], job.prompts, job.completions(), strict=True):
            yield {
                "set": name,
                "question_id": identity.as_py(),
                "prompt_sha256": records.sha256(",".join(map(str, prompt))),
                "base_logprobs": next(base_logprobs),
                **vars(completion),
            }


def write(path: Path, rows: Iterator[dict[str, Any]], metadata: dict[str, Any]) -> None:
    """Some rows at a time."""
    with records.table_writer(path, records.GENERATIONS, metadata) as table:
        while some := list(islice(rows, records.ROWS)):
            table.write_table(pa.Table.from_pylist(some, records.GENERATIONS))


if __name__ == "__main__":
    stages.run(main, device=True)

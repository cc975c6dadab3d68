"""Stage `generate@A`: the audited checkpoint's greedy answers to its benchmark and unseen questions, token by token.

If the audit names a base model, the same table holds the base's log-probs of these tokens, and a second file the base's
own answers, for the exchangeability check. Without a base that file is empty.
"""

from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tbd import audits, checkpoints, params, records, stages
from tbd.checkpoints import Packed, adapters
from tbd.errors import InputError
from tbd.generation import engines, executors, noise
from tbd.generation.store import Shelf
from tbd.generation.tokens import needed
from tbd.generation.units import Executor, Job
from tbd.progress import Progress
from tbd.workspace import AUDITS, room, set_path

BYTES = 60
"""of a token that is written: in the store, in the table, and in DVC's copy of that"""
REST = 50_000_000
"""bytes that the report, its plots and DVC's copies of them take"""

Sets = dict[str, pa.Table]
"""questions by set; prompts are those of one set after the other"""


def main(audit: str, progress: Progress) -> None:
    p = needed(audit, params.load())
    entry = audits.get(audit)
    sets = {name: records.read_table(set_path(name), records.QUESTIONS) for name in (entry.benchmark, entry.unseen)}
    progress.begin("reading questions")  # before any weights: a template that fails shows at once
    used = [(Path(one), checkpoints.state(Path(one))) for one in (entry.checkpoint, entry.base) if one is not None]
    folder = checkpoints.pinned(entry.checkpoint, entry.checkpoint_fingerprint)
    base_folder = checkpoints.pinned(entry.base, entry.base_fingerprint) if entry.base is not None else None
    kind, how = engines.of(folder, p)
    base_kind, base_how = engines.of(base_folder, p) if base_folder else (kind, how)
    both = (folder, kind), (base_folder, base_kind)
    if any(one and adapters.is_adapter(one) and not its.adapts for one, its in both):
        raise InputError(
            f"{audit}: an adapter (LoRA), which engine {p.engine!r} does not add to its base. Set generate.engine: "
            "transformers, or merge the adapter into its base."
        )
    questions = sum(map(len, sets.values()))
    longest = questions * p.max_new_tokens
    room(AUDITS / audit, REST + BYTES * longest * (3 if base_folder else 1), "its answers and report")
    texts = [text for table in sets.values() for text in table["question"].to_pylist()]
    prompts, frame, odd = kind.prompts(folder, how, texts)
    progress.plan("read", prompts.total)
    progress.plan("written", longest)
    if base_folder:
        base_prompts = base_kind.prompts(base_folder, base_how, texts).prompts
        rescoring = prompts.total + longest
        progress.plan("read", base_prompts.total + rescoring)
        progress.plan("written", longest)
    progress.begin(f"loading {entry.checkpoint}")
    with executors.opened(kind, folder, how) as executor:
        identity = executor.identity
        read, written = (progress.kinds[kind].planned for kind in ("read", "written"))
        auto = " (auto)" if p.dtype == "auto" else ""
        on = f"{identity['device']}, {identity['dtype']}{auto}, engine {identity['engine']}"
        todo = f"{questions} questions, {read:,} tokens to read, at most {written:,} to write"
        print(f"{audit}: {entry.checkpoint}{f' and {entry.base}' if base_folder else ''} on {on}: {todo}", flush=True)
        answers = answered(executor, sets, prompts, p, progress)
        apart = None
        if identity["device"] == "server":  # nobody plans what it computes together
            progress.begin("asking some questions again")
            apart = noise.measure(executor, answers[0], progress)
    rescored, base_answers, base_identity = None, [], {}
    if base_folder:  # only now: two models at once need not fit
        progress.begin(f"loading {entry.base}")
        progress.plan("read", -rescoring)
        with executors.opened(base_kind, base_folder, base_how) as base:
            base_identity = base.identity
            if base_kind is not kind:
                print("whether the base has the same vocabulary is not known: its log-probs are left out", flush=True)
            elif base_identity["vocabulary"] != identity["vocabulary"]:
                print("the base has another vocabulary: its log-probs of these tokens do not exist", flush=True)
            elif not base.rescores:
                print("the base's engine does not say the log-probs of given tokens: they are left out", flush=True)
            else:
                rescored = rescore(base, prompts, answers, p, progress)
            base_answers = answered(base, sets, base_prompts, p, progress, "the base's answers")
    decoding = {
        "decoding": "greedy",
        "end_token": "included",
        "max_new_tokens": p.max_new_tokens,
        "tokens": p.tokens,
        "batch_size": p.batch_size,
    }
    for one, before in used:  # prompts, weights and fingerprint are of the same files
        checkpoints.unchanged(one, before)
    around = {"device_asked": p.device, "frame": frame, "odd_prompts": odd, "noise": apart}
    out, made = AUDITS / audit, identity | decoding | around
    made["base_fingerprint"] = base_identity.get("fingerprint")
    write(out / "generations.parquet", rows(sets, answers, rescored), made)
    base_rows = rows(sets, base_answers) if base_folder else iter(())
    write(out / "base_generations.parquet", base_rows, base_identity | decoding)


def answered(
    executor: Executor, sets: Sets, prompts: Packed, p: params.Generate, progress: Progress, what: str = "answers"
) -> list[Job]:
    """The answers to each set, which has batches of its own, so that two audits can share them."""
    shelf, jobs, start = Shelf(p.store, executor.identity), list[Job](), 0
    for name, table in sets.items():
        progress.begin(f"{what} to {name}")
        jobs.append(Job(shelf, prompts[start : start + len(table)], p.batch_size, p.max_new_tokens))
        jobs[-1].run(executor, progress)
        start += len(table)
    return jobs


class Written:
    """The token ids of all answers of some jobs."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (one.token_ids for job in self.jobs for one in job.completions())


def rescore(base: Executor, prompts: Packed, answers: list[Job], p: params.Generate, progress: Progress) -> Job:
    """The base's log-prob of each token the checkpoint wrote, after the checkpoint's prompt."""
    written = Written(answers)
    progress.plan("read", prompts.total + sum(map(len, written)))
    progress.begin("the base's log-probs of the same tokens")
    job = Job(Shelf(p.store, base.identity), prompts, p.batch_size, answers=written)
    job.run(base, progress)
    return job


def rows(sets: Sets, answers: list[Job], rescored: Job | None = None) -> Iterator[dict[str, Any]]:
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

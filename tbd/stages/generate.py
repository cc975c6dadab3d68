"""Stage `generate@A`: the audited checkpoint's greedy answers to its benchmark and unseen questions, token by token.

Where the audit names a base model, the base's log-probs of the same tokens stand beside them, and the base's own
answers, for the exchangeability check, in a file of their own (empty without a base).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tbd import audits, checkpoints, params, records, stages
from tbd.checkpoints import Prompt
from tbd.generation import engines, units
from tbd.generation.engines import Engine
from tbd.progress import Progress
from tbd.workspace import AUDITS, set_path

Prompts = dict[str, list[Prompt]]
"""by question set"""


def main(audit: str, progress: Progress) -> None:
    p = params.load().generate
    kind = engines.find(p.engine)
    entry = audits.get(audit)
    sets = {name: records.read_table(set_path(name), records.QUESTIONS) for name in (entry.benchmark, entry.unseen)}
    progress.begin("reading questions")  # before any weights: a template that does not work is told at once
    folder = checkpoints.pinned(entry.checkpoint, entry.checkpoint_fingerprint)
    base_folder = checkpoints.pinned(entry.base, entry.base_fingerprint) if entry.base is not None else None
    prompts = rendered(kind.prompter(folder, p), sets)
    plan_answers(prompts, p, progress)
    if base_folder:
        base_prompts = rendered(kind.prompter(base_folder, p), sets)
        plan_answers(base_prompts, p, progress)
        rescoring = tokens(prompts) + count(prompts) * p.max_new_tokens
        progress.plan("read", rescoring)
    progress.begin(f"loading {entry.checkpoint}")
    engine = kind.open(folder, p)
    identity = engine.identity
    read, written = (progress.kinds[kind].planned for kind in ("read", "written"))
    how = f"{identity['device']}, {identity['dtype']}{' (auto)' if p.dtype == 'auto' else ''}, engine {p.engine}"
    todo = f"{count(prompts)} questions, {read:,} tokens to read, at most {written:,} to write"
    print(f"{audit}: {entry.checkpoint}{f' and {entry.base}' if base_folder else ''} on {how}: {todo}", flush=True)
    rows = answers(engine, prompts, sets, p, progress)
    base_rows: list[dict[str, Any]] = []
    base_identity = None
    if base_folder:
        del engine  # two models at once need not fit
        progress.begin(f"loading {entry.base}")
        base = kind.open(base_folder, p)
        base_identity = base.identity
        progress.plan("read", -rescoring)
        if base_identity["vocabulary"] == identity["vocabulary"]:
            add_base_logprobs(base, rows, prompts, p, progress)
        else:
            print("the base has another vocabulary: its log-probs of these tokens do not exist", flush=True)
        base_rows = answers(base, base_prompts, sets, p, progress, "the base's answers")
    decoding = {
        "decoding": "greedy",
        "end_token": "included",
        "max_new_tokens": p.max_new_tokens,
        "batch_size": p.batch_size,
    }
    base_fingerprint = base_identity["fingerprint"] if base_identity else None
    out = AUDITS / audit
    write(out / "generations.parquet", rows, {**identity, **decoding, "base_fingerprint": base_fingerprint})
    write(out / "base_generations.parquet", base_rows, {**(base_identity or {}), **decoding})


def rendered(prompt: Callable[[str], Prompt], sets: dict[str, pa.Table]) -> Prompts:
    """The questions of every set as prompts."""
    return {name: [prompt(question) for question in table["question"].to_pylist()] for name, table in sets.items()}


def count(prompts: Prompts) -> int:
    return sum(map(len, prompts.values()))


def tokens(prompts: Prompts) -> int:
    return sum(len(prompt) for some in prompts.values() for prompt in some)


def plan_answers(prompts: Prompts, p: params.Generate, progress: Progress) -> None:
    progress.plan("read", tokens(prompts))
    progress.plan("written", count(prompts) * p.max_new_tokens)


def answers(
    engine: Engine,
    prompts: Prompts,
    sets: dict[str, pa.Table],
    p: params.Generate,
    progress: Progress,
    what: str = "answers",
) -> list[dict[str, Any]]:
    """One row of `records.GENERATIONS` a question, sets in order.

    Each set is planned by itself, so that audits can share it.
    """
    rows = []
    with units.journal(engine.identity) as journal:
        for name, table in sets.items():
            progress.begin(f"{what} to {name}")
            found = units.answer(engine, prompts[name], p.max_new_tokens, p.batch_size, journal, progress)
            for identity, prompt, completion in zip(
                table["question_id"].to_pylist(), prompts[name], found, strict=True
            ):
                rows.append(
                    {
                        "set": name,
                        "question_id": identity,
                        "prompt_sha256": records.sha256(",".join(map(str, prompt))),
                        "token_ids": completion.token_ids,
                        "logprobs": completion.logprobs,
                        "base_logprobs": None,
                        "finish_reason": completion.finish_reason,
                    }
                )
    return rows


def add_base_logprobs(
    base: Engine, rows: list[dict[str, Any]], prompts: Prompts, p: params.Generate, progress: Progress
) -> None:
    """Fill `base_logprobs`: what the base gives to each token the checkpoint wrote, after the checkpoint's prompt."""
    written = [row["token_ids"] for row in rows]
    progress.plan("read", tokens(prompts) + sum(map(len, written)))
    progress.begin("the base's log-probs of the same tokens")
    with units.journal(base.identity) as journal:
        everything = [prompt for some in prompts.values() for prompt in some]
        scored = units.rescore(base, everything, written, p.batch_size, journal, progress)
    for row, logprobs in zip(rows, scored, strict=True):
        row["base_logprobs"] = logprobs


def write(path: Path, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
    records.write_table(path, pa.Table.from_pylist(rows, records.GENERATIONS), metadata)


if __name__ == "__main__":
    stages.run(main, device=True)

"""Stage `generate@A`: the audited checkpoint's greedy answers to its benchmark and unseen questions, token by token.

Where the audit names a base model, the base's log-probs of the same tokens stand beside them, and the base's own answers, for the
exchangeability check, in a file of their own (empty without a base).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tbd import engines, generation, params, records, register, stages
from tbd.engines import Engine


def main(audit: str) -> None:
    p = params.load().generate
    entry = register.get(audit)
    sets = {name: records.read_table(register.set_path(name), records.QUESTIONS) for name in (entry.benchmark, entry.unseen)}
    out = Path("audits") / audit
    engine = engines.load(register.folder(entry.checkpoint, entry.checkpoint_fingerprint), p)
    print(f"{audit}: {entry.checkpoint} on {engine.identity['device']}, {p.dtype}, engine {p.engine}", flush=True)
    rows = answers(engine, sets, p, audit)
    base_rows: list[dict[str, Any]] = []
    base_identity = None
    if entry.base is not None:
        prompts = [engine.prompt(question) for table in sets.values() for question in table["question"].to_pylist()]
        identity = engine.identity
        del engine  # two models at once need not fit
        base = engines.load(register.folder(entry.base, entry.base_fingerprint), p)
        base_identity = base.identity
        if base.identity["vocabulary"] == identity["vocabulary"]:
            add_base_logprobs(base, rows, prompts, p, audit)
        else:
            print("the base has another vocabulary: its log-probs of these tokens do not exist", flush=True)
        base_rows = answers(base, sets, p, f"{audit}, base")
    else:
        identity = engine.identity
    decoding = {"decoding": "greedy", "end_token": "included", "max_new_tokens": p.max_new_tokens, "batch_size": p.batch_size}
    base_fingerprint = base_identity["fingerprint"] if base_identity else None
    write(out / "generations.parquet", rows, {**identity, **decoding, "base_fingerprint": base_fingerprint})
    write(out / "base_generations.parquet", base_rows, {**(base_identity or {}), **decoding})


def answers(engine: Engine, sets: dict[str, pa.Table], p: params.Generate, what: str) -> list[dict[str, Any]]:
    """One row of `records.GENERATIONS` a question, sets in order. Each set is planned by itself, so that audits can share it."""
    rows = []
    with generation.journal(engine.identity) as journal:
        for name, table in sets.items():
            prompts = [engine.prompt(question) for question in table["question"].to_pylist()]
            meter = generation.Meter(f"{what}: {name}", len(prompts))
            found = generation.answer(engine, prompts, p.max_new_tokens, p.batch_size, journal, meter)
            for identity, prompt, completion in zip(table["question_id"].to_pylist(), prompts, found, strict=True):
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
    base: Engine, rows: list[dict[str, Any]], prompts: Sequence[engines.Prompt], p: params.Generate, what: str
) -> None:
    """Fill `base_logprobs`: what the base gives to each token the checkpoint generated, after the checkpoint's own prompt."""
    tokens = [row["token_ids"] for row in rows]
    meter = generation.Meter(f"{what}: base log-probs", len(rows))
    with generation.journal(base.identity) as journal:
        scored = generation.rescore(base, prompts, tokens, p.batch_size, journal, meter)
    for row, logprobs in zip(rows, scored, strict=True):
        row["base_logprobs"] = logprobs


def write(path: Path, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
    records.write_table(path, pa.Table.from_pylist(rows, records.GENERATIONS), metadata)


if __name__ == "__main__":
    stages.run(main, device=True)

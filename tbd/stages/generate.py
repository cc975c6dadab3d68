"""Stage `generate@A`: the audited checkpoint's greedy answers to its benchmark and unseen questions, token by token.

If the audit names a base model, the same table holds the base's log-probs of these tokens, and a second file the base's
own answers, for the exchangeability check. Without a base that file is empty.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tbd import audits, checkpoints, params, records, stages
from tbd.checkpoints import Prompt
from tbd.generation import engines, units
from tbd.generation.engines import Engine
from tbd.progress import Progress
from tbd.workspace import AUDITS, room, set_path

BYTES = 60
"""of a token that is written: in the journal, in the table, and in DVC's copy of that"""
REST = 50_000_000
"""bytes that the report, its plots and DVC's copies of them take"""

Prompts = dict[str, list[Prompt]]
"""by question set"""


def main(audit: str, progress: Progress) -> None:
    p = params.load().generate
    kind = engines.find(p.engine)
    entry = audits.get(audit)
    sets = {name: records.read_table(set_path(name), records.QUESTIONS) for name in (entry.benchmark, entry.unseen)}
    progress.begin("reading questions")  # before any weights: a template that fails shows at once
    used = [(Path(one), checkpoints.state(Path(one))) for one in (entry.checkpoint, entry.base) if one is not None]
    folder = checkpoints.pinned(entry.checkpoint, entry.checkpoint_fingerprint)
    base_folder = checkpoints.pinned(entry.base, entry.base_fingerprint) if entry.base is not None else None
    questions = sum(map(len, sets.values()))
    longest = questions * p.max_new_tokens
    room(AUDITS / audit, REST + BYTES * longest * (3 if base_folder else 1), "its answers and report")
    prompts, around = rendered(kind, folder, p, sets)
    progress.plan("read", tokens(prompts))
    progress.plan("written", longest)
    if base_folder:
        base_prompts, _ = rendered(kind, base_folder, p, sets)
        rescoring = tokens(prompts) + longest
        progress.plan("read", tokens(base_prompts) + rescoring)
        progress.plan("written", longest)
    progress.begin(f"loading {entry.checkpoint}")
    engine = kind.open(folder, p)
    identity = engine.identity
    read, written = (progress.kinds[kind].planned for kind in ("read", "written"))
    how = f"{identity['device']}, {identity['dtype']}{' (auto)' if p.dtype == 'auto' else ''}, engine {p.engine}"
    todo = f"{questions} questions, {read:,} tokens to read, at most {written:,} to write"
    print(f"{audit}: {entry.checkpoint}{f' and {entry.base}' if base_folder else ''} on {how}: {todo}", flush=True)
    rows = answers(engine, prompts, sets, p, progress)
    base_rows: list[dict[str, Any]] = []
    base_identity: dict[str, Any] = {}
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
    for one, before in used:  # prompts, weights and fingerprint are of the same files
        checkpoints.unchanged(one, before)
    out, made = AUDITS / audit, identity | decoding | around | {"device_asked": p.device}
    made["base_fingerprint"] = base_identity.get("fingerprint")
    write(out / "generations.parquet", rows, made)
    write(out / "base_generations.parquet", base_rows, base_identity | decoding)


def rendered(
    kind: type[Engine], folder: Path, p: params.Generate, sets: dict[str, pa.Table]
) -> tuple[Prompts, dict[str, Any]]:
    """The questions of every set as prompts, all made at once, and what the table says of them."""
    made = kind.prompts(folder, p, [text for table in sets.values() for text in table["question"].to_pylist()])
    prompts = iter(made.prompts)
    by_set = {name: list(islice(prompts, len(table))) for name, table in sets.items()}
    return by_set, {"frame": made.frame, "odd_prompts": made.odd}


def tokens(prompts: Prompts) -> int:
    return sum(len(prompt) for some in prompts.values() for prompt in some)


def answers(
    engine: Engine,
    prompts: Prompts,
    sets: dict[str, pa.Table],
    p: params.Generate,
    progress: Progress,
    what: str = "answers",
) -> list[dict[str, Any]]:
    """A row of `records.GENERATIONS` for each question, in the order of the sets.

    Each set has batches of its own, so that two audits can share its answers.
    """
    rows: list[dict[str, Any]] = []
    with units.journal(engine.identity) as journal:
        for name, table in sets.items():
            progress.begin(f"{what} to {name}")
            found = units.answer(engine, prompts[name], p.max_new_tokens, p.batch_size, journal, progress)
            ids = table["question_id"].to_pylist()
            rows += [
                {
                    "set": name,
                    "question_id": identity,
                    "prompt_sha256": records.sha256(",".join(map(str, prompt))),
                    "base_logprobs": None,
                    **vars(completion),
                }
                for identity, prompt, completion in zip(ids, prompts[name], found, strict=True)
            ]
    return rows


def add_base_logprobs(
    base: Engine, rows: list[dict[str, Any]], prompts: Prompts, p: params.Generate, progress: Progress
) -> None:
    """Fill `base_logprobs`: the base's log-prob of each token the checkpoint wrote, after the checkpoint's prompt."""
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

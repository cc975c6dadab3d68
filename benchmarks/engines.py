"""The same questions through `transformers` and through a server that tbd starts: log-probs, answers and scores.

    python -m benchmarks.engines CHECKPOINT QUESTIONS.parquet \\
        --command "/path/to/vllm serve {checkpoint} --port {port} --dtype {dtype} --generation-config vllm"

Each is compared with `transformers` in float32: log-probs up to where an answer diverges, scores of whole answers.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from tbd import records
from tbd.generation import engines, noise, units
from tbd.generation.engines import Completion, Engine
from tbd.params import Generate, Server
from tbd.scores import expand
from tbd.scores.tokens import Tokens, pad

RUNS = (("transformers", "float32"), ("transformers", "bfloat16"), ("openai", "float32"), ("openai", "bfloat16"))


def answers(engine: Engine, prompts: list[tuple[int, ...]], p: Generate) -> tuple[list[Completion], float]:
    """In the order of `prompts`, and tokens a second; a server gets everything at once."""
    start = time.perf_counter()
    found: dict[int, Completion] = {}
    plan = units.plan(prompts, p.batch_size) if engine.at_once == 1 else [list(range(len(prompts)))]
    for rows in plan:
        found |= {rows[at]: one for at, one in engine.generate([prompts[row] for row in rows], p.max_new_tokens)}
    tokens = sum(len(one.token_ids) for one in found.values())
    return [found[row] for row in range(len(prompts))], tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("questions", type=Path, nargs="+")
    parser.add_argument("--command", required=True, help="starts the server, with {checkpoint}, {port} and {dtype}")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, at most; default: 32")
    options = parser.parse_args()
    tables = [records.read_table(path, records.QUESTIONS) for path in options.questions]
    texts = list(dict.fromkeys(text for table in tables for text in table["question"].to_pylist()))
    (method,) = expand({"tbd": {"m": options.tokens, "tau": 1.0, "alpha": 0.6, "normalise": "kept"}})
    print(f"{len(texts)} questions, at most {options.tokens} tokens each")
    first: list[Completion] = []
    for name, dtype in RUNS:
        server = Server(command=options.command if name == "openai" else None)
        p = Generate(
            engine=name, device="cpu", dtype=dtype, max_new_tokens=options.tokens, batch_size=32, server=server
        )  # type: ignore[arg-type]
        kind = engines.find(name)
        prompts = list(kind.prompts(options.checkpoint, p, texts).prompts)
        engine = kind.open(options.checkpoint, p)
        found, speed = answers(engine, prompts, p)
        first = first or found
        apart, diverged = noise.apart(first, found)
        scores = [method(Tokens(pad([one.logprobs for one in some])))[0] for some in (first, found)]
        rank = np.corrcoef(*(np.argsort(np.argsort(one)) for one in scores))[0, 1]
        print(
            f"{name}, {engine.identity['engine_version']}, {dtype}: {speed:.0f} tokens/s; {diverged} answers "
            f"diverge; log-probs differ by {apart.mean():.2g} on average, {apart.max():.2g} at most; scores by "
            f"{np.nanmax(abs(scores[0] - scores[1])):.2g} at most, rank correlation {rank:.4f}"
        )
        if engine.rescores:
            given = engine.logprobs(prompts, [one.token_ids for one in found])
            largest = max(abs(one.logprobs - other).max() for one, other in zip(found, given, strict=True))
            print(f"    its own answers, given to it: log-probs differ by {largest:.2g} at most")
        if name == "openai":
            again = dict(engine.generate(prompts[::-1], options.tokens))
            other = noise.compare(found, [again[place] for place in reversed(range(len(prompts)))])
            print(f"    asked again, in another order: {other}", flush=True)
        del engine


if __name__ == "__main__":
    main()

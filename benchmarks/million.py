"""What an audit of a million questions takes after its answers are there: `python -m benchmarks.million`.

Writes an audit of synthetic answers (half of them to the benchmark, half to unseen questions; a tenth of the benchmark
scores as if it had leaked) and a small labelled reference, and runs the real stages `score` and `verdict`, each in a
process of its own. Prints seconds, answers a second, and the peak of memory above what the process had after its
imports.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import yaml

from tbd import records
from tbd.audits import Audit, write
from tbd.workspace import AUDITS, set_path

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 300
METHODS = {
    "tbd": {"m": [100, 300], "normalise": ["kept", "all"]},
    "mean_logprob": {"m": 300},
    "min_k": {"m": 300},
    "lowest_token": {"m": 300},
    "logprob_ratio": {"m": 300},
}
MADE = {
    **{"engine": "synthetic", "engine_version": "0", "torch_version": "0", "dtype": "float32", "device": "cpu"},
    **{"device_asked": "cpu", "decoding": "greedy", "end_token": "included", "max_new_tokens": TOKENS, "tokens": "all"},
    **{
        "batch_size": 64,
        "frame": "",
        "odd_prompts": 0,
        "template": "",
        "base_fingerprint": "0" * 64,
        "vocabulary": "0" * 64,
    },
}
MEASURED = """
import importlib, psutil, resource, sys
stage = importlib.import_module(f"tbd.stages.{sys.argv[1]}")
start = psutil.Process().memory_info().rss
stage.main(*sys.argv[2:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start)
"""


def audit(name: str, sizes: dict[str, int], base: bool, labels: bool, rng: np.random.Generator) -> None:
    """An audit's folder: its question sets and its answers."""
    asked, new = sizes
    leaked = {asked: rng.random(sizes[asked]) < (0.5 if labels else 0.1), new: np.zeros(sizes[new], bool)}
    for one, n in sizes.items():
        with records.table_writer(set_path(one), records.QUESTIONS, {}) as table:
            for first in range(0, n, records.ROWS):
                table.write_table(questions(one, np.arange(first, min(n, first + records.ROWS)), leaked[one], labels))
    folder = "checkpoints/synthetic"
    write(name, Audit(checkpoint=folder, base=folder if base else None, benchmark=asked, unseen=new, fpr=None,
                      checkpoint_fingerprint=None, base_fingerprint=None))  # fmt: skip
    made = MADE | {"fingerprint": records.sha256(name)}
    for file, own in (("generations", True), ("base_generations", False)):
        with records.table_writer(AUDITS / name / f"{file}.parquet", records.GENERATIONS, made) as table:
            for one, n in sizes.items() if own or base else ():
                for first in range(0, n, records.ROWS):
                    rows = np.arange(first, min(n, first + records.ROWS))
                    table.write_table(answers(one, rows, leaked[one][rows] & own, own and base, rng))


def text(name: str, row: int) -> str:
    return f"{name}: what is {row} plus {row * 7919 % 1_000_003}?"


def questions(name: str, rows: np.ndarray, leaked: np.ndarray, labels: bool) -> pa.Table:
    texts = [text(name, row) for row in rows.tolist()]
    columns = {
        "question_id": [records.question_id(one) for one in texts],
        "question": texts,
        "reasoning": pa.nulls(len(rows), pa.string()),
        "answer": pa.nulls(len(rows), pa.string()),
        "label": leaked[rows].astype(np.int8) if labels else pa.nulls(len(rows), pa.int8()),
        "source": [f"{name}:{row}" for row in rows.tolist()],
    }
    return pa.table(columns, schema=records.QUESTIONS)


def answers(name: str, rows: np.ndarray, leaked: np.ndarray, base: bool, rng: np.random.Generator) -> pa.Table:
    """Log-probs that differ from answer to answer, nearer to 0 where the question leaked."""
    n, scale = len(rows), rng.gamma(4, 0.1, len(rows)) * np.where(leaked, 0.4, 1)
    ends = pa.array(np.arange(0, (n + 1) * TOKENS, TOKENS), pa.int32())

    def lists(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(ends, values.ravel())

    def logprobs(scale: np.ndarray) -> pa.ListArray:
        return lists(-rng.standard_exponential((n, TOKENS), np.float32) * scale[:, None].astype(np.float32))

    ids = [records.question_id(text(name, row)) for row in rows.tolist()]
    columns = {
        "set": pa.repeat(name, n),
        "question_id": ids,
        "prompt_sha256": [records.sha256(one) for one in ids],
        "token_ids": lists(rng.integers(0, 50_000, (n, TOKENS), np.int32)),
        "logprobs": logprobs(scale),
        "base_logprobs": logprobs(rng.gamma(4, 0.1, n)) if base else pa.nulls(n, pa.list_(pa.float32())),
        "finish_reason": pa.repeat("length", n),
    }
    return pa.table(columns, schema=records.GENERATIONS)


def run(stage: str, *arguments: str) -> tuple[float, int]:
    """Seconds, and bytes above the start."""
    began = time.perf_counter()
    command = [sys.executable, "-c", MEASURED, stage, *arguments]
    out = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, text=True, stdout=subprocess.PIPE
    )
    return time.perf_counter() - began, int(out.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--base", action="store_true", help="log-probs of a base too, and as many answers of its own")
    parser.add_argument("--validate", action="store_true", help="the question sets too")
    options = parser.parse_args()
    n = options.answers // 2
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        p = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
        p["score"], p["calibrate"]["references"] = {"methods": METHODS}, ["small"]
        Path("params.yaml").write_text(yaml.safe_dump(p))
        shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
        rng = np.random.default_rng(0)
        audit("small", {"known": 128, "fresh": 100}, True, True, rng)
        run("score", "small")
        run("calibrate")
        audit("large", {"asked": n, "new": options.answers - n}, options.base, False, rng)
        stored = sum(file.stat().st_size for file in Path("audits/large").glob("*generations.parquet"))
        kind = f"{platform.machine()}, {psutil.cpu_count()} cores"
        print(f"{options.answers:,} answers of {TOKENS} tokens, {stored / 1e9:.2f} GB; {kind}", flush=True)
        for stage in (["validate"] if options.validate else []) + ["score", "verdict"]:
            seconds, peak = run(stage, "large")
            rate = f"{options.answers / seconds:,.0f} answers/s"
            print(f"{stage}: {seconds:.0f} s, {rate}, {peak / 2**30:.2f} GiB above the start", flush=True)
        found = json.loads(Path("audits/large/verdict.json").read_text("utf-8"))
        print({key: found[key] for key in ("verdict", "p_value", "share_at_least", "contamination_rate", "flagged")})
        sizes = {file.name: file.stat().st_size for file in Path("audits/large").iterdir() if file.is_file()}
        print("bytes:", sizes)


if __name__ == "__main__":
    main()

"""Generation, side by side: `make bench`, after `make demo`; `make bench VLLM=/path/to/its/python` with vLLM beside it.

The same questions and checkpoint (half of them of the benchmark, half unseen) through the plain script, each engine of
tbd, and vLLM's own offline loop: in turn, each time in a process of its own, so that what counts is ratios within a
round. The plain script is what one would write first: `model.generate(output_scores=True)`, batch 16, left padding.

Writes docs/bench/MACHINE.json, and from all such files docs/bench.md and docs/bench.png, which say what is counted.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import psutil
import torch
import transformers

from benchmarks import bench_page, offline, roofline
from tbd import environment, params, records
from tbd.checkpoints import Prompt
from tbd.checkpoints.loading import choose_device, choose_dtype, load_model, load_tokenizer
from tbd.detection.decisions import conformal_p_values
from tbd.generation import engines, noise, units
from tbd.generation.engines import Completion, Engine, Tick, unheard
from tbd.generation.engines import transformers as engine_module
from tbd.generation.engines.openai import end_started
from tbd.generation.engines.transformers import TransformersEngine
from tbd.params import Generate, Server
from tbd.scores import expand
from tbd.scores.tokens import Tokens, pad
from tbd.workspace import set_path

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = Path("checkpoints/reference")
PLAIN_BATCH = 16
PLAIN, OURS, APART = "plain script", "transformers", "transformers, each prompt read whole"
SERVER, OFFLINE = "openai (vLLM)", "vLLM offline"


@dataclass(frozen=True)
class Work:
    """What is asked, and of whom."""

    checkpoint: Path
    prompts: list[Prompt]
    """first those of the benchmark, then as many unseen ones"""
    generate: Generate
    fpr: float
    vllm: str | None
    """the Python that has vLLM"""


class Run(NamedTuple):
    """One way through all questions."""

    answers: list[Completion]
    version: str
    loading: float
    """seconds until the model is loaded and, where there is one, the server answers"""
    seconds: float
    """from prompts to answers"""
    verdict: float
    """from prompts to a p-value for every question of the benchmark"""
    loaded: int
    """bytes once loaded"""
    above: int
    """bytes above that, at most"""

    @property
    def tokens(self) -> int:
        return sum(len(one.token_ids) for one in self.answers)


class Runs(dict[tuple[str, str], list[Run]]):
    """By kind and type, a run a round."""


def work_of(checkpoint: Path, questions: int, tokens: int | None = None, vllm: str | None = None) -> Work:
    """The first questions of the workspace's benchmark and as many unseen ones."""
    p = params.load()
    changed = {"device": choose_device(p.generate.device), "engine": "transformers"}
    g = p.generate.model_copy(update=changed | ({"max_new_tokens": tokens} if tokens else {}))
    tables = [records.read_table(set_path(name), records.QUESTIONS)["question"] for name in ("benchmark", "unseen")]
    texts = [text for table in tables for text in table.to_pylist()[: questions // 2]]
    prompts = list(TransformersEngine.prompts(checkpoint, g, texts).prompts)
    return Work(checkpoint, prompts, g, p.decision.fpr, vllm and str(Path(vllm).with_name("python")))


def plain(model: Any, tokenizer: Any, prompts: list[Prompt], new: int, tick: Tick = unheard) -> list[Completion]:
    """The log-probs of each answer, taken from `output_scores`."""
    found, ends = [], {tokenizer.eos_token_id}
    for start in range(0, len(prompts), PLAIN_BATCH):
        batch = [list(prompt) for prompt in prompts[start : start + PLAIN_BATCH]]
        padded = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt").to(model.device)
        with torch.inference_mode():
            out = model.generate(
                **padded, max_new_tokens=new, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            answers = out.sequences[:, padded["input_ids"].shape[1] :]
            steps = [step.float().log_softmax(-1).gather(1, answers[:, [i]]) for i, step in enumerate(out.scores)]
            logprobs = torch.cat(steps, 1).cpu().numpy()
        for row, own in zip(answers.cpu().numpy(), logprobs, strict=True):
            stops = [place for place, token in enumerate(row) if token in ends]
            n = stops[0] + 1 if stops else len(row)
            found.append(Completion(row[:n].astype(np.int32), own[:n], "stop" if stops else "length"))
        tick("written", sum(len(one.token_ids) for one in found[start:]))
    return found


def ours(engine: Engine, prompts: list[Prompt], p: Generate) -> list[Completion]:
    """In the batches that tbd plans, or everything at once to a server, which makes its own."""
    found: dict[int, Completion] = {}
    for rows in units.plan(prompts, p.batch_size if engine.at_once == 1 else len(prompts)):
        found |= {rows[at]: one for at, one in engine.generate([prompts[row] for row in rows], p.max_new_tokens)}
    return [found[row] for row in range(len(prompts))]


def scores(answers: list[Completion], tokens: int) -> np.ndarray:
    """TBD of each answer."""
    (method,) = expand({"tbd": {"m": tokens, "tau": 1.0, "alpha": 0.6, "normalise": "kept"}})
    found: np.ndarray = method(Tokens(pad([one.logprobs for one in answers])))[0]
    return found


def judge(answers: list[Completion], work: Work) -> np.ndarray:
    """Which questions of the benchmark are flagged."""
    found, half = scores(answers, work.generate.max_new_tokens), len(answers) // 2
    return conformal_p_values(found[:half], found[half:]) <= work.fpr


def run(kind: str, dtype: str, work: Work) -> Run:
    """One way, in this process, which should be new."""
    if kind == OFFLINE:
        return _offline(dtype, work)
    start = time.perf_counter()
    answer, version = opened(kind, dtype, work)
    loading, cuda = time.perf_counter() - start, torch.cuda.is_initialized()
    memory = offline.Memory()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = time.perf_counter()
    with mock.patch.object(engine_module, "_shared", return_value=0) if kind == APART else nullcontext():
        answers = answer()
    seconds = time.perf_counter() - start
    judge(answers, work)
    verdict, loaded, above = time.perf_counter() - start, memory.start, memory.above()
    if cuda:
        loaded, above = held, torch.cuda.max_memory_allocated() - held
    end_started()
    return Run(answers, version, loading, seconds, verdict, loaded, above)


def opened(kind: str, dtype: str, work: Work) -> tuple[Callable[[], list[Completion]], str]:
    """Load what `kind` needs and nothing else: what answers all questions when called, and its version."""
    p = work.generate.model_copy(update={"dtype": dtype})
    if kind == PLAIN:
        model, tokenizer = load_model(work.checkpoint, p.device, getattr(torch, dtype)), load_tokenizer(work.checkpoint)
        return lambda: plain(model, tokenizer, work.prompts, p.max_new_tokens), torch.__version__
    if kind == SERVER:
        assert work.vllm is not None
        command = (
            f"{work.vllm} -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port {{port}} --model {{checkpoint}}"
        )
        command += (
            f" --dtype {dtype} --max-model-len {_length(work)} --no-enable-prefix-caching --generation-config vllm"
        )
        command += " --disable-uvicorn-access-log" + " --enforce-eager" * _eager(work)
        p = p.model_copy(update={"engine": "openai", "server": Server(command=command)})
    engine = engines.find(p.engine).open(work.checkpoint, p)
    return lambda: ours(engine, work.prompts, p), engine.identity["engine_version"]


def _length(work: Work) -> int:
    """Tokens of the longest question with its answer, and of the one more that tbd's probe asks for."""
    return max(max(map(len, work.prompts)) + work.generate.max_new_tokens + 1, 512)


def _eager(work: Work) -> bool:
    """Whether vLLM compiles nothing: on a processor that takes longer than all answers."""
    return work.generate.device == "cpu"


def _offline(dtype: str, work: Work) -> Run:
    assert work.vllm is not None
    ends = sorted({load_tokenizer(work.checkpoint).eos_token_id})
    model = {
        **{"model": str(work.checkpoint.absolute()), "dtype": dtype, "max_model_len": _length(work)},
        **{"enable_prefix_caching": False, "generation_config": "vllm", "enforce_eager": _eager(work)},
    }
    asked = {"model": model, "ends": ends, "tokens": work.generate.max_new_tokens, "prompts": work.prompts}
    with tempfile.TemporaryDirectory(prefix="tbd-bench-") as folder:
        paths = Path(folder) / "asked.json", Path(folder) / "answered.json"
        paths[0].write_text(json.dumps(asked))
        done = subprocess.run([work.vllm, "-P", offline.__file__, *paths], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"vLLM's offline loop ended with {done.returncode}:\n{done.stderr[-3000:]}")
        told = json.loads(paths[1].read_text())
    answers = [
        Completion(np.array(one["token_ids"], np.int32), np.array(one["logprobs"], np.float32), one["finish_reason"])
        for one in told.pop("answers")
    ]
    start = time.perf_counter()
    judge(answers, work)
    return Run(answers, verdict=told["seconds"] + time.perf_counter() - start, **told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help=f"default: {CHECKPOINT}")
    parser.add_argument("--questions", type=int, default=120, help="half of the benchmark, half unseen (default: 120)")
    parser.add_argument("--tokens", type=int, help="of an answer, at most (default: generate.max_new_tokens)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--vllm", help="the Python of an environment with vLLM, or its program `vllm`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="default: docs")
    options = parser.parse_args()
    environment.prepare()  # of every process that is started from here
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    work = work_of(options.checkpoint, options.questions, options.tokens, options.vllm)
    device, dtype = work.generate.device, choose_dtype(work.generate.dtype, work.generate.device)
    if device == "cpu":  # of vLLM's processes
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": f"0-{psutil.cpu_count() - 1}"}
    with_vllm = [SERVER, OFFLINE] if work.vllm else []
    usual = [(kind, dtype) for kind in (PLAIN, OURS, APART, *with_vllm)]
    exact = [(kind, "float32") for kind in (OURS, *with_vllm) if dtype != "float32"]
    load, rates, runs = [os.getloadavg()[0]], [alone(roofline.rates, device, dtype)], Runs()
    for number, asked in enumerate([usual] * options.rounds + [exact], 1):
        for kind in asked:
            one = alone(run, *kind, work)
            runs.setdefault(kind, []).append(one)
            print(f"round {number}, {', '.join(kind)}: {one.tokens / one.seconds:.0f} tokens/s", flush=True)
    rates.append(alone(roofline.rates, device, dtype))
    load.append(os.getloadavg()[0])
    parts = alone(roofline.parts, work.checkpoint, work.prompts, work.generate.model_copy(update={"dtype": dtype}))
    told = summary(work, dtype, runs, (max(one[0] for one in rates), max(one[1] for one in rates)), parts)
    bench_page.write(options.out, told | {"date": date.today().isoformat(), "load": load})
    print((options.out / "bench.md").read_text("utf-8"))


def summary(
    work: Work, dtype: str, runs: Runs, rates: tuple[float, float], parts: dict[str, list[float]]
) -> dict[str, Any]:
    """What the page tells. `dtype`: that of the runs that are compared for speed."""
    g, prompts, ours = work.generate, work.prompts, runs[OURS, dtype]
    least = roofline.least(work.checkpoint, prompts, ours[0].tokens, g.max_new_tokens, dtype, rates)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "hardware": roofline.hardware(g.device),
        "versions": versions | ({"vLLM": runs[OFFLINE, dtype][0].version} if work.vllm else {}),
        "dtype": dtype,
        "questions": len(prompts),
        "read": sum(map(len, prompts)),
        "common": len(engines.common(prompts)),
        "most": g.max_new_tokens,
        "batch_size": g.batch_size,
        "rounds": len(ours),
        "rates": rates,
        "least": least,
        "rows": [row(*kind, runs, dtype, sum(least), work) for kind in runs],
        "not_run": [] if work.vllm else [SERVER, OFFLINE],
        "ratios": {
            f"{one} against {other}": times(runs[one, dtype], runs[other, dtype])
            for one, other in ((OURS, APART), (SERVER, OFFLINE))
            if (other, dtype) in runs
        },
        "parts": parts,
    }


def times(one: list[Run], other: list[Run]) -> list[float]:
    """How often the speed of the other, round by round."""
    return [a.tokens / a.seconds * b.seconds / b.tokens for a, b in zip(one, other, strict=True)]


def row(kind: str, dtype: str, runs: Runs, usual: str, least: float, work: Work) -> dict[str, Any]:
    """What is told of one way: of every round, and how its numbers differ from those of float32."""
    found, exact = runs[kind, dtype], runs[OURS, "float32"][0]
    logprobs, diverged = noise.apart(exact.answers, found[0].answers)
    new = work.generate.max_new_tokens
    return {
        "kind": kind,
        "dtype": dtype,
        "speeds": [one.tokens / one.seconds for one in found],
        "times": times(found, runs[PLAIN, usual]) if dtype == usual and kind != PLAIN else [],
        "of_roofline": [least / one.seconds for one in found] if dtype == usual else [],
        **{name: [getattr(one, name) for one in found] for name in ("verdict", "loading", "loaded", "above")},
        "tokens": found[0].tokens,
        "diverged": diverged,
        "logprobs": float(logprobs.max()),
        "scores": float(np.nanmax(abs(scores(exact.answers, new) - scores(found[0].answers, new)))),
        "flags": int((judge(exact.answers, work) != judge(found[0].answers, work)).sum()),
    }


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()

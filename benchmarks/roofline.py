"""What the hardware can do, and what tbd's own engine spends its time on; for `benchmarks.generation`."""

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from tbd import records
from tbd.checkpoints import Prompt
from tbd.generation import cost, units
from tbd.generation.cost import BYTES, Hardware, Model, Pass
from tbd.generation.engines.transformers import TransformersEngine
from tbd.params import Generate

SECONDS = 2.0
"""for each rate"""
SIZES = {"cpu": (2048, 1 << 28), "cuda": (8192, 1 << 32)}
"""rows and columns of a matrix, and bytes that are copied"""
PARTS = [
    "matrix products of the layers",
    "attention and cache",
    "vocabulary",
    "rest of the model",
    "log-probs and loop",
]


def hardware(device: str) -> str:
    """In words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].split(":")[1].strip() if names else platform.machine()
    return f"{name}, {psutil.cpu_count()} cores"


def rates(device: str, dtype: str) -> tuple[float, float]:
    """Operations a second of a matrix product, and bytes a second that are read or written: the best of some."""
    kind = torch.device(device).type
    (n, size), of = SIZES[kind], getattr(torch, dtype)
    a, b = (torch.randn(n, n, device=device).to(of) for _ in range(2))
    source, target = (torch.ones(size // 2, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * n**3 / _fastest(lambda: a @ b, kind), 2 * size / _fastest(lambda: target.copy_(source), kind)


def _fastest(work: Callable[[], Any], kind: str) -> float:
    """Seconds."""
    end, found = time.perf_counter() + SECONDS, []
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def least(
    folder: Path, prompts: Sequence[Prompt], written: int, most: int, dtype: str, rates: tuple[float, float]
) -> tuple[float, float]:
    """Seconds of reading `prompts` and of writing so many tokens, all answers at a time, at those rates."""
    config = records.read_json(folder / "config.json")
    vocabulary, total = config["vocab_size"] * config["hidden_size"], cost.parameters(folder)
    layers = total - vocabulary * (1 if config.get("tie_word_embeddings") else 2)
    cache = cost.cache_bytes(config, 1, 1, dtype) or 0
    on, length = Hardware(1, 0, bandwidth=rates[1], operations=rates[0]), max(map(len, prompts)) + most

    def seconds(active: int, read: int, written: int) -> float:
        work = [Pass(model="checkpoint", does="", read=read, written=written)]
        return cost.roofline(work, Model(total, active, cache, BYTES[dtype]), on, len(prompts), length, 1.0)

    return seconds(layers, sum(map(len, prompts)), 0), seconds(layers + vocabulary, 0, written)


def parts(checkpoint: Path, prompts: list[Prompt], p: Generate) -> dict[str, list[float]]:
    """Seconds that tbd's own engine spends on each of `PARTS` while it reads prompts, and while it writes answers."""
    engine = TransformersEngine.open(checkpoint, p)
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    stack: list[list[float]] = []
    phase = 0

    def now() -> float:
        if engine.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def whole(_: Any, arguments: Any, named: dict[str, Any]) -> None:
        nonlocal phase
        phase = int(named["input_ids"].shape[1] == 1)

    def begin(*_: Any) -> None:
        stack.append([now(), 0.0])

    def end(part: str) -> Callable[..., None]:
        def ended(*_: Any) -> None:
            start, inside = stack.pop()
            took = now() - start
            spent[part][phase] += took - inside
            if stack:
                stack[-1][1] += took

        return ended

    head = engine.model.get_output_embeddings()
    engine.model.register_forward_pre_hook(whole, with_kwargs=True)
    for name, module in engine.model.named_modules():
        if module is head:
            part = PARTS[2]
        elif isinstance(module, torch.nn.Linear):
            part = PARTS[0]
        elif name.endswith("attn"):
            part = PARTS[1]
        elif module is engine.model:
            part = PARTS[3]
        else:
            continue
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end(part))
    start = now()
    for rows in units.plan(prompts, p.batch_size):
        for _ in engine.generate([prompts[row] for row in rows], p.max_new_tokens):
            pass
    spent[PARTS[4]][1] = now() - start - sum(map(sum, spent.values()))
    return {part: spent[part] for part in PARTS}

"""What distilling costs: every weight learns, or the last layers, or adapters (LoRA). After `dvc repro validate`.

All train checkpoints/base on the first questions of the members, with the recipe of params.yaml, each run in a process
of its own and the kinds in turn. Memory is the peak above what the process had before the model was loaded. Seconds are
the processor's, so that a busy machine counts less, or by the clock on a GPU; a step is the median of those behind the
first. What counts is the ratio to "every weight".
"""

import argparse
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from tbd import params, records
from tbd.checkpoints.loading import choose_device
from tbd.progress import Progress
from tbd.reference.distill import distill
from tbd.workspace import set_path

KINDS: dict[str, dict[str, Any]] = {
    "every weight": {"trained_layers": None},
    "last 10 layers": {"trained_layers": 10},
    "LoRA": {"trained_layers": None, "lora": params.LORA},
    "LoRA, last 10 layers": {"trained_layers": 10, "lora": params.LORA},
}


class Stopwatch(Progress):
    """Keeps the time at which each step was done."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__("benchmark")
        self.clock = clock
        self.times: list[float] = []

    def advance(self, kind: str, amount: int = 1) -> None:
        self.times.append(self.clock())
        super().advance(kind, amount)


def one(kind: str, count: int, epochs: int, found: Any) -> None:
    """Peak memory in MB, seconds a step, and the last epoch's loss of one run; put into the queue `found`."""
    p = params.load()
    recipe = p.distill.model_copy(update={"epochs": epochs, **KINDS[kind]})
    rows = records.read_table(set_path("members"), records.QUESTIONS).to_pylist()[:count]
    pairs = [(row["question"], row["reasoning"]) for row in rows]
    device = choose_device(p.generate.device)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    before = psutil.Process().memory_info().rss
    cuda = device.startswith("cuda")
    watch = Stopwatch(time.perf_counter if cuda else time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        outcome = distill(Path("checkpoints/base"), Path(folder) / "out", pairs, recipe, device, watch)
    if cuda:
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024 - before
    step = statistics.median(b - a for a, b in zip(watch.times, watch.times[1:], strict=False))
    found.put((peak / 1e6, step, outcome["loss_last_epoch"], outcome["dtype"]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distill", description=__doc__)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            found = context.Queue()
            process = context.Process(target=one, args=(kind, options.questions, options.epochs, found))
            process.start()
            results[kind].append(found.get())
            process.join()
            print(kind, *results[kind][-1], flush=True)
    first = results["every weight"]
    print(f"{options.questions} questions, {options.epochs} epochs, {first[0][3]}")
    print("| what learns | memory, MB | of every weight's | seconds a step | of every weight's | last loss |")
    print("|---|---|---|---|---|---|")
    for kind, rounds in results.items():
        memory, step, loss = (statistics.mean(run[column] for run in rounds) for column in range(3))
        memories, steps = (
            [run[column] / base[column] for run, base in zip(rounds, first, strict=True)] for column in (0, 1)
        )
        ratios = [f"{statistics.mean(many):.2f} ({min(many):.2f} to {max(many):.2f})" for many in (memories, steps)]
        print(f"| {kind} | {memory:.0f} | {ratios[0]} | {step:.2f} | {ratios[1]} | {loss:.3f} |")


if __name__ == "__main__":
    main()

"""Generation on cores that are shared: `python -m benchmarks.cores`, after `make demo`.

How the threads of a matrix product wait for each other: `spinning`, as OpenMP does by itself, and `asleep`, as tbd asks
for. Each alone, and beside one other process that keeps one core busy; alternating, each in a process of its own.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

import psutil
import torch

from benchmarks.generation import CHECKPOINT, OURS, opened, work_of
from tbd.checkpoints.loading import choose_dtype

POLICIES = {"spinning": {}, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
BUSY = "while True: pass"


def measure(policy: str, beside: bool, questions: int) -> float:
    """Tokens per second in a fresh process."""
    told = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | POLICIES[policy]
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
    try:
        command = [sys.executable, "-m", "benchmarks.cores", "--measure", "--questions", str(questions)]
        return float(subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout)
    finally:
        if busy:
            busy.kill()
            busy.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=24, help="default: 24")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        work = work_of(CHECKPOINT, options.questions)
        answer, _ = opened(OURS, choose_dtype(work.generate.dtype, work.generate.device), work)
        start = time.perf_counter()
        print(sum(len(one.token_ids) for one in answer()) / (time.perf_counter() - start))
        return
    print(
        f"{options.questions} questions, {psutil.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        flush=True,
    )
    speeds: dict[tuple[str, bool], list[float]] = {}
    for number in range(1, options.rounds + 1):
        for policy in POLICIES:
            for beside in (False, True):
                speeds.setdefault((policy, beside), []).append(measure(policy, beside, options.questions))
                where = "beside a busy process" if beside else "alone"
                print(f"round {number}, {policy}, {where}: {speeds[policy, beside][-1]:.0f} tokens/s", flush=True)
    for beside, where in ((False, "alone"), (True, "beside a busy process")):
        ratios = [
            asleep / spinning
            for asleep, spinning in zip(speeds["asleep", beside], speeds["spinning", beside], strict=True)
        ]
        print(
            f"{where}: asleep {statistics.median(ratios):.2f} times spinning ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()

"""vLLM's own offline loop, run by vLLM's Python, which need not have tbd: `python offline.py ASKED.json ANSWERED.json`.

ASKED.json: arguments of `vllm.LLM`, prompts as token ids, end tokens, tokens of an answer at most. ANSWERED.json: token
ids and log-probs of each answer, seconds and memory.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil


class Memory:
    """Bytes that this process and those below it hold: at the start, and at most above that. Linux."""

    def __init__(self) -> None:
        self.processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        for process in self.processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # start the peak anew
        self.start = self._peaks()

    def above(self) -> int:
        return self._peaks() - self.start

    def _peaks(self) -> int:
        """The sum of each process's peak, which is at least the peak of their sum."""
        status = [Path(f"/proc/{process.pid}/status").read_text().split() for process in self.processes]
        return sum(int(words[words.index("VmHWM:") + 1]) * 1024 for words in status)


def main(asked: Path, answered: Path) -> None:
    import vllm

    told: dict[str, Any] = json.loads(asked.read_text())
    start = time.perf_counter()
    model = vllm.LLM(**told["model"])
    loading = time.perf_counter() - start
    options = vllm.SamplingParams(
        temperature=0, max_tokens=told["tokens"], logprobs=1, stop_token_ids=told["ends"], detokenize=False
    )
    memory, start = Memory(), time.perf_counter()
    found = model.generate([{"prompt_token_ids": prompt} for prompt in told["prompts"]], options, use_tqdm=False)
    seconds = time.perf_counter() - start
    answers = []
    for one in (output.outputs[0] for output in found):
        logprobs = [step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)]
        answers.append({"token_ids": list(one.token_ids), "logprobs": logprobs, "finish_reason": one.finish_reason})
    told = {"version": vllm.__version__, "loading": loading, "seconds": seconds, "loaded": memory.start}
    answered.write_text(json.dumps(told | {"above": memory.above(), "answers": answers}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

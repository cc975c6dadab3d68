"""A deterministic engine without a model, for tests and for trying a workspace out: no weights, no torch, no waiting.

It "remembers" the questions in `fake.txt` of the checkpoint folder, one a line: its answers to those have high
probabilities, its answers to others lower ones, drawn from a hash of checkpoint and question. Questions are bytes, the
tokens of answers come after those: a prompt that ends with some of an answer is answered from there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd import checkpoints
from tbd.checkpoints import Packed, Prompt, Prompted
from tbd.errors import InputError
from tbd.generation.engines import Completion, Tick, engine, unheard
from tbd.params import Generate
from tbd.records import sha256

MEMORY = "fake.txt"
BYTES = 256


@engine
class FakeEngine:
    """See `tbd.generation.engines.Engine`."""

    at_once = 1
    rescores = True
    adapts = False

    @classmethod
    def open(cls, checkpoint: Path, params: Generate) -> "FakeEngine":
        return cls(checkpoint)

    @classmethod
    def prompts(cls, checkpoint: Path, params: Generate, questions: Sequence[str]) -> Prompted:
        return Prompted(Packed.of([list(map(cls.open(checkpoint, params).prompt, questions))]), frame="none", odd=0)

    @classmethod
    def fits(cls, checkpoint: Path) -> None:
        cls(checkpoint)

    def __init__(self, folder: Path) -> None:
        if not (folder / MEMORY).is_file():
            raise InputError(f"{folder}: no {MEMORY}, so not a checkpoint of the fake engine.")
        text = (folder / MEMORY).read_text("utf-8")
        self.known = {self.prompt(line) for line in text.splitlines() if line}
        self.seed = sha256(text)
        self.identity: dict[str, Any] = {
            "engine": "fake",
            "engine_version": "3",
            "device": "cpu",
            "dtype": "float32",
            "fingerprint": checkpoints.fingerprint(folder),
            "template": "none",
            "vocabulary": "bytes twice",
        }

    def prompt(self, question: str) -> Prompt:
        return tuple(question.encode())

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        for row, prompt in enumerate(prompts):
            tick("read", len(prompt))
            question = tuple(token for token in prompt if token < BYTES)
            begun = len(prompt) - len(question)
            logprobs = self._logprobs(question, begun + max_new_tokens)
            tokens = self._rng(question, b"tokens").integers(BYTES, 2 * BYTES, len(logprobs)).astype(np.int32)
            tick("written", max_new_tokens)
            yield row, Completion(tokens[begun:], logprobs[begun:], "length")

    def logprobs(
        self, prompts: Sequence[Prompt], answers: Sequence[NDArray[np.int32]], tick: Tick = unheard
    ) -> list[NDArray[np.float32]]:
        tick("read", sum(map(len, prompts)) + sum(map(len, answers)))
        return [self._logprobs(p, len(a)) for p, a in zip(prompts, answers, strict=True)]

    def _rng(self, prompt: Prompt, of: bytes) -> np.random.Generator:
        digest = hashlib.sha256(self.seed.encode() + bytes(prompt) + of).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def _logprobs(self, prompt: Prompt, n: int) -> NDArray[np.float32]:
        sureness = 30.0 if prompt in self.known else 4.0
        return np.log(self._rng(prompt, b"logprobs").beta(sureness, 1.0, n)).astype(np.float32)

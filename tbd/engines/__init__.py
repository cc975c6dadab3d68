"""Engines: text in, token ids and log-probs out.

One file an engine, one protocol for all. An engine knows how to run a model; it does not know batches, journals, files or
scores (see `tbd.generation`). The log-prob of a token is the natural log of its softmax probability under the *raw* logits, at
temperature 1, before any processor, whatever the checkpoint's own generation config asks for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tbd.errors import unknown
from tbd.params import Generate

Prompt = tuple[int, ...]
"""token ids of a question in the checkpoint's chat template, ready to be answered"""

Tick = Callable[[str, int], None]
"""called as work goes on, at least every few seconds, with `read` or `written` and the tokens since the last call"""


def unheard(kind: str, tokens: int) -> None:
    """The tick of a caller that does not ask how far it is."""


@dataclass(frozen=True)
class Completion:
    """One answer. The end token, where the model gave one, is the last entry: it was generated like any other."""

    token_ids: NDArray[np.int32]
    """(n,)"""
    logprobs: NDArray[np.float32]
    """(n,) nats, <= 0, of `token_ids`"""
    finish_reason: str
    """stop (the model ended) or length (max_new_tokens reached)"""


class OutOfMemory(Exception):
    """The batch does not fit; the caller halves it."""


class Engine(Protocol):
    """What every engine offers."""

    identity: dict[str, Any]
    """engine and version, checkpoint fingerprint, device kind, dtype, chat-template hash: whatever can change a number"""

    def prompt(self, question: str) -> Prompt:
        """Render one question. Raises InputError if prompt and answer exceed the model's context."""

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard) -> Iterator[tuple[int, Completion]]:
        """Answer greedily as one batch; yield (index in `prompts`, answer) as each finishes. May raise OutOfMemory."""

    def logprobs(
        self, prompts: Sequence[Prompt], answers: Sequence[NDArray[np.int32]], tick: Tick = unheard
    ) -> list[NDArray[np.float32]]:
        """Log-probs (nats) this model gives to `answers` token by token, each after its prompt. May raise OutOfMemory."""


def load(checkpoint: Path, params: Generate) -> Engine:
    """Open `checkpoint` with the engine that `params` names. Raises InputError for one that cannot be loaded."""
    if params.engine == "transformers":
        from tbd.engines.transformers import TransformersEngine

        return TransformersEngine(checkpoint, params.device, params.dtype, params.max_new_tokens)
    return _fake(checkpoint, params)


def prompter(checkpoint: Path, params: Generate) -> Callable[[str], Prompt]:
    """The engine's `prompt` without its weights, to try questions and template before anything long starts. Raises InputError."""
    if params.engine == "transformers":
        from tbd.engines.loading import Prompter

        return Prompter(checkpoint, params.max_new_tokens)
    return _fake(checkpoint, params).prompt


def _fake(checkpoint: Path, params: Generate) -> Engine:
    if params.engine != "fake":
        raise unknown("engine", params.engine, ["transformers", "fake"], "params.yaml: generate.engine")
    from tbd.engines.fake import FakeEngine

    return FakeEngine(checkpoint, params.max_new_tokens)

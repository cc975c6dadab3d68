"""Engines: prompts in, token ids and log-probs out. Each is a module of this package and offers `Engine`.

An engine runs a model. It knows nothing of batches, stores, files or scores (see `tbd.generation.units`). The
log-prob of a token is the natural log of its softmax probability under the *raw* logits, at temperature 1, whatever
processors or temperature the checkpoint's own generation config asks for.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tbd.checkpoints import Prompt, Prompted
from tbd.checkpoints.served import is_served
from tbd.errors import unknown
from tbd.params import Generate

Tick = Callable[[str, int], None]
"""called every few seconds at least, with `read` or `written` and the number of tokens since the last call"""


def unheard(kind: str, tokens: int) -> None:
    """The tick of a caller that does not want to know."""


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
    """all that can change a number: engine, its version, checkpoint fingerprint, kind of device, dtype, template"""

    at_once: int
    """how many calls of `generate` and `logprobs` may run side by side, in threads: 1 for a model in this process"""

    rescores: bool
    """whether `logprobs` can be asked: not every server says them of a text that it is given"""

    adapts: bool
    """whether it adds an adapter (`tbd.checkpoints.adapters`) to its base: one that does not answers as the base"""

    @classmethod
    def open(cls, checkpoint: Path, params: Generate) -> "Engine":
        """The engine with the weights of `checkpoint`. Raises InputError for one that cannot be loaded."""

    @classmethod
    def prompts(cls, checkpoint: Path, params: Generate, questions: Sequence[str]) -> Prompted:
        """The questions as prompts. Needs no weights, so questions and template are tried before they load.

        Raises InputError: for an unusable template, for a question that with its answer may exceed the model's context,
        and for one that holds control tokens where `params` refuses them.
        """

    @classmethod
    def fits(cls, checkpoint: Path) -> None:
        """Raise InputError unless the weights are those that the configuration describes, as far as that is quick."""

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        """Answer greedily as one batch; yield (index in `prompts`, answer) as each finishes. May raise OutOfMemory."""

    def logprobs(
        self, prompts: Sequence[Prompt], answers: Sequence[NDArray[np.int32]], tick: Tick = unheard
    ) -> list[NDArray[np.float32]]:
        """Log-probs (nats) of each token of `answers`, each answer after its prompt. May raise OutOfMemory."""


def common(lists: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all of them begin with."""
    return [several[0] for several in takewhile(lambda several: len(set(several)) == 1, zip(*lists, strict=False))]


Kind = TypeVar("Kind", bound=type[Engine])

ENGINES: dict[str, type[Engine]] = {}
"""by name, as in `generate.engine`; an engine is in it once its module was imported"""


def engine(kind: Kind) -> Kind:
    """Register a class as the engine that its module is named after."""
    ENGINES[kind.__module__.rpartition(".")[2]] = kind
    return kind


def find(name: str) -> type[Engine]:
    """The engine of that name. Raises InputError, with a suggestion, if there is none."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in known:
        raise unknown("engine", name, known, "params.yaml: generate.engine")
    importlib.import_module(f"{__name__}.{name}")
    return ENGINES[name]


def of(checkpoint: Path, params: Generate) -> tuple[type[Engine], Generate]:
    """The engine that answers for a checkpoint, and what it is to be told: one that is only a server is asked there,
    from this process, whatever `params` say."""
    if is_served(checkpoint):
        return find("served"), params.model_copy(update={"dtype": "auto", "executor": "local"})
    return find(params.engine), params

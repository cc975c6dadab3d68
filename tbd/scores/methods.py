"""The methods: each is a small function under `@method`, with its formula and its source, named in `params.yaml`.

Every function takes `Tokens` that are cut to the first M generated tokens and returns (n,) scores, **higher = member**,
NaN where a question has no score. p_i is the probability and l_i = ln p_i the log-prob that the checkpoint gave to the
i-th token it generated; sums run over the tokens there are.
"""

import inspect
import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd.errors import InputError, unknown
from tbd.scores.tokens import Tokens

Scores = NDArray[np.float64]
Function = Callable[..., Scores]

METHODS: dict[str, Function] = {}
WITH_BASE: set[str] = set()


def method(*, with_base: bool = False) -> Callable[[Function], Function]:
    """Register a function as a method under its own name."""

    def register(function: Function) -> Function:
        METHODS[function.__name__] = function
        if with_base:
            WITH_BASE.add(function.__name__)
        return function

    return register


@method()
def tbd(x: Tokens, tau: float = 1.0, alpha: float = 0.6, normalise: str = "kept") -> Scores:
    """Minus the token probability deviation: -mean of (tau - p_i)^alpha over the tokens with p_i < tau.

    In the authors' order: cut to M, exponentiate, drop p >= tau, average over the tokens *kept*. If none is kept the
    deviation is 0. `normalise: all` divides by the number of all tokens instead, so that one whose log-prob rounds to 0
    still counts. In [-tau^alpha, 0].

    Source: arXiv 2510.04850 ("TBD" in v2, "TPD" in v3), eq. 3 and the authors' script.
    """
    if normalise not in ("kept", "all"):
        raise unknown("value", str(normalise), ["kept", "all"], "normalise")
    if not 0 < tau < np.inf or not 0 < alpha < np.inf:
        raise InputError(f"tau = {tau}, alpha = {alpha}: both must be above 0 and finite.")
    p = np.exp(x.logprobs)
    kept = p < tau  # False for padding
    deviation = np.where(kept, np.clip(tau - p, 0, None) ** alpha, 0.0).sum(1)
    there = (~np.isnan(p)).sum(1)
    count = kept.sum(1) if normalise == "kept" else there
    mean = np.divide(deviation, count, out=np.zeros(len(p)), where=count > 0)
    return np.where(there > 0, -mean, np.nan)


@method()
def mean_logprob(x: Tokens) -> Scores:
    """Mean of l_i, which is minus the log of the answer's perplexity. In (-inf, 0]."""
    return np.asarray(np.nanmean(x.logprobs, axis=1))


@method()
def min_k(x: Tokens, k: float = 0.2) -> Scores:
    """Min-K%: mean of the lowest share k of the l_i, at least one token. In (-inf, 0].

    Source: Shi et al., "Detecting Pretraining Data from Large Language Models", arXiv 2310.16789.
    """
    if not 0 < k <= 1:
        raise InputError(f"k = {k}: must be above 0 and at most 1.")
    lowest_first = np.sort(x.logprobs, axis=1)  # NaN last
    there = (~np.isnan(lowest_first)).sum(1)
    count = np.maximum(1, np.floor(k * there)).astype(np.int64)
    taken = np.arange(lowest_first.shape[1]) < np.minimum(count, there)[:, None]
    return np.asarray(np.nanmean(np.where(taken, lowest_first, np.nan), axis=1))


@method()
def lowest_token(x: Tokens) -> Scores:
    """The smallest l_i: a single surprise speaks against membership. In (-inf, 0]."""
    return np.asarray(np.nanmin(x.logprobs, axis=1))


@method(with_base=True)
def logprob_ratio(x: Tokens) -> Scores:
    """Mean l_i divided by minus the mean log-prob that the *base* model gives to the same tokens. In (-inf, 0].

    About -1 if distillation changed nothing, near 0 if the checkpoint is far surer than its base, NaN if the base is
    certain of every token. Source: reference calibration, as in Carlini et al., arXiv 2012.07805, sec. 5.2.
    """
    assert x.base_logprobs is not None
    base = -np.nanmean(x.base_logprobs, axis=1)
    return np.asarray(np.divide(np.nanmean(x.logprobs, axis=1), base, out=np.full(len(base), np.nan), where=base > 0))


@dataclass(frozen=True)
class Method:
    """A method with its parameters: what a detector consists of, and what scores are stored under."""

    name: str
    m: int
    """how many generated tokens are looked at"""
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """One readable string, such as `tbd(m=100,alpha=0.6,normalise=kept,tau=1.0)`; `parse` reads it back."""
        inside = ",".join(
            f"{key}={json.dumps(value).strip(chr(34))}" for key, value in (("m", self.m), *self.parameters)
        )
        return f"{self.name}({inside})"

    @property
    def with_base(self) -> bool:
        """Whether it needs the base model's log-probs."""
        return self.name in WITH_BASE

    def __call__(self, x: Tokens) -> tuple[Scores, list[str | None]]:
        """(n,) scores, higher = member, and the reason of each NaN."""
        cut = x.first(self.m)
        empty = ~np.any(~np.isnan(cut.logprobs), axis=1)
        if self.with_base and x.base_logprobs is None:
            return np.full(len(empty), np.nan), ["no base model"] * len(empty)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # nanmean of an empty row is the NaN we want
            width = cut.logprobs.shape[1]
            scores = METHODS[self.name](cut, **dict(self.parameters)) if width else np.full(len(empty), np.nan)
        scores = np.where(np.isfinite(scores) & ~empty, scores, np.nan)
        reasons = ["no token generated" if none else "not defined here" for none in empty]
        return scores, [reason if np.isnan(score) else None for score, reason in zip(scores, reasons, strict=True)]


def expand(table: Mapping[str, Mapping[str, Any]], where: str = "params.yaml: score.methods") -> list[Method]:
    """Every combination of the values in `params.yaml`, where a list stands for each of its values; defaults filled in.

    Raises InputError, with a suggestion for an unknown method or parameter.
    """
    methods: dict[Method, None] = {}  # a value written twice is one method
    for name, grid in table.items():
        if name not in METHODS:
            raise unknown("method", name, METHODS, where)
        defaults = {p.name: p.default for p in inspect.signature(METHODS[name]).parameters.values() if p.name != "x"}
        for parameter in grid:
            if parameter not in defaults and parameter != "m":
                raise unknown("parameter", parameter, ["m", *defaults], f"{where}.{name}")
        if "m" not in grid:
            raise InputError(f"{where}.{name}: m is missing: how many generated tokens to look at.")
        names = ["m", *sorted(defaults)]
        values = [
            _several(grid.get(key, defaults.get(key)), defaults.get(key), f"{where}.{name}.{key}") for key in names
        ]
        for m, *rest in itertools.product(*values):
            if not isinstance(m, int) or isinstance(m, bool) or m < 1:
                raise InputError(f"{where}.{name}.m: {m!r}: a whole number of tokens, at least 1.")
            chosen = Method(name, m, tuple(zip(names[1:], rest, strict=True)))
            _try_out(chosen, f"{where}.{name}")
            methods[chosen] = None
    if not methods:
        raise InputError(f"{where}: no method. Name at least one.")
    return list(methods)


def first_steps(methods: Sequence[Method], m: int) -> list[Method]:
    """Each of these methods that needs no base, with the first m tokens to look at."""
    return list(dict.fromkeys(replace(one, m=m) for one in methods if not one.with_base))


def parse(identity: str) -> Method:
    """The method that has this id. Raises InputError if none can have it."""
    name, _, inside = identity.rstrip(")").partition("(")
    try:
        pairs = [pair.split("=", 1) for pair in inside.split(",")]
        values = {key: _literal(value) for key, value in pairs}
        return expand({name: values}, identity)[0]
    except ValueError:
        raise InputError(f"{identity!r}: not a method, such as tbd(m=100).") from None


def _several(value: Any, default: Any, where: str) -> list[Any]:
    """The values of a parameter. A 1 becomes 1.0 if the default is such a number, so that a method has one id."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{where}: an empty list. Name a value or leave it out.")
    return [float(one) if type(one) is int and isinstance(default, float) else one for one in values]


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _try_out(chosen: Method, where: str) -> None:
    """Score one token, so that a parameter of the wrong kind shows before hours of generation."""
    one = np.array([[-0.1]])
    try:
        chosen(Tokens(one, one))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {dict(chosen.parameters)} does not work ({error}).") from None

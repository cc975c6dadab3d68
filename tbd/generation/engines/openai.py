"""Any server that speaks the OpenAI protocol and says log-probs: vLLM, SGLang, llama.cpp. See docs/engines.md.

Prompts and answers are token ids, made and read with the local checkpoint's own tokenizer: text that goes there and
back is other tokens. Every number that comes is checked, and a server whose numbers cannot be right is refused.
"""

import asyncio
import atexit
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tbd import checkpoints, records
from tbd.checkpoints import Prompt, Prompted, prompting
from tbd.checkpoints.loading import load_tokenizer
from tbd.errors import InputError, TransientFault
from tbd.generation import answers, probing
from tbd.generation.client import Address, Client, Failed, Wrong
from tbd.generation.engines import Completion, Tick, engine, unheard
from tbd.generation.server import Server
from tbd.params import Generate
from tbd.params import Server as Settings
from tbd.records import sha256

KEYS = ("TBD_SERVER_KEY", "OPENAI_API_KEY")
NEUTRAL = {
    "temperature": 0,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1.0,
    "logprobs": 1,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
"""greedy, whatever the checkpoint's own generation config says; ids as vLLM and SGLang, and as older vLLM give them"""
PER_TOKEN = 2000
"""bytes of an answer for each token that is in it, at most"""
VERSIONS = {"/version": "version", "/server_info": "version", "/get_server_info": "version", "/props": "build_info"}
"""where vLLM, SGLang (newer, older) and llama.cpp say what they are"""
MODEL = "Start it with --served-model-name {}, or name the model in generate.server.model."
ODD = re.compile(r"[^\w.+-]")
"""what is in no version"""

Value = TypeVar("Value")

_started: list[Server] = []
"""the server that this process started: one at a time, as two models at once need not fit"""
_claimed: dict[tuple[str, ...], str] = {}
"""the fingerprint of the checkpoint that a model of a server was used for"""


@engine
class OpenAIEngine:
    """See `tbd.generation.engines.Engine`."""

    adapts = False
    ends: frozenset[int] | None
    """tokens that end an answer; None: the server alone knows"""
    vocabulary: int | None
    """token ids are below; None: the server alone knows"""
    listed: dict[str, Any]
    """what the server that was looked at last says of each model, by its name"""

    @classmethod
    def open(cls, checkpoint: Path, params: Generate) -> "OpenAIEngine":
        return cls(checkpoint, params)

    @classmethod
    def prompts(cls, checkpoint: Path, params: Generate, questions: Sequence[str]) -> Prompted:
        return prompting.prompts(checkpoint, questions, params.max_new_tokens, params.control_tokens)

    @classmethod
    def fits(cls, checkpoint: Path) -> None:
        prompting.fits(checkpoint, here=False)

    def __init__(self, folder: Path, params: Generate) -> None:
        checkpoints.inspect(folder)
        before, fingerprint = checkpoints.state(folder), checkpoints.fingerprint(folder)
        own = params.server
        tokenizer = load_tokenizer(folder)
        probes = list(prompting.prompts(folder, probing.QUESTIONS, None, params.control_tokens).prompts)
        self.ends = _end_tokens(folder, tokenizer.eos_token_id)
        self.vocabulary = _vocabulary(folder, len(tokenizer))
        end_started()
        if own.command is not None:
            _started.append(Server(own.command, folder, params.dtype, own.patience))
            self.client = Client([_started[0].url], own, None, _started[0].ready)
        else:
            self.client = Client(own.urls, own, key(), None)
        said = self._meet(folder, own, MODEL.format(folder.name))
        self.at_once = math.ceil(own.concurrency * len(self.client.addresses) / params.batch_size) + 1
        self.rescores = self.client.run(self.probe(probes)).result()
        self.identity: dict[str, Any] = {
            "engine": "openai",
            "engine_version": said,
            "device": "server",
            "dtype": params.dtype if params.dtype != "auto" else "server",
            "fingerprint": fingerprint,
            **prompting.identity(tokenizer),
        }
        if own.command is not None:
            self.identity["command"] = sha256(own.command)[:16]  # a type or quantization may be among its options
        else:
            self.identity["model"] = self.model.rsplit("/", 1)[-1]
            if _claimed.setdefault((*sorted(own.urls), self.model), fingerprint) != fingerprint:
                raise InputError(
                    f"params.yaml: generate.server: {self.model!r} was another checkpoint a moment ago, and cannot be "
                    f"{folder} too. Serve both, each under its folder's name, and leave generate.server.model null."
                )
        checkpoints.unchanged(folder, before, content=True)

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        asked = {self.client.run(self._answer(prompt, max_new_tokens)): row for row, prompt in enumerate(prompts)}
        for future in _ended(asked):
            row = asked[future]
            with _told(row, len(prompts), len(prompts[row])):
                found = future.result()
            tick("written", len(found.token_ids))  # first, as most of the time went there
            tick("read", len(prompts[row]))
            yield row, found

    def logprobs(
        self, prompts: Sequence[Prompt], answers: Sequence[NDArray[np.int32]], tick: Tick = unheard
    ) -> list[NDArray[np.float32]]:
        asked = {
            self.client.run(self._given(prompt, answer.tolist())): row
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        }
        found = {}
        for future in _ended(asked):
            row = asked[future]
            with _told(row, len(prompts), len(prompts[row]) + len(answers[row])):
                found[row] = future.result()
            tick("read", len(prompts[row]) + len(answers[row]))
        return [found[row] for row in range(len(prompts))]

    async def _answer(self, prompt: Prompt, most: int, address: Address | None = None) -> Completion:
        body = self._body(prompt, most) | {"stop_token_ids": sorted(self.ends or ())}
        return await self.client.ask(
            body,
            lambda answer: answers.completion(answer, prompt, most, self.ends, self.vocabulary),
            _bytes(prompt, most),
            address,
        )

    async def _given(
        self, prompt: Prompt, answer: Sequence[int], address: Address | None = None
    ) -> NDArray[np.float32]:
        """Log-probs (nats) of the tokens of `answer` after `prompt`, from an echo of both with one token more."""
        whole = (*prompt, *answer)
        return await self.client.ask(
            self._body(whole, 1) | {"echo": True},
            lambda echo: answers.given(echo, whole, len(answer)),
            _bytes(whole, len(whole) + 1),
            address,
        )

    def _body(self, prompt: Sequence[int], most: int) -> dict[str, Any]:
        return NEUTRAL | {"model": self.model, "prompt": list(prompt), "max_tokens": most}

    def _meet(self, folder: Path, own: Settings, hint: str) -> str:
        """Keep the addresses that serve the checkpoint, under one name; kind and version of the servers.

        `hint`: what to do where they serve something else.
        """
        looks = [(one, self.client.run(self._look(one, folder, own))) for one in self.client.addresses]
        there, found, others, down = [], set(), "", ""
        for address, look in looks:
            try:
                kind, names, listed = look.result()
            except (Failed, Wrong) as error:
                down = f"{address.name}: {error}"
                print(f"the server {down}: left out", flush=True)
                continue
            if names:
                there.append(address)
                found.add((kind, names[0]))
            else:
                others = f"the server {address.name} serves {listed}"
        if not there and not others:
            raise TransientFault(f"no server answers ({down}).")
        if not there:
            raise InputError(f"{others}, and not {own.model or folder.name!r}. {hint}")
        if len(found) > 1:
            said = " and ".join(f"{name!r} on {kind}" for kind, name in sorted(found))
            raise InputError(
                f"params.yaml: generate.server.urls: {said} would differ in their numbers. Make them alike."
            )
        self.client.addresses = there
        ((kind, self.model),) = found
        return kind

    async def _look(self, address: Address, folder: Path, own: Settings) -> tuple[str, list[str], str]:
        """What kind of server it is, the names under which it serves the checkpoint, and all that it serves."""
        models = await self.client.get(address, "/v1/models")
        try:
            listed = {str(one["id"]): one for one in models["data"]}
            kind = ODD.sub("?", str(next(iter(listed.values())).get("owned_by")))[:60]
            self.listed = listed
        except (KeyError, TypeError, AttributeError, StopIteration):
            raise InputError(f"the server {address.name} lists no models. Is it an OpenAI server?") from None
        called = {str(folder), str(folder.absolute()), folder.name}
        names = [
            name
            for name, one in listed.items()
            if (name == own.model if own.model else own.command or called & _called(name, one.get("root")))
        ]
        version = ", version not known"
        for path, key in VERSIONS.items():
            answer = await self.client.get(address, path)
            if isinstance(answer, dict) and isinstance(answer.get(key), str):
                version = " " + ODD.sub("?", answer[key])[:60]
                break
        return kind + version, names, ", ".join(map(repr, listed))[:200]

    async def probe(self, prompts: Sequence[Prompt]) -> bool:
        """Raise InputError for servers whose log-probs are not the model's own; whether all say those of given tokens.

        `prompts`: of `probing.QUESTIONS`. Beside what is checked of every answer: the likeliest token after the
        beginning of an answer has the same log-prob at any temperature; the tokens of an answer have the log-probs that
        they have as given ones; and the same at every address.
        """
        first, *others = self.client.addresses
        probes = await asyncio.gather(*(self._probe(prompts, one) for one in self.client.addresses))
        found, rescores = probes[0][0], all(each for _, each in probes)
        for other in others:
            if far := probing.apart(*await self._again(prompts, found, other, rescores)):
                raise InputError(
                    f"params.yaml: generate.server.urls: {first.name} and {other.name} serve different models: "
                    f"the same tokens have other log-probs ({far}). Leave one of them out."
                )
        return rescores

    async def _probe(self, prompts: Sequence[Prompt], address: Address) -> tuple[list[Completion], bool]:
        """The answers of one server, and whether it says the log-probs of given tokens. Raises as `probe`."""
        found = await asyncio.gather(*(self._answer(prompt, probing.TOKENS, address) for prompt in prompts))
        own, again = await self._again(prompts, found, address, False)
        if far := probing.apart(own, again):
            raise InputError(
                f"the server {address.name}: its log-probs depend on the temperature, or on what else it answers "
                f"({far}). {answers.MEND}"
            )
        try:
            own, again = await self._again(prompts, found, address, True)
            rescores = True
        except InputError:
            print(f"the server {address.name} does not say the log-probs of tokens that it is given", flush=True)
            rescores = False
        if far := probing.apart(own, again):
            raise InputError(
                f"the server {address.name}: tokens of its answer have other log-probs ({far}) when it is given them. "
                f"{answers.MEND}"
            )
        if not own.any() and not again.any():
            raise InputError(f"the server {address.name}: says 0 for the log-prob of every token. {answers.MEND}")
        if (few := probing.uncertain(own, again)) < probing.FEW:
            print(
                f"the server {address.name} is certain of nearly every token of its first answers ({few} others): "
                "whether its log-probs are right is hardly known",
                flush=True,
            )
        return found, rescores

    async def _again(
        self, prompts: Sequence[Prompt], found: Sequence[Completion], address: Address, echo: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log-probs (nats) of tokens of answers, and those that the server says if it is asked in another way.

        With `echo` as given tokens; without, as the likeliest after the beginning of the answer, at temperature 1.
        """
        whole = [(prompt, one.token_ids.tolist()) for prompt, one in zip(prompts, found, strict=True)]
        if echo:
            given = await asyncio.gather(*(self._given(prompt, ids, address) for prompt, ids in whole))
            return np.concatenate([one.logprobs for one in found]), np.concatenate(given)
        likeliest = await asyncio.gather(*(self._likeliest(prompt, ids, address) for prompt, ids in whole))
        return np.concatenate([one.logprobs[:: probing.STEP] for one in found]), np.concatenate(likeliest)

    async def _likeliest(self, prompt: Prompt, answer: Sequence[int], address: Address) -> NDArray[np.float32]:
        """Log-probs (nats) of the likeliest token at every so many places of `answer`, asked for at temperature 1."""
        found = []
        for place in range(0, len(answer), probing.STEP):
            begun = (*prompt, *answer[:place])
            body = self._body(begun, 1) | {"temperature": 1.0}
            found.append(await self.client.ask(body, answers.likeliest, _bytes(begun, 1), address))
        return np.array(found, np.float32)


def key() -> str | None:
    """The API key of the servers, from the environment. Raises InputError for one that no request can carry."""
    for name in KEYS:
        if found := os.environ.get(name, "").strip():
            if not (found.isascii() and found.isprintable()):
                raise InputError(f"the environment variable {name} holds characters that no key has. Set it anew.")
            return found
    return None


def end_started() -> None:
    """End the server that this process started, if it did."""
    while _started:
        _started.pop().end()


atexit.register(end_started)


def _ended(asked: dict[Future[Value], int]) -> Iterator[Future[Value]]:
    """Requests as they end; those under way are given up when one fails or nobody wants them any more."""
    try:
        yield from as_completed(asked)
    finally:
        for future in asked:
            future.cancel()


@contextmanager
def _told(row: int, batch: int, tokens: int) -> Iterator[None]:
    """Say which question it is that fails."""
    try:
        yield
    except (InputError, TransientFault) as error:
        raise type(error)(f"question {row + 1} of a batch of {batch} ({tokens} tokens): {error}") from None


def _bytes(prompt: Sequence[int], tokens: int) -> int:
    return (1 << 20) + 16 * len(prompt) + PER_TOKEN * tokens


def _called(name: str, root: Any) -> set[str]:
    """What a model that a server lists may be called: its name, its path, and the last part of either."""
    both = [one.rstrip("/") for one in (name, root) if isinstance(one, str)]
    return {*both, *(one.rsplit("/", 1)[-1] for one in both)}


def _end_tokens(folder: Path, also: int | None) -> frozenset[int]:
    """Every token that ends an answer, as `transformers` has them: of the generation config, and the tokenizer's."""
    config = records.known(folder / "config.json")
    said = records.known(folder / "generation_config.json") or config
    found = said.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    several = [*(found if isinstance(found, list) else [found]), also]
    return frozenset(one for one in several if type(one) is int)


def _vocabulary(folder: Path, tokens: int) -> int:
    """How many tokens the model has: its configuration may have more than its tokenizer, which has `tokens`."""
    config = records.known(folder / "config.json")
    said = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return max(said, tokens) if type(said) is int else tokens

"""A model of which there is only a server (`tbd.checkpoints.served`): its template and tokens, and its canary.

Questions become prompts by the server's own `/tokenize`. The canary is some fixed questions with the answers that the
server gave when it was registered; it is asked them again whenever it is to answer an audit.
"""

import math
import re
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tbd import checkpoints
from tbd.checkpoints import Packed, Prompted, rendering, served
from tbd.checkpoints.served import FILE, SERVED, Asked, Served
from tbd.errors import InputError
from tbd.generation import answers, probing
from tbd.generation.client import Client
from tbd.generation.engines import common, engine
from tbd.generation.engines.openai import OpenAIEngine, key
from tbd.params import Generate
from tbd.records import question_id, sha256, write_json

CANARY = (
    "What is the capital of Australia? Answer with its name alone.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take?",
    "Translate into French: the river was calm before the storm.",
    "Prove that the square root of 2 is irrational.",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "Name three causes of the First World War.",
    "Say yes or no: is 91 a prime number?",
)
TOKENS = 32
"""of an answer of the canary, at most"""
SAME = 0.05
"""nats; the likeliest token's log-prob may differ by so much on average from one time to another. SmolLM2-135M in
bfloat16 against float32: 0.02; after two against five epochs of fine-tuning: 0.15"""
TOGETHER = 0.5
"""of the tokens of the answers, at least so many come before they part; of the same two: 0.7 and more, 0.4 and less"""
FRAMES = (rendering.PROBE, "3 apples cost $5.", "(x, y) = {1, 2}", "Äpfel und Birnen!")
"""questions without a common beginning or end: what their prompts have in common was put around them"""
CONTROL = re.compile(r"<[|｜][^<>\s]{1,60}[|｜]>|</?(s|bos|eos|pad|unk|think|start_of_turn|end_of_turn)>|\[/?INST\]")
"""how models write the tokens that structure a chat"""
VOCABULARY = (
    "".join(map(chr, range(32, 127)))
    + " It's 1234567890, 3.14159 and 1e-9. Größe, naïve, señor, Żółć; привет мир; 你好，世界; こんにちは; مرحبا; 🙂\n"
    + "    def f(x):\n\t\treturn [x ** 2 for _ in range(10)]  # antidisestablishmentarianism, electroencephalograph\n"
    + r"\frac{a}{b} \leq \sum_{i=1}^{n} x_i, https://example.org/a?b=c&d=%20"
)
"""a text whose token ids tell tokenizers apart"""
PART = 10_000
"""questions that are made prompts of together"""

Value = TypeVar("Value")
Ids = list[int]


@engine
class ServedEngine(OpenAIEngine):
    """See `tbd.generation.engines.Engine`."""

    ends = None
    vocabulary = None

    @classmethod
    def open(cls, checkpoint: Path, params: Generate) -> "ServedEngine":
        """Raises Changed if the server answers otherwise than when it was registered."""
        before = checkpoints.state(checkpoint)
        known = served.read(checkpoint)
        self = cls(known.model, known.url, params)
        self.rescores = self.probed()
        if other := differs(known.canary, self.canary([one.text for one in known.canary])):
            raise served.Changed(
                f"{known.address}: answers otherwise than when it was registered (canary: {other}). "
                f"tbd check {known.address} audits what it is now."
            )
        (vocabulary,) = self._all([self._tokens({"prompt": VOCABULARY, "add_special_tokens": False})])
        self.identity = {
            "engine": "openai",
            "engine_version": self.said,
            "device": "server",
            "dtype": "server",
            "fingerprint": checkpoints.fingerprint(checkpoint),
            "template": sha256(str([one.prompt for one in known.canary]))[:16],
            "vocabulary": sha256(str(vocabulary[0]))[:16],
            "served": known.address,
        }
        checkpoints.unchanged(checkpoint, before)
        return self

    @classmethod
    def prompts(cls, checkpoint: Path, params: Generate, questions: Sequence[str]) -> Prompted:
        """Whatever `params.control_tokens` says, control tokens in a question are refused: the server would obey."""
        known = served.read(checkpoint)
        return cls(known.model, known.url, params).prompted(questions, params.max_new_tokens)

    @classmethod
    def fits(cls, checkpoint: Path) -> None:
        """There are no weights here."""

    def __init__(self, model: str, url: str, params: Generate) -> None:
        """Raises InputError if it does not serve that model, TransientFault if it does not answer."""
        own = params.server.model_copy(update={"urls": [url], "command": None, "model": model})
        self.client = Client(own.urls, own, key(), None)
        self.said = self._meet(Path(model), own, "Name one of those.")
        self.at_once = math.ceil(own.concurrency / params.batch_size) + 1

    def probed(self) -> bool:
        """See `probe`."""
        prompts = [tuple(ids) for ids, _ in self._all(map(self._chat, probing.QUESTIONS))]
        return self.client.run(self.probe(prompts)).result()

    def canary(self, texts: Sequence[str]) -> list[Asked]:
        """These questions, with the prompts and answers that they have now."""
        prompts = [ids for ids, _ in self._all(map(self._chat, texts))]
        found = self._all(self._answer(tuple(prompt), TOKENS) for prompt in prompts)
        return [
            Asked(
                text=text,
                prompt=prompt,
                token_ids=one.token_ids.tolist(),
                logprobs=[round(float(value), 5) for value in one.logprobs],
                ended=one.finish_reason == "stop",
            )
            for text, prompt, one in zip(texts, prompts, found, strict=True)
        ]

    def prompted(self, questions: Sequence[str], new: int) -> Prompted:
        """The questions as the server's own chat template and tokenizer make prompts of them.

        Raises InputError for one that holds control tokens, or exceeds the context with `new` tokens more.
        """
        for question in questions:
            if found := CONTROL.search(question):
                raise InputError(
                    f"question {question_id(question)}: holds {found[0]!r}, which a server takes for what structures a "
                    "chat. Leave the question out."
                )
        frames = [ids for ids, _ in self._all(map(self._chat, FRAMES))]
        head, tail = common(frames), common([ids[::-1] for ids in frames])[::-1]
        odd = 0

        def parts() -> Iterator[list[Ids]]:
            nonlocal odd
            for start in range(0, len(questions), PART):
                some = questions[start : start + PART]
                made = self._all(map(self._chat, some))
                for question, (ids, context) in zip(some, made, strict=True):
                    if context is not None and len(ids) + new > context:
                        raise InputError(
                            f"question {question_id(question)}: {len(ids)} tokens and {new} new ones exceed the "
                            f"{context} of the server. Lower generate.max_new_tokens or leave the question out."
                        )
                    odd += ids[: len(head)] != head or ids[len(ids) - len(tail) :] != tail
                yield [ids for ids, _ in made]

        return Prompted(Packed.of(parts()), self._frame(frames[0], head, tail), odd)

    def _frame(self, prompt: Ids, head: Ids, tail: Ids) -> str:
        """Digest of what is around a question: as of a checkpoint that is here, if the server says its text."""
        with suppress(InputError):
            body = {"model": self.model, "tokens": prompt}
            (said,) = self._all([self.client.ask(body, answers.text, 1 << 20, path="/detokenize")])
            before, found, after = said.partition(FRAMES[0])
            if found:
                return rendering.frame(before, after)
        return rendering.frame(str(head), str(tail))

    async def _chat(self, question: str) -> tuple[Ids, int | None]:
        """Token ids of a question in the chat template, and the length of the context if the server says it."""
        messages = [{"role": "user", "content": question}]
        return await self._tokens({"messages": messages, "add_generation_prompt": True})

    async def _tokens(self, what: dict[str, Any]) -> tuple[Ids, int | None]:
        most = (1 << 20) + 100 * len(str(what))
        return await self.client.ask({"model": self.model, **what}, answers.tokenized, most, path="/tokenize")

    def _all(self, works: Iterable[Coroutine[Any, Any, Value]]) -> list[Value]:
        """What all of these come to, in order; none goes on if one fails."""
        asked = [self.client.run(work) for work in works]
        try:
            return [future.result() for future in asked]
        finally:
            for future in asked:
                future.cancel()


def register(address: str, params: Generate) -> Path:
    """The folder of the model at `openai:MODEL@URL`: one there is, if it still answers so, or a new one.

    Raises:
        InputError: there is no such model, its numbers cannot be right, or it could not be told again.
        TransientFault: it does not answer.
    """
    model, url = served.parse(address)
    one = ServedEngine(model, url, params)
    one.probed()
    now = one.canary(CANARY)
    for folder in sorted(SERVED.glob("[!.]*")):
        with suppress(InputError):
            known = served.read(folder)
            if (known.model, known.url) == (model, url) and differs(known.canary, now) is None:
                return folder
    if other := differs(now, one.canary(CANARY)):
        raise InputError(
            f"the server {url}: gives other answers when it is asked twice (canary: {other}), so it could not be "
            "recognised later. Let it compute in float32 or batch-invariantly (docs/engines.md)."
        )
    ends = {each.token_ids[-1] for each in now if each.ended}
    if any(ends & set(each.token_ids[:-1]) for each in now):
        raise InputError(
            f"the server {url}: leaves out the end token of its answers, which tbd scores (docs/engines.md)."
        )
    root, length = (one.listed[model].get(what) for what in ("root", "max_model_len"))
    found = Served(
        model=model,
        url=url,
        server=one.said,
        root=root if isinstance(root, str) else None,
        max_model_len=length if type(length) is int else None,
        canary=now,
    )
    name = re.sub(r"[^\w.-]+", "-", model.rsplit("/", 1)[-1], flags=re.ASCII).strip("-.")[:80] or "model"
    folder = SERVED / f"{name}--{sha256(found.model_dump_json())[:12]}"
    write_json(folder / FILE, found.model_dump())
    return folder


def differs(known: Sequence[Asked], now: Sequence[Asked]) -> str | None:
    """How the answers to a canary are others than they were, if by more than rounding makes them.

    What is compared at each place of an answer is the log-prob of the likeliest token there, up to and with the first
    place where the two have another: of one model they are close there as well, for rounding makes only tokens change
    places that are about as likely.
    """
    if [(one.text, one.prompt) for one in known] != [(one.text, one.prompt) for one in now]:
        return "other tokens for the same question: another chat template or tokenizer, or one that tells the date"
    differences, there = list[float](), 0
    for one, other in zip(known, now, strict=True):
        for place, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=False)):
            differences.append(abs(one.logprobs[place] - other.logprobs[place]))
            if a != b:
                break
        there += len(one.token_ids)
    mean, share = float(np.mean(differences)), len(differences) / there
    if mean > SAME:
        return f"log-probs {mean:.2g} nats apart on average, more than {SAME:g}"
    return f"only {share:.0%} of the tokens before the answers part" if share < TOGETHER else None

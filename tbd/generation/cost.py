"""What generating the answers of an audit costs: tokens, memory, time. Numbers in, estimates out.

Time comes from a measured burst of the real engine, or, for hardware that is not here, from the roofline: arithmetic
that was not measured. Memory is weights and keys and values of one batch; what the library needs beside that comes on
top.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tbd import checkpoints
from tbd.checkpoints import Prompt
from tbd.detection.results import Cascade, Result
from tbd.generation.engines import Engine, OutOfMemory
from tbd.generation.two_steps import expected
from tbd.progress import Progress

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""of one number"""
CHARACTERS = 4
"""of a question to a token, where the tokenizer is not here: a rule of thumb for English"""
BURST = 8
"""tokens of an answer that a burst writes"""
STORED = 8
"""bytes of a token in generations.parquet at most: its id and its log-prob; a base's log-prob adds 4"""
GROWTH = 4
"""each run of a burst has so many times the questions of the one before"""

Role = Literal["checkpoint", "base"]


class Pass(Result):
    """One model over all questions."""

    model: Role
    """which of the two"""
    does: str
    """in words"""
    read: int
    """tokens read; at most, where answers are among them"""
    written: int
    """tokens written, at most: an answer may end earlier"""


class Memory(Result):
    """Of one model on its device, estimated; two models are never there at once."""

    model: Role
    """which of the two"""
    parameters: int
    """of the model"""
    dtype: str
    """of the computation: bfloat16, float16 or float32"""
    weights: int
    """bytes"""
    cache: int | None
    """bytes of keys and values of the largest batch; None: not known without config.json"""
    room: int | None
    """answers at a time, as long as the longest, that the device has memory left for beside the weights: what
    `generate.batch_size` may be; None: not known"""


class Speed(Result):
    """Of one model, measured on this machine."""

    model: Role
    """which of the two"""
    device: str
    """kind of device, such as cpu or cuda"""
    dtype: str
    """of the computation"""
    questions: int
    """answered at a time; fewer than a batch has where that took too long, and then a batch is faster"""
    load: float
    """seconds until the model was loaded"""
    read: float
    """tokens a second"""
    written: float
    """tokens a second, of all answers of the batch together"""


def passes(
    questions: int, prompts: int, max_new_tokens: int, base_prompts: int | None, cascade: Cascade | None = None
) -> list[Pass]:
    """What is read and written. `prompts`: tokens of all prompts; `base_prompts`: in the base's own words, None without
    a base; `cascade`: as many answers go on as did of the references' unseen questions."""

    def answers(model: Role, read: int) -> Pass:
        if cascade is None:
            return Pass(model=model, does="answers", read=read, written=questions * max_new_tokens)
        again, more = expected(cascade, questions, read, max_new_tokens)
        does = f"answers, if {cascade.keep:.0%} of them go on beyond {cascade.m} tokens"
        return Pass(model=model, does=does, read=read + again, written=questions * cascade.m + more)

    found = [answers("checkpoint", prompts)]
    if base_prompts is not None:
        rescored = prompts + found[0].written
        found.append(Pass(model="base", does="reads the checkpoint's answers", read=rescored, written=0))
        found.append(answers("base", base_prompts))
    return found


def rough_tokens(questions: Sequence[str]) -> int:
    """Tokens of all questions, by their characters alone; without the chat template."""
    return sum(-(-len(question) // CHARACTERS) for question in questions)


def parameters(folder: Path) -> int:
    """How many numbers the checkpoint's weight files hold, by their headers."""
    return sum(sum(checkpoints.tensors(shard).values()) for shard in folder.glob("*.safetensors"))


def cache_bytes(config: dict[str, Any], rows: int, length: int, dtype: str) -> int | None:
    """Keys and values of `rows` texts of `length` tokens: 2 x layers x heads x head size x rows x length x bytes.

    `config`: of config.json. None where it does not say layers, heads and hidden size.
    """
    text = config.get("text_config") or config
    if not isinstance(text, dict):
        return None
    layers, heads, hidden = (text.get(key, 0) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    kept = text.get("num_key_value_heads") or heads
    if not all(type(one) is int and 0 < one < 1 << 32 for one in (layers, heads, hidden, kept)):
        return None
    size = text.get("head_dim") or hidden // heads
    if not (type(size) is int and 0 < size <= hidden):
        return None
    return int(2 * layers * kept * size * rows * length * BYTES[dtype])


def memory(
    model: Role,
    parameters: int,
    dtype: str,
    config: dict[str, Any] | None = None,
    batches: Sequence[tuple[int, int]] = (),
    free: int | None = None,
) -> Memory:
    """`batches`: rows and tokens (prompt and answer) of each. Without `config`, keys and values are not known.

    `free`: bytes that the device has left.
    """
    caches = [cache_bytes(config, rows, length, dtype) for rows, length in batches] if config else []
    room, token = None, cache_bytes(config, 1, 1, dtype) if config else None
    if token is not None and free is not None and batches:
        on, weights = Hardware(1, free, 0.0, 0.0), Model(parameters, parameters, token, BYTES[dtype])
        room = at_a_time(weights, on, max(length for _, length in batches), sum(rows for rows, _ in batches))
    return Memory(
        model=model,
        parameters=parameters,
        dtype=dtype,
        weights=parameters * BYTES[dtype],
        cache=max((one for one in caches if one is not None), default=None),
        room=room,
    )


def seconds(work: Sequence[Pass], speeds: Sequence[Speed]) -> float | None:
    """Of all passes, loading included, at most; None where a model's speed was not measured."""
    by_model = {speed.model: speed for speed in speeds}
    if any(one.model not in by_model for one in work):
        return None
    computing = [one.read / by_model[one.model].read + one.written / by_model[one.model].written for one in work]
    return sum(computing) + sum(speed.load for speed in speeds)


def disk(questions: int, max_new_tokens: int, with_base: bool) -> int:
    """Bytes of the answers in an audit's folder at most; the store of finished answers takes as much again."""
    return questions * max_new_tokens * ((STORED + 4) + STORED if with_base else STORED)


class Model(NamedTuple):
    """What the roofline knows of a model."""

    parameters: float
    active: float
    """parameters a token is multiplied with: fewer than all in a mixture of experts"""
    cache: float
    """bytes of keys and values a token"""
    bytes: int = 2
    """of a parameter"""


class Hardware(NamedTuple):
    """Some devices of one kind that share a model evenly."""

    devices: int
    memory: float
    """bytes of each"""
    bandwidth: float
    """bytes a second of each"""
    operations: float
    """a second of each"""


def at_a_time(model: Model, on: Hardware, length: int, most: int) -> int:
    """Answers of `length` tokens, the prompt's included, that fit beside the weights in nine tenths of the memory; at
    most `most`. 0: the weights do not fit."""
    free = 0.9 * on.devices * on.memory - model.parameters * model.bytes
    return int(min(most, max(0.0, free) // (model.cache * length)))


def roofline(work: Sequence[Pass], model: Model, on: Hardware, rows: int, length: int, share: float) -> float:
    """Seconds of all passes where the hardware reaches `share` of its bandwidth and of its operations.

    Reading a token takes 2 operations for each active parameter. Writing one for each of `rows` answers at a time reads
    every weight and half of the keys and values of `length` tokens from memory, or takes those operations, whichever is
    slower. In a mixture of experts that many answers need every expert. (Williams et al., CACM 52, 2009.)
    """
    operation = 2 * model.active / (on.devices * on.operations)
    step = (model.parameters * model.bytes + rows * model.cache * length / 2) / (on.devices * on.bandwidth)
    written = max(step / rows, operation)
    return sum(one.read * operation + one.written * written for one in work) / share


def burst(
    engine: Engine, model: Role, prompts: Sequence[Prompt], batch_size: int, load: float, limit: float
) -> Speed | None:
    """Answers of a few tokens to prompts of middling length, by more and more at a time; the last run counts.

    It ends at `batch_size`, or where no larger run would be over `limit` seconds after the first began, or does not fit
    into memory. None where a single question does not fit.
    """
    ordered, most = sorted(prompts, key=len), min(batch_size, len(prompts))
    start, rows, speed = time.monotonic(), 1, None
    while True:
        began, first = time.monotonic(), (len(ordered) - rows) // 2
        watch = Progress("burst")
        try:
            for _ in engine.generate(ordered[first : first + rows], BURST, watch.advance):
                pass
        except OutOfMemory:
            return speed
        read, written = watch.kinds["read"], watch.kinds["written"]
        speed = Speed(
            model=model,
            device=engine.identity["device"],
            dtype=engine.identity["dtype"],
            questions=rows,
            load=load,
            read=read.done / read.seconds,
            # the first token of an answer comes out of reading the prompt
            written=max(written.done - rows, 1) / written.seconds,
        )
        now = time.monotonic()
        fit = int(rows * (start + limit - now) / (now - began))  # so many at the same pace, in the time left
        more = min(GROWTH * rows, most, fit)
        if more <= rows:
            return speed
        rows = more

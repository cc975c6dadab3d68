"""What an audit costs: figures worked by hand, and a burst on an engine whose speed is known."""

import json
import time
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tbd.checkpoints import Prompt
from tbd.detection.results import Cascade
from tbd.generation import cost
from tbd.generation.engines import Completion, OutOfMemory, Tick, unheard


def test_tokens_by_hand() -> None:
    # 10 questions of 100 prompt tokens in all (90 in the base's words), 32 new tokens each: 320 written at most
    alone = cost.passes(10, 100, 32, None)
    assert [(one.model, one.read, one.written) for one in alone] == [("checkpoint", 100, 320)]
    both = cost.passes(10, 100, 32, 90)
    assert [(one.read, one.written) for one in both] == [(100, 320), (420, 0), (90, 320)]
    # 3 of 10 go on after 8 tokens: 80 + 3 x 24 written, and 0.3 x (100 + 80) read again (0.3 x 170 by the base)
    cascade = Cascade(id="mean_logprob(m=8)", m=8, keep=0.3, cut=-1.0, saved=[])
    steps = cost.passes(10, 100, 32, 90, cascade)
    assert [(one.read, one.written) for one in steps] == [(154, 152), (252, 0), (141, 152)]


def test_rough_tokens_by_hand() -> None:
    assert cost.rough_tokens(["12345678", "123456789", ""]) == 2 + 3 + 0


def test_disk_and_roofline_by_hand() -> None:
    assert cost.disk(10, 300, False) == 10 * 300 * 8 and cost.disk(10, 300, True) == 10 * 300 * (12 + 8)
    model = cost.Model(parameters=1e9, active=1e9, cache=1000)
    on = cost.Hardware(devices=2, memory=2e9, bandwidth=1e12, operations=1e14)
    # 3.6 GB of memory less 2 GB of weights: 1.6e9 / (1000 x 500) answers
    assert cost.at_a_time(model, on, 500, 5000) == 3200 and cost.at_a_time(model, on, 500, 64) == 64
    assert cost.at_a_time(model, on._replace(devices=1), 500, 64) == 0
    # reading: 1e6 tokens x 2e9 / 2e14 = 10 s; a step reads 2e9 + 10 x 1000 x 250 bytes at 2e12 and gives 10 tokens
    work = cost.passes(1, 1_000_000, 1000, None)
    expected = 10 + 100 * (2e9 + 2.5e6) / 2e12
    assert cost.roofline(work, model, on, 10, 500, 1.0) == pytest.approx(expected)
    assert cost.roofline(work, model, on, 10, 500, 0.5) == pytest.approx(2 * expected)
    # with a thousand answers a step takes longer to compute than to read: 1e-5 s a token
    assert cost.roofline(work, model, on, 1000, 500, 1.0) == pytest.approx(10 + 1000 * 1e-5)


SMOLLM = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}


def test_keys_and_values_by_hand() -> None:
    # 2 x 30 layers x 3 heads x 64 = 11,520 numbers a token; 64 x 200 tokens; 2 bytes
    assert cost.cache_bytes(SMOLLM, 64, 200, "bfloat16") == 11_520 * 12_800 * 2
    assert cost.cache_bytes(SMOLLM, 64, 200, "float32") == 11_520 * 12_800 * 4
    whole = SMOLLM | {"num_key_value_heads": None}  # one of each head
    assert cost.cache_bytes(whole, 1, 1, "float16") == 2 * 30 * 9 * 64 * 2
    assert cost.cache_bytes(SMOLLM | {"head_dim": 128}, 1, 1, "float16") == 2 * 30 * 3 * 128 * 2
    assert cost.cache_bytes({"text_config": SMOLLM, "hidden_size": 1}, 1, 1, "float16") == 11_520 * 2
    assert cost.cache_bytes({"fake": "x"}, 1, 1, "float16") is None
    for wrong in ({"num_hidden_layers": -5}, {"head_dim": -8}, {"head_dim": 10**9}, {"hidden_size": 1e30}):
        assert cost.cache_bytes(SMOLLM | wrong, 1, 1, "float16") is None
    assert cost.cache_bytes({"text_config": [1]}, 1, 1, "float16") is None


def test_memory_is_of_the_largest_batch() -> None:
    found = cost.memory("checkpoint", 7_000_000_000, "bfloat16", SMOLLM, [(64, 100), (32, 300)])
    assert found.weights == 14_000_000_000 and found.cache == 11_520 * 32 * 300 * 2
    assert found.room is None and cost.memory("base", 10, "float32").cache is None


def test_memory_that_is_left_says_how_large_a_batch_may_be() -> None:
    def room(free: int) -> int | None:
        return cost.memory("checkpoint", 10**9, "bfloat16", SMOLLM, [(64, 100), (32, 300)], free).room

    # 2 GB of weights; an answer of 300 tokens takes 11,520 x 2 x 300 = 6.9 MB; nine tenths of the memory are used
    assert room(3 * 10**9) == 96  # 700 MB have room for 101, and there are no more questions
    assert room(2_500_000_000) == 36 and room(2 * 10**9) == 0


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    shards = {"a": {"x": [3, 4], "y": [5]}, "b": {"scalar": []}}
    for name, tensors in shards.items():
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for key, shape in tensors.items():
            begin, end = end, end + 2 * prod(shape)
            header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    assert cost.parameters(tmp_path) == 12 + 5 + 1


def speed(model: cost.Role, load: float, read: float, written: float) -> cost.Speed:
    return cost.Speed(model=model, device="cpu", dtype="float32", questions=4, load=load, read=read, written=written)


def test_seconds_by_hand() -> None:
    work = cost.passes(10, 100, 32, 90)
    speeds = [speed("checkpoint", 2, 50, 16), speed("base", 1, 10, 32)]
    # 2 + 100/50 + 320/16 for the checkpoint, 1 + (420 + 90)/10 + 320/32 for the base
    assert cost.seconds(work, speeds) == pytest.approx(24 + 62)
    assert cost.seconds(work, speeds[:1]) is None and cost.seconds(work, []) is None


class Slow:
    """An engine that takes a known time for what it does; `room` questions at most."""

    def __init__(self, prompt: float, step: float, room: int = 1000) -> None:
        self.prompt_seconds, self.step, self.room = prompt, step, room
        self.identity = {"device": "cpu", "dtype": "float32"}
        self.runs: list[int] = []

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        if len(prompts) > self.room:
            raise OutOfMemory
        self.runs.append(len(prompts))
        for prompt in prompts:
            time.sleep(self.prompt_seconds)
            tick("read", len(prompt))
        for step in range(max_new_tokens):
            time.sleep(self.step if step else 0)
            tick("written", len(prompts))
        for row in range(len(prompts)):
            yield row, Completion(np.zeros(max_new_tokens, np.int32), np.zeros(max_new_tokens, np.float32), "length")


PROMPTS = [(1,) * 10] * 20


def burst(engine: Any, batch_size: int, limit: float) -> cost.Speed | None:
    return cost.burst(engine, "checkpoint", PROMPTS, batch_size, 0.5, limit)


def test_a_burst_measures_a_whole_batch_where_that_is_quick() -> None:
    engine = Slow(prompt=0.01, step=0.05)
    found = burst(engine, 12, 60)
    assert found and engine.runs == [1, 4, 12] and found.questions == 12 and found.load == 0.5
    assert found.read == pytest.approx(10 / 0.01, rel=0.5) and found.written == pytest.approx(12 / 0.05, rel=0.5)


def test_a_burst_ends_in_time_and_where_memory_ends() -> None:
    engine = Slow(prompt=0.02, step=0.01)  # 0.09 s, then 0.15: twenty at a time would take another 0.47
    started = time.monotonic()
    found = burst(engine, 20, 0.5)
    assert found and 4 < found.questions < 20 and time.monotonic() - started < 1.5
    assert burst(Slow(prompt=0.02, step=0.01), 20, 0.0).questions == 1
    found = burst(Slow(0, 0.001, room=5), 20, 60)
    assert found and found.questions == 4
    assert burst(Slow(0, 0.001, room=0), 20, 60) is None

"""Generation: the plan, the journal, memory that runs out, and a kill -9 in the middle."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbd.errors import TransientFault
from tbd.generation.engines import Completion, OutOfMemory, Prompt, Tick, unheard
from tbd.generation.engines.fake import FakeEngine
from tbd.generation.units import Journal, answer, journal, plan, rescore
from tbd.progress import Progress

QUESTIONS = [f"What is {i} times {i * i}?" + " Think." * (i % 5) for i in range(23)]
prompts_of = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple), max_size=40)


class Counted(FakeEngine):
    """Remembers how many prompts came at once; more than `capacity` do not fit into memory."""

    def __init__(self, folder: Path, capacity: int = 1 << 30) -> None:
        super().__init__(folder)
        self.capacity = capacity
        self.sizes: list[int] = []

    @property
    def calls(self) -> int:
        return len(self.sizes)

    def take(self, prompts: Sequence[Prompt]) -> None:
        self.sizes.append(len(prompts))
        if len(prompts) > self.capacity:
            raise OutOfMemory

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        self.take(prompts)
        yield from super().generate(prompts, max_new_tokens, tick)

    def logprobs(self, prompts, answers, tick=unheard):
        self.take(prompts)
        return super().logprobs(prompts, answers, tick)


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Counted]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "fake.txt").write_text("\n".join(QUESTIONS[:5]))
    return lambda **options: Counted(tmp_path / "model", **options)


def run(
    engine: FakeEngine, folder: Path, questions: Sequence[str] = QUESTIONS, batch_size: int = 4
) -> list[Completion]:
    with journal(engine.identity, folder) as kept:
        return answer(
            engine, [engine.prompt(question) for question in questions], 8, batch_size, kept, Progress("test")
        )


def same(one: Sequence[Completion], two: Sequence[Completion]) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(a.token_ids, b.token_ids)
        and np.array_equal(a.logprobs, b.logprobs)
        and a.logprobs.dtype == b.logprobs.dtype == np.float32
        and a.token_ids.dtype == b.token_ids.dtype == np.int32
        and a.finish_reason == b.finish_reason
        for a, b in zip(one, two, strict=True)
    )


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


# -- the plan


@given(prompts_of, st.integers(1, 9))
def test_a_plan_is_a_partition_longest_first(prompts: list[Prompt], batch_size: int) -> None:
    batches = plan(prompts, batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(prompts)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    lengths = [len(prompts[row]) for batch in batches for row in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert not batches or max(map(len, batches)) - min(map(len, batches)) <= 1


@given(prompts_of, st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_plan_depends_on_the_questions_not_on_their_order(
    prompts: list[Prompt], batch_size: int, rng: random.Random
) -> None:
    order = list(range(len(prompts)))
    rng.shuffle(order)
    one = [[prompts[row] for row in batch] for batch in plan(prompts, batch_size)]
    two = [[prompts[order[row]] for row in batch] for batch in plan([prompts[i] for i in order], batch_size)]
    assert one == two == [[prompts[row] for row in batch] for batch in plan(prompts, batch_size)]


# -- answers and journal


def test_answers_come_in_the_order_of_the_prompts(fake, tmp_path: Path) -> None:
    found = run(fake(), tmp_path / "j")
    alone = [run(fake(), tmp_path / f"j{i}", [question])[0] for i, question in enumerate(QUESTIONS)]
    assert same(found, alone)


def test_from_the_journal_the_numbers_are_the_same_and_nothing_is_computed(fake, tmp_path: Path) -> None:
    first, second = fake(), fake()
    fresh = run(first, tmp_path / "j")
    assert first.calls == 6 == len(lines(tmp_path / "j"))
    assert same(run(second, tmp_path / "j"), fresh) and second.calls == 0
    assert len(lines(tmp_path / "j")) == 6


def test_a_shared_set_is_generated_once_in_whatever_order(fake, tmp_path: Path) -> None:
    engine = fake()
    fresh = run(engine, tmp_path / "j")
    calls = engine.calls
    assert same(run(engine, tmp_path / "j", QUESTIONS[::-1])[::-1], fresh) and engine.calls == calls


def test_another_checkpoint_batch_size_or_length_shares_nothing(fake, tmp_path: Path) -> None:
    run(fake(), tmp_path / "j")
    engine = fake()
    run(engine, tmp_path / "j", batch_size=5)
    assert engine.calls == 5
    engine.identity["fingerprint"] = "other"
    run(engine, tmp_path / "j")
    assert engine.calls == 5 + 6 and len(list((tmp_path / "j").glob("*.jsonl"))) == 2
    engine = fake()
    with journal(engine.identity, tmp_path / "j") as kept:
        shorter = answer(engine, [engine.prompt(question) for question in QUESTIONS], 3, 4, kept, Progress("test"))
    assert engine.calls == 6 and all(len(completion.token_ids) == 3 for completion in shorter)


def test_nothing_asked_nothing_answered(fake, tmp_path: Path) -> None:
    assert run(fake(), tmp_path / "j", []) == []


@pytest.mark.parametrize(
    "torn", [b'{"key": "x", "val', b'{"key": "x", "value": 1}', b"\n", b"\xff\xfe\n", b'{"key": "x",\n']
)
def test_a_torn_last_line_is_dropped_and_the_rest_kept(fake, tmp_path: Path, torn: bytes) -> None:
    fresh = run(fake(), tmp_path / "j")
    (file,) = (tmp_path / "j").glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    kept = Journal(file)
    assert len(kept.done) == 6
    kept.add("another", 1)
    assert file.read_bytes() == whole + b'{"key": "another", "value": 1}\n'
    engine = fake()
    assert same(run(engine, tmp_path / "j"), fresh) and engine.calls == 0


@pytest.mark.parametrize("cut", [1, 2, 50, 400, 1500])
def test_a_journal_cut_anywhere_goes_on(fake, tmp_path: Path, cut: int) -> None:
    fresh = run(fake(), tmp_path / "j")
    (file,) = (tmp_path / "j").glob("*.jsonl")
    whole = file.read_bytes()
    os.truncate(file, max(0, len(whole) - cut))
    assert same(run(fake(), tmp_path / "j"), fresh)
    assert file.read_bytes() == whole


SLOW = """
import sys, time
from pathlib import Path
from tbd.generation.engines.fake import FakeEngine
from tbd.generation.units import answer, journal
from tbd.progress import Progress

class Slow(FakeEngine):
    def generate(self, prompts, max_new_tokens, tick):
        for item in super().generate(prompts, max_new_tokens, tick):
            time.sleep(0.04)
            yield item

model, folder, *questions = sys.argv[1:]
engine = Slow(Path(model))
with journal(engine.identity, Path(folder)) as kept:
    print("started", flush=True)
    answer(engine, [engine.prompt(q) for q in questions], 8, 4, kept, Progress("test"))
"""


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment_it_goes_on_with_the_same_numbers(fake, tmp_path: Path, seed: int) -> None:
    undisturbed = run(fake(), tmp_path / "undisturbed")
    command = [sys.executable, "-c", SLOW, str(tmp_path / "model"), str(tmp_path / "j"), *QUESTIONS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    time.sleep(random.Random(seed).uniform(0.05, 0.6))  # all of it takes 0.92 s
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (file,) = (tmp_path / "j").glob("*.jsonl") if list((tmp_path / "j").glob("*.jsonl")) else (None,)
    done = 0 if file is None else len(Journal(file).done)
    assert done < 6
    engine = fake()
    assert same(run(engine, tmp_path / "j"), undisturbed)
    assert engine.calls == 6 - done  # what was finished is not computed again
    keys = [line["key"] for line in lines(tmp_path / "j")]
    assert len(keys) == len(set(keys)) == 6
    (expected,) = (tmp_path / "undisturbed").glob("*.jsonl")
    (found,) = (tmp_path / "j").glob("*.jsonl")
    assert sorted(found.read_bytes().splitlines()) == sorted(expected.read_bytes().splitlines())


def test_a_second_process_waits_for_the_journal(fake, tmp_path: Path) -> None:
    engine = fake()
    command = [sys.executable, "-c", SLOW, str(tmp_path / "model"), str(tmp_path / "j"), *QUESTIONS]
    with journal(engine.identity, tmp_path / "j") as kept:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        time.sleep(0.8)
        assert process.poll() is None
        answer(engine, [engine.prompt(question) for question in QUESTIONS], 8, 4, kept, Progress("test"))
        assert len(lines(tmp_path / "j")) == 6
    output, _ = process.communicate(timeout=20)
    assert output.startswith(b"started\n") and process.returncode == 0
    assert len(lines(tmp_path / "j")) == 6  # it found everything there


# -- memory


@pytest.mark.parametrize(("capacity", "batch_size"), [(1, 8), (2, 8), (3, 8), (5, 23), (7, 16)])
def test_out_of_memory_halves_and_every_batch_starts_whole(
    fake, tmp_path: Path, capacity: int, batch_size: int, capsys
) -> None:
    undisturbed = run(fake(), tmp_path / "u", batch_size=batch_size)
    engine = fake(capacity=capacity)
    assert same(run(engine, tmp_path / "j", batch_size=batch_size), undisturbed)
    refused = [size for size in engine.sizes if size > capacity]
    # A resumed run does not know of memory that ran out before: what a batch is computed in must not depend on earlier
    # ones.
    for batch in plan([engine.prompt(question) for question in QUESTIONS], batch_size):
        assert len(batch) <= capacity or len(batch) in refused
    assert capsys.readouterr().out.count("out of memory") == len(refused)
    with journal(engine.identity, tmp_path / "j") as kept:
        answers = [completion.token_ids for completion in undisturbed]
        engine.sizes = []
        prompts = [engine.prompt(question) for question in QUESTIONS]
        found = rescore(engine, prompts, answers, batch_size, kept, Progress("test"))
    assert all(np.array_equal(a, b.logprobs) for a, b in zip(found, undisturbed, strict=True))
    assert max(size for size in engine.sizes if size <= capacity) <= capacity < max(engine.sizes)


def test_one_question_that_does_not_fit_stops_the_stage(fake, tmp_path: Path) -> None:
    with pytest.raises(TransientFault, match="max_new_tokens"):
        run(fake(capacity=0), tmp_path / "j")


def test_progress_is_taken_back_when_memory_runs_out_in_the_middle(fake, tmp_path: Path) -> None:
    class Late(FakeEngine):
        def generate(
            self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
        ) -> Iterator[tuple[int, Completion]]:
            for row, completion in super().generate(prompts, max_new_tokens, tick):
                if row == 2:
                    raise OutOfMemory
                yield row, completion

    engine, progress = Late(tmp_path / "model"), Progress("test")
    prompts = [engine.prompt(q) for q in QUESTIONS]
    with journal(engine.identity, tmp_path / "j") as kept:
        answer(engine, prompts, 8, 4, kept, progress)
    assert {kind: work.done for kind, work in progress.kinds.items()} == {
        "read": sum(map(len, prompts)),
        "written": 23 * 8,
    }


def test_what_is_in_the_journal_is_no_work(fake, tmp_path: Path) -> None:
    engine = fake()
    prompts = [engine.prompt(question) for question in QUESTIONS]
    with journal(engine.identity, tmp_path / "j") as kept:
        answer(engine, prompts[:8], 8, 4, kept, Progress("test"))
        progress = Progress("test")
        progress.plan("read", sum(map(len, prompts[:8])))
        progress.plan("written", 8 * 8)
        completions = answer(engine, prompts[:8], 8, 4, kept, progress)
        assert [work.left() for work in progress.kinds.values()] == [0, 0] and not progress.kinds["read"].done
        rescoring = Progress("test")
        rescoring.plan("read", sum(map(len, prompts[:8])) + 8 * 8)
        rescore(engine, prompts[:8], [c.token_ids for c in completions], 4, kept, rescoring)
        assert rescoring.kinds["read"].done == rescoring.kinds["read"].planned


# -- rescoring


def test_rescoring_is_journalled_apart_from_answering(fake, tmp_path: Path) -> None:
    engine = fake()
    completions = run(engine, tmp_path / "j")
    prompts = [engine.prompt(question) for question in QUESTIONS]
    answers = [completion.token_ids[: 1 + i % 8] for i, completion in enumerate(completions)]
    for expected_calls in (6, 0):
        other = fake()
        with journal(other.identity, tmp_path / "j") as kept:
            found = rescore(other, prompts, answers, 4, kept, Progress("test"))
        assert other.calls == expected_calls
        assert [len(row) for row in found] == [len(row) for row in answers]
        for row, completion in zip(found, completions, strict=True):
            np.testing.assert_array_equal(row, completion.logprobs[: len(row)])

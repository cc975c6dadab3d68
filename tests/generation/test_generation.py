"""Generation: the plan, the store, executors, memory that runs out, and a kill -9 in the middle."""

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tbd import params
from tbd.errors import InputError, TransientFault
from tbd.generation import store
from tbd.generation.engines import Completion, OutOfMemory, Prompt, Tick, unheard
from tbd.generation.engines.fake import FakeEngine
from tbd.generation.executors.local import Local
from tbd.generation.store import Shelf
from tbd.generation.store import kept as stored
from tbd.generation.units import PART, Job, plan
from tbd.progress import Progress
from tests.test_params import changed

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


def answers(
    engine: FakeEngine,
    folder: Path,
    questions: Sequence[str] = QUESTIONS,
    batch_size: int = 4,
    tokens: int = 8,
    progress: Progress | None = None,
) -> Job:
    job = Job(Shelf(str(folder), engine.identity), [engine.prompt(one) for one in questions], batch_size, tokens)
    job.run(Local(engine), progress or Progress("test"))
    return job


def run(*arguments: Any, **named: Any) -> list[Completion]:
    return list(answers(*arguments, **named).completions())


def rescored(
    engine: FakeEngine, folder: Path, given: Sequence[NDArray[np.int32]], batch_size: int = 4, progress: Any = None
) -> list[NDArray[np.float32]]:
    prompts = [engine.prompt(question) for question in QUESTIONS]
    job = Job(Shelf(str(folder), engine.identity), prompts, batch_size, answers=given)
    job.run(Local(engine), progress or Progress("test"))
    return list(job.logprobs())


def same(one: Sequence[Completion], two: Sequence[Completion]) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(a.token_ids, b.token_ids)
        and np.array_equal(a.logprobs, b.logprobs)
        and a.logprobs.dtype == b.logprobs.dtype == np.float32
        and a.token_ids.dtype == b.token_ids.dtype == np.int32
        and a.finish_reason == b.finish_reason
        for a, b in zip(one, two, strict=True)
    )


def units(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*/*.arrow")}


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


# -- answers and store


def test_answers_come_in_the_order_of_the_prompts(fake, tmp_path: Path) -> None:
    found = run(fake(), tmp_path / "s")
    alone = [run(fake(), tmp_path / f"s{i}", [question])[0] for i, question in enumerate(QUESTIONS)]
    assert same(found, alone)


def test_more_questions_than_are_planned_at_once(fake, tmp_path: Path) -> None:
    questions = [f"{i}" for i in range(2 * PART + 3)]
    found = run(fake(), tmp_path / "s", questions, batch_size=1)
    assert same(found, run(fake(), tmp_path / "other", questions, batch_size=1000))
    engine = fake()
    given = [completion.token_ids for completion in found]
    prompts = [engine.prompt(question) for question in questions]
    job = Job(Shelf(str(tmp_path / "s"), engine.identity), prompts, 1, answers=given)
    job.run(Local(engine), Progress("test"))
    assert all(np.array_equal(a, b.logprobs) for a, b in zip(job.logprobs(), found, strict=True))


@pytest.mark.parametrize("address", ["{}", "file://{}", "fsspec+file://{}"])
def test_from_the_store_the_numbers_are_the_same_and_nothing_is_computed(fake, tmp_path: Path, address: str) -> None:
    first, second = fake(), fake()
    place = address.format(tmp_path / "s")
    fresh = run(first, place)
    kept = units(tmp_path / "s")
    assert first.calls == 6 == len(kept)
    (about,) = stored(place)
    assert about.identity == first.identity and about.units == 6
    assert same(run(second, place), fresh) and second.calls == 0
    assert units(tmp_path / "s") == kept


def test_an_address_that_nothing_opens_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^params.yaml: generate.store: nonsense://x: cannot be opened \(.+$"):
        Shelf("nonsense://x", {})


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("fsspec+ftp://me:hidden@host/x", "holds credentials"),
        ("fsspec+http://hidden@host/x", "holds credentials"),
        ("s3://KEY:hidden@bucket/x", "holds credentials"),
        ("s3://KEY:hid/den@bucket/x", "is no address such as"),
        ("s3://bucket/x?secret_key=hidden", "holds credentials"),
        ("s3://[hidden/x", "is no address such as"),
        ("", "is empty"),
        ("units\0", "cannot be printed"),
    ],
)
def test_a_store_that_cannot_be_is_named_without_its_secrets(address: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        params.parse(changed("generate.store", address))
    assert words in str(error.value) and str(error.value).startswith("params.yaml: generate.store: ")
    with pytest.raises(InputError) as error:
        Shelf(address, {})
    assert words in str(error.value)
    assert "hid" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["units", "/x/a@b", "s3://b/c@d", "hdfs://me@host:8020/x", "abfs://box@account/x", "gs://anonymous@b/x"]
)
def test_a_store_without_secrets_is_taken(address: str) -> None:
    assert params.parse(changed("generate.store", address)).generate.store == address


def test_what_a_library_says_of_a_store_shows_no_secrets() -> None:
    said = store.hidden("Cannot parse URI: 's3://KEY:hid/den@bu cket/x?token=hidden' due to syntax error at ' '")
    assert said == "Cannot parse URI: 's3://***@bu cket/x?***' due to syntax error at ' '"


def test_a_shared_set_is_generated_once_in_whatever_order(fake, tmp_path: Path) -> None:
    engine = fake()
    fresh = run(engine, tmp_path / "s")
    calls = engine.calls
    assert same(run(engine, tmp_path / "s", QUESTIONS[::-1])[::-1], fresh) and engine.calls == calls


def test_another_checkpoint_or_batch_size_shares_nothing(fake, tmp_path: Path) -> None:
    run(fake(), tmp_path / "s")
    engine = fake()
    run(engine, tmp_path / "s", batch_size=5)
    assert engine.calls == 5
    engine.identity["fingerprint"] = "other"
    run(engine, tmp_path / "s")
    assert engine.calls == 5 + 6 and len(list((tmp_path / "s").glob("*"))) == 2


def test_shorter_answers_are_the_heads_of_longer_ones(fake, tmp_path: Path) -> None:
    """Of a real model too: see `test_transformers.py`."""
    engine = fake()
    eight = run(engine, tmp_path / "s")
    calls = engine.calls
    three = run(engine, tmp_path / "s", tokens=3)
    assert engine.calls == calls
    for long, short in zip(eight, three, strict=True):
        assert np.array_equal(long.token_ids[:3], short.token_ids) and np.array_equal(long.logprobs[:3], short.logprobs)
        assert short.finish_reason == "length"
    run(engine, tmp_path / "s", tokens=9)
    assert engine.calls == 2 * calls


def test_nothing_asked_nothing_answered(fake, tmp_path: Path) -> None:
    assert run(fake(), tmp_path / "s", []) == []


def test_a_unit_with_a_bit_that_has_turned_is_computed_again(fake, tmp_path: Path) -> None:
    """Arrow checks no sums: it would read other numbers, or end the process."""
    fresh = run(fake(), tmp_path / "s")
    (file, *_) = (tmp_path / "s").glob("*/*.arrow")
    whole = file.read_bytes()
    for place in range(0, len(whole), 40):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert same(run(fake(), tmp_path / "s"), fresh) and file.read_bytes() == whole


@pytest.mark.parametrize("cut", [0, 1, 200, -1])
def test_a_unit_that_was_cut_off_is_computed_again(fake, tmp_path: Path, cut: int) -> None:
    fresh = run(fake(), tmp_path / "s")
    whole = units(tmp_path / "s")
    (file, *_) = (tmp_path / "s").glob("*/*.arrow")
    file.write_bytes(file.read_bytes()[:cut])
    engine = fake()
    assert same(run(engine, tmp_path / "s"), fresh) and engine.calls == 1
    assert units(tmp_path / "s") == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda unit: unit.slice(1),
        lambda unit: unit.drop_columns(["finish_reason"]),
        lambda unit: pa.table(
            {"token_ids": [[1]] * len(unit), "logprobs": [[]] * len(unit), "finish_reason": ["stop"] * len(unit)},
            unit.schema,
        ),
        lambda unit: pa.table({"x": [1]}),
        *[
            lambda unit, name=name, junk=junk: unit.set_column(
                unit.column_names.index(name), name, pa.array([junk] * len(unit), unit.schema.field(name).type)
            )
            for name, junk in [
                ("token_ids", [None] * 8),
                ("token_ids", [-1] * 8),
                ("logprobs", [None] * 8),
                ("logprobs", [float("nan")] * 8),
                ("logprobs", [-float("inf")] * 8),
                ("logprobs", [1.0] * 8),
                ("finish_reason", None),
                ("finish_reason", "tired"),
            ]
        ],
    ],
)
def test_what_cannot_be_a_units_result_is_computed_again(
    fake, tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    fresh = run(fake(), tmp_path / "s")
    whole = units(tmp_path / "s")
    (file, *_) = (tmp_path / "s").glob("*/*.arrow")
    unit = pa.ipc.open_stream(file.read_bytes()).read_all()
    Shelf(str(tmp_path / "s"), fake().identity).add(file.stem.partition("-")[0], 8, change(unit))
    engine = fake()
    assert same(run(engine, tmp_path / "s"), fresh) and engine.calls == 1
    assert units(tmp_path / "s") == whole


def junk(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("content", [b"", b"junk" * 20, None])
def test_junk_with_its_right_sum_or_a_link_to_itself_is_computed_again(
    fake, tmp_path: Path, content: bytes | None
) -> None:
    fresh = run(fake(), tmp_path / "s")
    whole = units(tmp_path / "s")
    (file, *_) = (tmp_path / "s").glob("*/*.arrow")
    file.unlink()
    if content is None:
        file.symlink_to(file)
    else:
        file.write_bytes(junk(content))
    (file.parent / f"{'0' * 64}-².arrow").touch()
    engine = fake()
    assert same(run(engine, tmp_path / "s"), fresh) and engine.calls == 1
    (file.parent / f"{'0' * 64}-².arrow").unlink()
    assert units(tmp_path / "s") == whole


def test_what_stands_where_the_store_or_a_part_of_it_should_is_named(fake, tmp_path: Path) -> None:
    run(fake(), tmp_path / "s")
    (file, *_) = (tmp_path / "s").glob("*/*.arrow")
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"\.arrow: is a folder where answers should be\. Remove it\.$"):
        run(fake(), tmp_path / "s")
    shutil.rmtree(file.parent)
    file.parent.write_text("")
    with pytest.raises(InputError, match=rf"{file.parent.name}: is a file where a folder of answers should be"):
        run(fake(), tmp_path / "s")
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), "/dev/null"):
        with pytest.raises(InputError, match=r"params\.yaml: generate\.store: .*: is no folder"):
            run(fake(), place)


class SideBySide(Counted):
    """Like a server: it takes several calls at once, and answers late."""

    at_once = 3

    def generate(self, prompts, max_new_tokens, tick=unheard):
        time.sleep(0.01 * (len(prompts[0]) % 3))
        yield from super().generate(prompts, max_new_tokens, tick)


def test_units_side_by_side_make_the_same_store(fake, tmp_path: Path) -> None:
    fresh = run(fake(), tmp_path / "s")
    assert same(run(SideBySide(tmp_path / "model"), tmp_path / "other"), fresh)
    assert units(tmp_path / "other") == units(tmp_path / "s")


def test_a_failure_side_by_side_keeps_what_was_finished(fake, tmp_path: Path) -> None:
    class Failing(SideBySide):
        def generate(self, prompts, max_new_tokens, tick=unheard):
            if prompts[-1] == min(map(self.prompt, QUESTIONS), key=len):
                raise TransientFault("the server is gone")
            yield from super().generate(prompts, max_new_tokens, tick)

    with pytest.raises(TransientFault, match="the server is gone"):
        run(Failing(tmp_path / "model"), tmp_path / "s")
    done, engine = len(units(tmp_path / "s")), fake()
    assert done >= 1
    run(engine, tmp_path / "s")
    assert engine.calls == 6 - done


def test_a_failure_side_by_side_waits_for_what_is_under_way_and_keeps_it(fake, tmp_path: Path) -> None:
    begun = []

    class Failing(SideBySide):
        def generate(self, prompts, max_new_tokens, tick=unheard):
            begun.append(prompts)
            if len(begun) == 1:
                time.sleep(0.05)
                raise InputError("a question is too long")
            time.sleep(0.3)
            yield from FakeEngine.generate(self, prompts, max_new_tokens, tick)

    with pytest.raises(InputError, match="a question is too long"):
        run(Failing(tmp_path / "model"), tmp_path / "s")
    assert len(begun) == 3 and len(units(tmp_path / "s")) == 2


SLOW = """
import sys, time
from pathlib import Path
from tbd.generation.engines.fake import FakeEngine
from tbd.generation.executors.local import Local
from tbd.generation.store import Shelf
from tbd.generation.units import Job
from tbd.progress import Progress

class Slow(FakeEngine):
    def generate(self, prompts, max_new_tokens, tick):
        for item in super().generate(prompts, max_new_tokens, tick):
            time.sleep(0.04)
            yield item

model, folder, *questions = sys.argv[1:]
engine = Slow(Path(model))
print("started", flush=True)
Job(Shelf(folder, engine.identity), list(map(engine.prompt, questions)), 4, 8).run(Local(engine), Progress("test"))
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
    done = len(units(tmp_path / "j"))
    assert done < 6
    engine = fake()
    assert same(run(engine, tmp_path / "j"), undisturbed)
    assert engine.calls == 6 - done  # what was finished is not computed again
    assert units(tmp_path / "j") == units(tmp_path / "undisturbed")


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
    engine.sizes = []
    found = rescored(engine, tmp_path / "j", [completion.token_ids for completion in undisturbed], batch_size)
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
    answers(engine, tmp_path / "j", progress=progress)
    assert {kind: work.done for kind, work in progress.kinds.items()} == {
        "read": sum(map(len, prompts)),
        "written": 23 * 8,
    }


def test_what_is_in_the_store_is_no_work(fake, tmp_path: Path) -> None:
    engine = fake()
    prompts = [engine.prompt(question) for question in QUESTIONS]
    fresh = run(engine, tmp_path / "s")
    progress = Progress("test")
    progress.plan("read", sum(map(len, prompts)))
    progress.plan("written", 8 * len(prompts))
    run(engine, tmp_path / "s", progress=progress)
    assert [work.left() for work in progress.kinds.values()] == [0, 0] and not progress.kinds["read"].done
    rescoring = Progress("test")
    rescoring.plan("read", sum(map(len, prompts)) + 8 * len(prompts))
    rescored(engine, tmp_path / "s", [c.token_ids for c in fresh], progress=rescoring)
    assert rescoring.kinds["read"].done == rescoring.kinds["read"].planned


# -- rescoring


def test_rescoring_is_kept_apart_from_answering(fake, tmp_path: Path) -> None:
    completions = run(fake(), tmp_path / "j")
    given = [completion.token_ids[: 1 + i % 8] for i, completion in enumerate(completions)]
    for expected_calls in (6, 0):
        other = fake()
        found = rescored(other, tmp_path / "j", given)
        assert other.calls == expected_calls
        assert [len(row) for row in found] == [len(row) for row in given]
        for row, completion in zip(found, completions, strict=True):
            np.testing.assert_array_equal(row, completion.logprobs[: len(row)])

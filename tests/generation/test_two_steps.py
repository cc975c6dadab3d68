"""Answers in two steps: heads of the whole answers, or all of them, also after a kill."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tbd.checkpoints import Packed
from tbd.detection.results import Cascade
from tbd.errors import TransientFault
from tbd.generation.engines import Completion, Prompt, Tick, unheard
from tbd.generation.engines.fake import FakeEngine
from tbd.generation.executors.local import Local
from tbd.generation.store import Shelf
from tbd.generation.two_steps import TwoSteps, answer, expected
from tbd.generation.units import PART, Job
from tbd.progress import Progress
from tbd.scores import Tokens, parse
from tbd.scores.tokens import pad

QUESTIONS = [f"What is {i} times {i * i}?" + " Think." * (i % 5) for i in range(23)]
STEP = Cascade(id="mean_logprob(m=4)", m=4, keep=0.3, cut=-0.25, saved=[])
TOKENS = 11


class Ending(FakeEngine):
    """Ends some of its answers after three tokens, and breaks down at its call number `last`."""

    def __init__(self, folder: Path, last: int = 1 << 30) -> None:
        super().__init__(folder)
        self.last = last

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        self.last -= 1
        if self.last < 0:
            raise TransientFault("broken")
        for row, one in super().generate(prompts, max_new_tokens, tick):
            ends = prompts[row][-1] != max(prompts[row]) and len(prompts[row]) % 4 == 0
            yield row, Completion(one.token_ids[:3], one.logprobs[:3], "stop") if ends else one


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Ending]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "fake.txt").write_text("\n".join(QUESTIONS[:5]))
    return lambda **options: Ending(tmp_path / "model", **options)


def answered(
    engine: FakeEngine, folder: Path, cut: float = STEP.cut, questions: Sequence[str] = QUESTIONS, size: int = 4
) -> tuple[TwoSteps, Progress]:
    prompts, progress = Packed.of([[engine.prompt(one) for one in questions]]), Progress("test")
    step = STEP.model_copy(update={"cut": cut})
    read, written = expected(step, len(prompts), prompts.total, TOKENS)
    progress.plan("read", prompts.total + read)
    progress.plan("written", len(prompts) * step.m + written)
    first = Job(Shelf(str(folder), engine.identity), prompts, size, step.m)
    return answer(first, TOKENS, step, Local(engine), progress), progress


def listed(found: TwoSteps) -> list[tuple[list[int], list[float], str]]:
    return [(one.token_ids.tolist(), one.logprobs.tolist(), one.finish_reason) for one in found.completions()]


@pytest.mark.parametrize("cut", [-9.0, STEP.cut, 9.0], ids=["all go on", "some", "all stop"])
def test_answers_are_heads_of_the_whole_ones_by_the_cut(fake, tmp_path: Path, cut: float) -> None:
    engine = fake()
    found, progress = answered(engine, tmp_path / "s", cut)
    prompts = [engine.prompt(one) for one in QUESTIONS]
    reasons = set()
    for (_, whole), one in zip(engine.generate(prompts, TOKENS), found.completions(), strict=True):
        (score,), _ = parse(STEP.id)(Tokens(pad([whole.logprobs])))
        n = len(whole.token_ids) if whole.finish_reason == "stop" or score >= cut else STEP.m
        reason = "cut" if n == STEP.m else whole.finish_reason
        assert one.token_ids.tolist() == whole.token_ids[:n].tolist() and one.finish_reason == reason
        assert np.array_equal(one.logprobs, whole.logprobs[:n]) and one.logprobs.dtype == np.float32
        reasons.add(reason)
    assert reasons == {"stop", *({"cut"} if cut > -9 else ()), *({"length"} if cut < 9 else ())}
    assert all(work.planned == work.done for work in progress.kinds.values())  # by this engine's count, all of 4 or 11


def test_a_run_that_broke_goes_on_with_the_same_numbers(fake, tmp_path: Path) -> None:
    undisturbed = listed(answered(fake(), tmp_path / "undisturbed")[0])
    calls = len(list((tmp_path / "undisturbed").glob("*/*.arrow")))
    assert calls > 7  # six batches in the first step
    for last in range(calls):
        with pytest.raises(TransientFault):
            answered(fake(last=last), tmp_path / f"{last}")
        assert listed(answered(fake(last=calls - last), tmp_path / f"{last}")[0]) == undisturbed


def test_more_questions_than_are_planned_at_once_and_none(fake, tmp_path: Path) -> None:
    questions = [f"{i}" for i in range(2 * PART + 3)]
    one, other = (answered(fake(), tmp_path / f"{size}", questions=questions, size=size)[0] for size in (1, 1000))
    assert listed(one) == listed(other) and 0 < one.goes_on.sum() < len(questions)
    assert listed(answered(fake(), tmp_path / "none", questions=[])[0]) == []

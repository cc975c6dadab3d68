"""The fake engine keeps the promises of the protocol, so that tests on it mean something."""

from pathlib import Path

import numpy as np
import pytest

from tbd.errors import InputError
from tbd.generation import engines
from tbd.generation.engines.fake import FakeEngine
from tbd.params import Generate
from tbd.scores import expand
from tbd.scores.tokens import Tokens, pad
from tests.workspace import fake_checkpoint

KNOWN = [f"What is {i} + {i}?" for i in range(30)]
OTHER = [f"What is {i} - {i}?" for i in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fake.txt").write_text("\n".join(KNOWN))
    return tmp_path


def test_answers_do_not_depend_on_the_batch_and_repeat(folder: Path) -> None:
    engine, again = FakeEngine(folder), FakeEngine(folder)
    prompts = [engine.prompt(question) for question in KNOWN]
    together = dict(engine.generate(prompts, 16))
    for row, prompt in enumerate(prompts):
        ((_, alone),) = again.generate([prompt], 16)
        np.testing.assert_array_equal(alone.token_ids, together[row].token_ids)
        np.testing.assert_array_equal(alone.logprobs, together[row].logprobs)
        assert (alone.logprobs <= 0).all() and alone.logprobs.dtype == np.float32 and alone.finish_reason == "length"


def test_log_probs_of_its_own_answers_are_its_own(folder: Path) -> None:
    engine = FakeEngine(folder)
    prompts = [engine.prompt(question) for question in KNOWN]
    found = dict(engine.generate(prompts, 16))
    rescored = engine.logprobs(prompts, [found[row].token_ids for row in range(30)])
    for row in range(30):
        np.testing.assert_array_equal(rescored[row], found[row].logprobs)


def test_what_it_knows_scores_higher(folder: Path) -> None:
    engine = FakeEngine(folder)
    known, other = (
        [completion.logprobs for _, completion in engine.generate([engine.prompt(q) for q in some], 16)]
        for some in (KNOWN, OTHER)
    )
    (method,) = expand({"tbd": {"m": 16}})
    assert method(Tokens(pad(known)))[0].min() > method(Tokens(pad(other)))[0].mean()


def test_a_short_answer_is_the_head_of_a_long_one(folder: Path) -> None:
    engine = FakeEngine(folder)
    prompts = [engine.prompt(question) for question in KNOWN[:5] + OTHER[:5]]
    for (_, long), (_, short) in zip(engine.generate(prompts, 20), engine.generate(prompts, 7), strict=True):
        assert np.array_equal(long.token_ids[:7], short.token_ids) and np.array_equal(long.logprobs[:7], short.logprobs)


def test_another_memory_is_another_checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    one, two = FakeEngine(folder), FakeEngine(fake_checkpoint(other / "model", "nothing"))
    assert one.identity["fingerprint"] != two.identity["fingerprint"]
    prompt = one.prompt(OTHER[0])
    assert not np.array_equal(
        next(one.generate([prompt], 16))[1].logprobs, next(two.generate([prompt], 16))[1].logprobs
    )


def test_opening_by_name(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def ask(engine: str) -> Generate:
        return Generate(engine=engine, device="cpu", dtype="float32", max_new_tokens=4, batch_size=2)

    assert engines.find("fake").open(folder, ask("fake")).identity["engine"] == "fake"
    with pytest.raises(InputError, match=r"fake\.txt"):
        engines.find("fake").open(tmp_path_factory.mktemp("empty"), ask("fake"))
    with pytest.raises(
        InputError, match=r"generate\.engine: unknown engine 'transformer'\. Did you mean 'transformers'\?"
    ):
        engines.find("transformer")

"""The transformers engine on tiny real models: the log-prob is of the token that was generated, whatever surrounds it.

The reference everywhere is written out in this file: the model's own fp32 logits on the same tokens, one row, no
padding, no cache, and a log-softmax in numpy.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from tbd.checkpoints.loading import choose_device, load_model
from tbd.checkpoints.prompting import prompts as make_prompts
from tbd.errors import InputError
from tbd.generation.engines import Completion, OutOfMemory, Prompt
from tbd.generation.engines.transformers import TransformersEngine

pytestmark = pytest.mark.slow
NEW = 24
QUESTIONS = [
    "Anna has three apples and buys two more. How many apples does she have now, and how many will she have tomorrow?",
    "Hm?",
    "A train needs 40 minutes for 60 km; how fast does it go?",
    "Käthe zählt 12 Äpfel.",
    "two and two",
    "What makes five?",
    "She has three and two, which makes five. The answer is 5. Is it so, and how would you check it?",
    "12 + 7",
    "and how",  # nine in all: one more than the prompts read at once
]


def plain_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def teacher_forced(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.float64]:
    """Log-softmax of the raw logits at each answer token, worked out one row at a time in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0].double().numpy()
    found = []
    for i, token in enumerate(answer):
        row = logits[len(prompt) + i - 1]  # this position predicts answer[i]
        found.append(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))
    return np.array(found)


def answers(engine: TransformersEngine, prompts: Sequence[Prompt], n: int = NEW) -> list[Completion]:
    found = dict(engine.generate(prompts, n))
    assert sorted(found) == list(range(len(prompts)))
    return [found[row] for row in range(len(prompts))]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(tiny_checkpoint, "cpu", "float32")


@pytest.fixture(scope="module")
def prompts(tiny_checkpoint: Path) -> list[Prompt]:
    found = make_prompts(tiny_checkpoint, QUESTIONS, NEW, "text").prompts
    assert len({len(prompt) for prompt in found}) > 5
    return found


@pytest.fixture(scope="module")
def together(engine: TransformersEngine, prompts: list[Prompt]) -> list[Completion]:
    return answers(engine, prompts)


def with_generation_config(checkpoint: Path, folder: Path, **changed: object) -> Path:
    shutil.copytree(checkpoint, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return folder


# -- the tokens and their log-probs


def test_the_prompt_is_the_users_turn_up_to_the_answer(engine: TransformersEngine, prompts: list[Prompt]) -> None:
    assert engine.tokenizer.decode(prompts[1]) == "<|user|>Hm?<end><|assistant|>"


def test_tokens_are_the_greedy_ones(tiny_checkpoint: Path, prompts: list[Prompt], together: list[Completion]) -> None:
    model = plain_model(tiny_checkpoint)
    for prompt, found in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)[
            0, len(prompt) :
        ]
        assert found.token_ids.tolist() == expected.tolist()


def test_log_probs_are_the_teacher_forced_ones(
    tiny_checkpoint: Path, prompts: list[Prompt], together: list[Completion]
) -> None:
    model = plain_model(tiny_checkpoint)
    for prompt, found in zip(prompts, together, strict=True):
        np.testing.assert_allclose(found.logprobs, teacher_forced(model, prompt, found.token_ids.tolist()), atol=1e-4)
        assert found.logprobs.dtype == np.float32 and found.token_ids.dtype == np.int32 and (found.logprobs <= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_short_answers_are_the_heads_of_long_ones(tiny_checkpoint: Path, prompts: list[Prompt], dtype: str) -> None:
    """To the bit, in one batch: what the store of units counts on."""
    engine = TransformersEngine(tiny_checkpoint, "cpu", dtype)
    for long, short in zip(answers(engine, prompts), answers(engine, prompts, 3), strict=True):
        assert np.array_equal(long.token_ids[:3], short.token_ids) and np.array_equal(long.logprobs[:3], short.logprobs)


def test_what_prompts_begin_with_is_read_once(
    engine: TransformersEngine, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives what each prompt alone gives, however much of the beginning a shorter one's padding leaves room for."""
    head = "A train needs 40 minutes for 60 km; how fast does it go?"
    questions = [head + "".join(QUESTIONS[:4]), head, head + QUESTIONS[0], head + " Hm?", *[head] * 5]
    prompts = make_prompts(tiny_checkpoint, questions, NEW, "text").prompts
    begin = len(make_prompts(tiny_checkpoint, [head], NEW, "text").prompts[0]) - 3  # less the turn's end
    alone = [answers(engine, [prompt])[0] for prompt in prompts]
    tokens: list[int] = []
    forward = engine.model.forward

    def counted(*args: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        tokens.append(input_ids.numel())
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(engine.model, "forward", counted)
    together = answers(engine, prompts, 1)
    longest = max(map(len, prompts))
    assert sum(tokens) <= begin + len(prompts) * (longest - begin + 2)
    together, rescored = answers(engine, prompts), engine.logprobs(prompts, [each.token_ids for each in alone])
    for one, two, again in zip(alone, together, rescored, strict=True):
        np.testing.assert_array_equal(one.token_ids, two.token_ids)
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-4)
        np.testing.assert_allclose(one.logprobs, again, atol=1e-4)


def test_padding_changes_nothing(engine: TransformersEngine, prompts: list[Prompt], together: list[Completion]) -> None:
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = answers(engine, [prompt])
        np.testing.assert_array_equal(alone.token_ids, found.token_ids)
        np.testing.assert_allclose(alone.logprobs, found.logprobs, atol=1e-4)


def test_the_same_batch_gives_the_same_bits(
    engine: TransformersEngine, prompts: list[Prompt], together: list[Completion]
) -> None:
    for one, two in zip(answers(engine, prompts), together, strict=True):
        np.testing.assert_array_equal(one.token_ids, two.token_ids)
        np.testing.assert_array_equal(one.logprobs, two.logprobs)


def test_teacher_forcing_gives_what_generation_gave(
    engine: TransformersEngine, prompts: list[Prompt], together: list[Completion]
) -> None:
    lengths = [1, NEW, 3, 10, NEW, 2, 7, 15, 24]
    found = engine.logprobs(prompts, [c.token_ids[:n] for c, n in zip(together, lengths, strict=True)])
    for row, completion, n in zip(found, together, lengths, strict=True):
        assert row.shape == (n,) and row.dtype == np.float32
        np.testing.assert_allclose(row, completion.logprobs[:n], atol=1e-4)


def test_teacher_forcing_takes_the_token_given_not_the_best(
    engine: TransformersEngine, tiny_checkpoint: Path, prompts: list[Prompt]
) -> None:
    rng, model = np.random.default_rng(0), plain_model(tiny_checkpoint)
    others = [rng.integers(0, 300, n).astype(np.int32) for n in (5, 1, 9, 3)]
    for row, prompt, answer in zip(engine.logprobs(prompts[:4], others), prompts[:4], others, strict=True):
        np.testing.assert_allclose(row, teacher_forced(model, prompt, answer.tolist()), atol=1e-4)


@pytest.mark.parametrize("answer", [[], [5]])
def test_an_empty_answer_among_others(engine: TransformersEngine, prompts: list[Prompt], answer: list[int]) -> None:
    found = engine.logprobs(prompts[:2], [np.array(answer, np.int32), np.array([1, 2, 3], np.int32)])
    assert [len(row) for row in found] == [len(answer), 3]


# -- the end token


@pytest.fixture(scope="module")
def ending(tiny_checkpoint: Path, together: list[Completion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, with an end token that some of the answers are seen to contain in the middle, and others
    not."""
    counts = {
        token: sum(token in c.token_ids[:-1] for c in together)
        for c in together
        for token in c.token_ids[2:-2].tolist()
    }
    token = next(token for token, n in sorted(counts.items()) if 2 <= n <= 5)
    return with_generation_config(tiny_checkpoint, tmp_path_factory.mktemp("ending") / "c", eos_token_id=[token, 1])


def test_the_end_token_is_the_last_entry_and_nothing_follows(
    ending: Path, prompts: list[Prompt], together: list[Completion]
) -> None:
    engine = TransformersEngine(ending, "cpu", "float32")
    ends = {json.loads((ending / "generation_config.json").read_text())["eos_token_id"][0], 1}
    assert engine.ends == ends
    stopped = 0
    for before, found in zip(together, answers(engine, prompts), strict=True):
        at = next((i for i, token in enumerate(before.token_ids.tolist()) if token in ends), None)
        n = NEW if at is None else at + 1
        # Rows that ended were dropped from the batch: what the others say is what they said before.
        np.testing.assert_array_equal(found.token_ids, before.token_ids[:n])
        np.testing.assert_allclose(found.logprobs, before.logprobs[:n], atol=1e-4)
        assert found.finish_reason == ("length" if at is None else "stop")
        stopped += at is not None
    assert 2 <= stopped < len(prompts)


def test_each_answer_comes_as_it_finishes(ending: Path, prompts: list[Prompt]) -> None:
    engine = TransformersEngine(ending, "cpu", "float32")
    lengths = [len(completion.token_ids) for _, completion in engine.generate(prompts, NEW)]
    assert lengths == sorted(lengths) and lengths[0] < NEW


def test_an_end_token_at_the_limit_is_a_stop(ending: Path, prompts: list[Prompt]) -> None:
    engine = TransformersEngine(ending, "cpu", "float32")
    completions = answers(engine, prompts)
    row = next(i for i, c in enumerate(completions) if c.finish_reason == "stop")
    n = len(completions[row].token_ids)
    assert answers(engine, [prompts[row]], n)[0].finish_reason == "stop"
    assert answers(engine, [prompts[row]], n - 1)[0].finish_reason == "length"


def test_all_rows_ending_at_once_ends_the_batch(ending: Path, prompts: list[Prompt]) -> None:
    engine = TransformersEngine(ending, "cpu", "float32")
    row = next(i for i, c in enumerate(answers(engine, prompts)) if c.finish_reason == "stop")
    twins = answers(engine, [prompts[row]] * 3)
    assert len({tuple(c.token_ids.tolist()) for c in twins}) == 1 and all(c.finish_reason == "stop" for c in twins)


# -- what must not change a number


@pytest.mark.parametrize(
    "changed",
    [
        {"repetition_penalty": 1.8},
        {"min_new_tokens": 20},
        {"do_sample": True, "temperature": 0.3, "top_k": 3},
        {"max_new_tokens": 2},
        {"bad_words_ids": [[48]]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_the_checkpoint_asks_of_generation_is_not_applied(
    tiny_checkpoint: Path, tmp_path: Path, prompts: list[Prompt], together: list[Completion], changed: dict[str, object]
) -> None:
    engine = TransformersEngine(with_generation_config(tiny_checkpoint, tmp_path / "c", **changed), "cpu", "float32")
    for one, two in zip(answers(engine, prompts), together, strict=True):
        np.testing.assert_array_equal(one.token_ids, two.token_ids)
        np.testing.assert_array_equal(one.logprobs, two.logprobs)


ARCHITECTURES: dict[str, dict[str, object]] = {
    "gpt2": {},  # learned positions, no rotary ones
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},  # a window shorter than the prompts
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 5.0},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "bloom": {},  # positions only as a bias on attention, and no fused attention
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "sliding_window": 8,
        "rope_scaling": None,
    },
}


@pytest.mark.parametrize("begin", ["apart", "alike"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_architectures(
    make_checkpoint: Callable[..., Path], tmp_path: Path, prompts: list[Prompt], architecture: str, begin: str
) -> None:
    folder = make_checkpoint(tmp_path / "c", architecture=architecture, **ARCHITECTURES[architecture])
    engine, model = TransformersEngine(folder, "cpu", "float32"), plain_model(folder)
    prompts = prompts[:4] if begin == "apart" else [(*prompts[0][:16], *prompt) for prompt in prompts[:4]]
    found = answers(engine, prompts, 8)
    rescored = engine.logprobs(prompts, [completion.token_ids for completion in found])
    for prompt, completion, again in zip(prompts, found, rescored, strict=True):
        expected = teacher_forced(model, prompt, completion.token_ids.tolist())
        np.testing.assert_allclose(completion.logprobs, expected, atol=2e-4)
        np.testing.assert_allclose(again, expected, atol=2e-4)
        ids = torch.tensor([prompt])
        greedy = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)[
            0, len(prompt) :
        ]
        assert completion.token_ids.tolist() == greedy.tolist()


def test_a_model_with_a_recurrent_state_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recurrent state"):
        TransformersEngine(make_checkpoint(tmp_path / "c", architecture="mamba"), "cpu", "float32")


def test_bf16_generation_stays_near_fp32(tiny_checkpoint: Path, prompts: list[Prompt]) -> None:
    engine = TransformersEngine(tiny_checkpoint, "cpu", "bfloat16")
    model = plain_model(tiny_checkpoint)
    for prompt, found in zip(prompts, answers(engine, prompts), strict=True):
        difference = found.logprobs - teacher_forced(model, prompt, found.token_ids.tolist())
        assert abs(difference).mean() < 0.06


# -- identity and refusals


def test_identity_says_whatever_can_change_a_number(
    engine: TransformersEngine, tiny_checkpoint: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    assert {
        "engine",
        "engine_version",
        "torch_version",
        "device",
        "dtype",
        "fingerprint",
        "template",
        "vocabulary",
    } == set(engine.identity)
    assert len(engine.identity["template"]) == len(engine.identity["vocabulary"]) == 16
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    assert TransformersEngine(copy, "cpu", "float32").identity == engine.identity

    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    other = TransformersEngine(copy, "cpu", "float32").identity
    assert {key for key in other if other[key] != engine.identity[key]} == {"template", "fingerprint"}

    sibling = TransformersEngine(make_checkpoint(tmp_path / "sibling", seed=1), "cpu", "float32").identity
    assert {key for key in sibling if sibling[key] != engine.identity[key]} == {"fingerprint"}


def test_another_vocabulary_shows(tiny_checkpoint: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    path = copy / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["!"], vocabulary["%"] = vocabulary["%"], vocabulary["!"]
    path.write_text(json.dumps(tree))
    assert TransformersEngine(copy, "cpu", "float32").identity["vocabulary"] != engine.identity["vocabulary"]


def test_a_question_longer_than_the_context(engine: TransformersEngine, tiny_checkpoint: Path) -> None:
    def prompt(question: str) -> Prompt:
        return make_prompts(tiny_checkpoint, [question], NEW, "text").prompts[0]

    fits = prompt("1 " * ((256 - NEW - 4) // 2) + "1" * 0)
    room = 256 - NEW - len(fits)
    assert room >= 0
    longest = prompt("1 " * ((256 - NEW - 4) // 2) + "%" * room)
    assert len(longest) + NEW == 256
    ((_, found),) = engine.generate([longest], NEW)
    assert len(found.token_ids) == NEW and np.isfinite(found.logprobs).all()
    with pytest.raises(InputError, match=f"{256 - NEW + 1} tokens and {NEW} new ones exceed the 256") as error:
        prompt("1 " * ((256 - NEW - 4) // 2) + "%" * (room + 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("pickle only", "pickle"),
        ("truncated", "truncated"),
        ("no config", "config.json"),
        ("tensor missing", "lack model.layers.1.self_attn.q_proj.weight"),
        ("no tokenizer", "no tokenizer"),
        ("no template", "chat template"),
        ("adapter", "LoRA"),
    ],
)
def test_a_broken_checkpoint_is_refused_in_one_line(broken: Callable[[str], Path], how: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        TransformersEngine(broken(how), "cpu", "float32")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such-model"}', "{}"])
def test_a_config_that_cannot_be_read(tiny_checkpoint: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text(content)
    with pytest.raises(InputError) as error:
        TransformersEngine(tmp_path / "c", "cpu", "float32")
    assert str(tmp_path / "c") in str(error.value) and "\n" not in str(error.value)


def test_a_template_that_does_not_work(broken: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="template does not work"):
        make_prompts(broken("broken template"), ["Hm?"], NEW, "text")


def test_tied_weights_are_not_missing_ones(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tie_word_embeddings=True)
    model = load_model(folder, "cpu", torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda", "mps")
    for wrong in ("cpuu", "gpu", "cuda:99"):
        with pytest.raises(InputError, match=r"generate\.device"):
            choose_device(wrong)


def test_memory_that_runs_out_says_so(engine: TransformersEngine, prompts: list[Prompt]) -> None:
    with pytest.raises(OutOfMemory):
        list(engine.generate(prompts, 1 << 38))

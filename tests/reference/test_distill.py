"""Distillation on the tiny model: it learns, it repeats, and only the answer counts; with adapters as without."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tbd import checkpoints as checkpoint
from tbd.checkpoints import Prompt
from tbd.checkpoints.loading import load_model, load_tokenizer
from tbd.checkpoints.prompting import prompts as prompted
from tbd.errors import InputError
from tbd.generation.engines.transformers import TransformersEngine
from tbd.params import Distill, Lora
from tbd.progress import Progress
from tbd.records import question_id
from tbd.reference import distill as module
from tbd.reference.distill import IGNORED, adapt, distill, example, merge

pytestmark = pytest.mark.slow
PAIRS = [
    ("Anna has three apples and buys two. How many?", "She has three and two, which makes five."),
    ("How fast?", "60 km in 40 minutes: 90."),
    ("two and two", "four"),
    ("Käthe zählt 12 Äpfel und eine Quitte. How many?", "12 and one: 13."),
    ("What makes five?", "two and three"),
]


LORA = {"lora": Lora(rank=4, alpha=8), "learning_rate": 0.01}


def make_prompts(*asked: Any) -> list[Prompt]:
    return prompted(*asked).prompts


def params(**changed: Any) -> Distill:
    recipe: dict[str, float] = {
        "epochs": 4,
        "learning_rate": 0.003,
        "warmup": 0.1,
        "weight_decay": 0.0,
        "batch_size": 2,
    }
    defaults = {**recipe, "max_tokens": 200, "trained_layers": None, "dtype": "auto", "seed": 0}
    return Distill(**{**defaults, **changed})


@pytest.fixture(scope="module", params=[{}, LORA], ids=["weights", "lora"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What learns."""
    return request.param


@pytest.fixture(scope="module")
def distilled(how: dict[str, Any], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny model after 12 steps: its folder, what `distill` returned, and its progress."""
    out, progress = tmp_path_factory.mktemp("distilled") / "c", Progress("test")
    return out, distill(tiny_checkpoint, out, PAIRS, params(**how), "cpu", progress), progress


def test_the_loss_falls(distilled) -> None:
    _, found, progress = distilled
    assert found["steps"] == 12 and progress.doing.startswith("step 12 of 12, loss ")
    work = progress.kinds["trained on"]
    assert work.done == work.planned > 0
    assert found["loss_last_epoch"] < 0.8 * found["loss_first_epoch"]


def test_the_result_is_a_checkpoint_that_answers(distilled, tiny_checkpoint: Path) -> None:
    out, _, _ = distilled
    checkpoint.inspect(out)
    assert all(weight.dtype == torch.bfloat16 for weight in load_file(out / "model.safetensors").values())
    base, engine = (TransformersEngine(folder, "cpu", "float32") for folder in (tiny_checkpoint, out))
    assert (
        base.identity["vocabulary"] == engine.identity["vocabulary"]
        and base.identity["template"] == engine.identity["template"]
    )
    assert base.identity["fingerprint"] != engine.identity["fingerprint"] and base.ends == engine.ends
    assert engine.model.config.use_cache == base.model.config.use_cache
    prompts = make_prompts(tiny_checkpoint, [question for question, _ in PAIRS], 8, "text")
    answers = [torch.tensor(base.tokenizer(answer)["input_ids"]).numpy() for _, answer in PAIRS]
    before, after = (sum(row.sum() for row in model.logprobs(prompts, answers)) for model in (base, engine))
    assert after > before  # it gives the answers it was taught a higher probability


def test_the_same_again_gives_the_same_weights(how, distilled, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out, found, _ = distilled
    assert distill(tiny_checkpoint, tmp_path / "c", PAIRS, params(**how), "cpu", Progress("test")) == found
    assert checkpoint.fingerprint(tmp_path / "c") == checkpoint.fingerprint(out)
    distill(tiny_checkpoint, tmp_path / "d", PAIRS, params(**how, seed=1), "cpu", Progress("test"))
    assert checkpoint.fingerprint(tmp_path / "d") != checkpoint.fingerprint(out)


def test_the_mask_leaves_the_answer_and_the_end_token(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    ids, labels = example(tokenizer, *make_prompts(tiny_checkpoint, ["Hm?"], 8, "text"), "Hm?", "five.", 100)
    assert tokenizer.decode(ids) == "<|user|>Hm?<end><|assistant|>five.<end>"
    assert len(ids) == len(labels)
    counted = [token for token in labels if token != IGNORED]
    assert tokenizer.decode(counted) == "five.<end>" and ids[-len(counted) :] == counted
    assert set(labels[: -len(counted)]) == {IGNORED}


@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-5), ("bfloat16", 0.01)])
def test_the_loss_is_the_mean_over_answer_tokens_of_the_batch(
    how, tiny_checkpoint: Path, tmp_path: Path, dtype: str, within: float
) -> None:
    """The first step's loss against the answers' log-probs from the untouched model, in fp32 without padding."""
    recipe = params(**how, epochs=1, batch_size=5, dtype=dtype)
    found = distill(tiny_checkpoint, tmp_path / "c", PAIRS, recipe, "cpu", Progress("test"))
    tokenizer, model = load_tokenizer(tiny_checkpoint), load_model(tiny_checkpoint, "cpu", torch.float32)
    total, n = 0.0, 0
    prompts = make_prompts(tiny_checkpoint, [question for question, _ in PAIRS], 8, "text")
    for prompt, pair in zip(prompts, PAIRS, strict=True):
        ids, labels = (torch.tensor([part]) for part in example(tokenizer, prompt, *pair, 200))
        with torch.no_grad():
            logprobs = model(ids).logits[:, :-1].log_softmax(-1)
        target = labels[:, 1:]
        total -= logprobs.gather(2, target.clamp(min=0)[..., None])[..., 0][target != IGNORED].sum().item()
        n += int((target != IGNORED).sum())
    assert found["dtype"] == dtype and found["loss_first_epoch"] == pytest.approx(total / n, rel=within)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "bloom"])
def test_models_that_name_their_parts_otherwise(
    how, make_checkpoint: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    changed = (
        {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0} if architecture == "gemma2" else {}
    )
    base = make_checkpoint(tmp_path / "base", architecture=architecture, **changed)
    found = distill(base, tmp_path / "c", PAIRS, params(**how), "cpu", Progress("test"))
    assert found["loss_last_epoch"] < found["loss_first_epoch"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "c")


def learnt(base: Path, out: Path) -> set[str]:
    """Names of the tensors that differ."""
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict() for folder in (base, out)
    )
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_the_last_layers_alone_can_learn(
    tiny_checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    found = distill(tiny_checkpoint, tmp_path / "c", PAIRS, params(trained_layers=1), "cpu", Progress("test"))
    assert found["loss_last_epoch"] < found["loss_first_epoch"]
    changed = learnt(tiny_checkpoint, tmp_path / "c")
    assert "model.layers.1.mlp.down_proj.weight" in changed and "model.norm.weight" in changed
    assert not any(name.startswith(("model.layers.0.", "model.embed_tokens", "lm_head")) for name in changed)
    other = make_checkpoint(tmp_path / "gpt2", architecture="gpt2")
    distill(other, tmp_path / "d", PAIRS, params(trained_layers=1), "cpu", Progress("test"))
    assert {name.split(".")[2] for name in learnt(other, tmp_path / "d") if ".h." in name} == {"1"}


def test_more_layers_than_the_model_has_are_refused(how, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"distill\.trained_layers: 3, and the model has 2\."):
        distill(tiny_checkpoint, tmp_path / "e", PAIRS, params(**how, trained_layers=3), "cpu", Progress("test"))
    assert not (tmp_path / "e").exists()


MAPS = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("trained", "layers"), [(None, {0, 1}), (1, {1})])
def test_adapters_change_the_linear_maps_of_the_chosen_layers_and_nothing_else(
    tiny_checkpoint: Path, tmp_path: Path, dtype: str, trained: int | None, layers: set[int]
) -> None:
    base = tmp_path / "base"  # stored in bfloat16, as published checkpoints are
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16).save_pretrained(base)
    load_tokenizer(tiny_checkpoint).save_pretrained(base)
    recipe = params(**LORA, dtype=dtype, trained_layers=trained)
    distill(base, tmp_path / "c", PAIRS, recipe, "cpu", Progress("test"))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "c"))
    assert {name: (one.shape, one.dtype) for name, one in before.items()} == {
        name: (one.shape, one.dtype) for name, one in after.items()
    }
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {f"model.layers.{layer}.{name}.weight" for layer in layers for name in MAPS}
    names = [{file.name for file in folder.iterdir()} for folder in (base, tmp_path / "c")]
    assert names[0] == names[1]  # no adapter is left beside them
    assert (base / "config.json").read_text() == (tmp_path / "c/config.json").read_text()


def test_frozen_weights_are_held_in_the_computing_type_and_adapters_in_float32(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = load_model(make_checkpoint(tmp_path / "deep", num_hidden_layers=12), "cpu", torch.bfloat16)
    adapt(model, Lora(rank=4, alpha=8), 3)
    adapters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".lora_")[0] for name in adapters} == {
        f"model.layers.{layer}.{name}" for layer in (9, 10, 11) for name in MAPS
    }
    assert {weight.dtype for weight in adapters.values()} == {torch.float32}
    rest = {weight.dtype for name, weight in model.named_parameters() if name not in adapters}
    assert rest == {torch.bfloat16}
    assert model.is_activation_checkpointing


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 keeps its maps the other way round
def test_the_written_checkpoint_answers_as_the_trained_model_did(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    base = make_checkpoint(tmp_path / "base", architecture=architecture)
    ids = torch.tensor(
        [example(load_tokenizer(base), *make_prompts(base, [PAIRS[0][0]], 8, "text"), *PAIRS[0], 200)[0]]
    )
    seen: list[torch.Tensor] = []

    def logprobs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits.log_softmax(-1)

    def look_and_merge(adapted: Any) -> None:
        adapted.eval()
        seen.append(logprobs(adapted))
        merge(adapted)
        seen.append(logprobs(adapted.get_base_model()))

    monkeypatch.setattr(module, "merge", look_and_merge)
    distill(base, tmp_path / "c", PAIRS, params(**LORA, dtype="float32"), "cpu", Progress("test"))
    trained, merged = seen
    before, after = (logprobs(load_model(folder, "cpu", torch.float32)) for folder in (base, tmp_path / "c"))
    torch.testing.assert_close(merged, trained, atol=1e-4, rtol=1e-4)
    moved, rounded = (before - trained).abs().mean(), (after - trained).abs().mean()
    assert rounded < 0.05 * moved  # the file is bfloat16


def test_merging_rounds_once(tiny_checkpoint: Path) -> None:
    """1 + 0.00392 is nearer to 1 + 2^-7 than to 1, its neighbours in bfloat16. 0.00392 alone would be rounded to 2^-8,
    half the way, and the sum then to the even of the two, which is 1."""
    model = load_model(tiny_checkpoint, "cpu", torch.bfloat16)
    weight = model.model.layers[1].mlp.up_proj.weight
    adapted = adapt(model, Lora(rank=1, alpha=2), None)
    with torch.no_grad():
        weight.fill_(1)
        for name, adapter in model.named_parameters():
            if "lora_A" in name:
                adapter.fill_(0.00392)
            elif "lora_B" in name:
                adapter.fill_(0.5)  # times alpha / rank: 1
    merge(adapted)
    assert model.model.layers[1].mlp.up_proj.weight is weight
    assert weight.unique().tolist() == [1 + 2**-7]


def test_an_example_that_is_too_long_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    (prompt,) = make_prompts(tiny_checkpoint, [PAIRS[0][0]], 8, "text")
    n = len(example(tokenizer, prompt, *PAIRS[0], 200)[0])
    assert len(example(tokenizer, prompt, *PAIRS[0], n)[0]) == n
    with pytest.raises(
        InputError, match=rf"{n} tokens with its answer, more than distill\.max_tokens = {n - 1}"
    ) as error:
        distill(tiny_checkpoint, tmp_path / "c", PAIRS, params(max_tokens=n - 1), "cpu", Progress("test"))
    assert question_id(PAIRS[0][0]) in str(error.value) and not (tmp_path / "c").exists()


def test_a_tokenizer_without_an_end_token(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="end token"):
        example(tokenizer, (1,), "Hm?", "five", 100)


@pytest.mark.parametrize("changed", [{"temperature": 0.7}, {"top_p": 0.5}], ids=lambda changed: next(iter(changed)))
def test_a_base_with_an_untidy_generation_config_can_still_be_saved(
    tiny_checkpoint: Path, tmp_path: Path, changed
) -> None:
    """Published checkpoints say temperature without do_sample; transformers refuses to save that, after all the
    training."""
    import json

    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": False, **changed}))
    distill(base, tmp_path / "c", PAIRS[:2], params(epochs=1), "cpu", Progress("test"))
    checkpoint.inspect(tmp_path / "c")

"""LoRA adapters: one and its base answer as the model merged by hand, and a hostile one gets its line."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tbd import checkpoints, sources
from tbd.checkpoints import adapters, loading, prompting
from tbd.commands import plan
from tbd.errors import Incomplete, InputError, Lacking
from tbd.generation import cost
from tests.adapters import write_adapter

BOMB = 2_000_000_000


@pytest.fixture(scope="session")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny checkpoint, which it names. Do not write into it."""
    return write_adapter(tmp_path_factory.mktemp("adapters") / "lora", tiny_checkpoint)


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    shutil.copytree(adapter, tmp_path / "lora")
    return tmp_path / "lora"


def change(folder: Path, **changed: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def refusal(of: Callable[[], object], kind: type[Exception] = InputError) -> str:
    """The one line that is said."""
    with pytest.raises(kind) as error:
        of()
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


KINDS: dict[str, dict[str, Any]] = {
    "ranks of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 64}},
    "an expression, rank-stabilised": {"target_modules": r".*\.(q|v)_proj", "use_rslora": True},
    "DoRA, and a head of its own": {"target_modules": "all-linear", "use_dora": True, "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "o_proj"]},
    "the first layer alone": {"layers_to_transform": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_the_model_that_is_merged_by_hand(
    tiny_checkpoint: Path, tmp_path: Path, workspace: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = write_adapter(tmp_path / "lora", tiny_checkpoint, **KINDS[kind])
    whole, origin = sources.find(str(folder))
    assert origin == "lora" and adapters.parts(whole) == {"adapter": "lora", "base": str(tiny_checkpoint)}
    loading.fits(whole)
    ids = torch.arange(5, 60)[None]
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=dtype)
            before = base(ids).logits
            by_hand = PeftModel.from_pretrained(base, folder).merge_and_unload()(ids).logits
            here = loading.load_model(whole, "cpu", dtype)(ids).logits
        assert torch.equal(here, by_hand) and not torch.allclose(here, before)
    assert prompting.prompts(whole, ["Why?"], 4, "text") == prompting.prompts(tiny_checkpoint, ["Why?"], 4, "text")
    assert cost.parameters(whole) > cost.parameters(tiny_checkpoint)


def test_the_fingerprint_is_of_both(
    adapter: Path, copy: Path, make_checkpoint: Callable[..., Path], tiny_checkpoint: Path, workspace: Path
) -> None:
    other = make_checkpoint(workspace / "other", seed=1)
    whole = sources.resolve(str(adapter))
    before = checkpoints.fingerprint(whole)
    assert whole == sources.resolve(str(copy))  # of the same content, wherever it is; the links lead to the latter now
    assert checkpoints.fingerprint(whole) == before != checkpoints.fingerprint(tiny_checkpoint)
    rebased = sources.resolve(str(copy), "other")
    assert checkpoints.fingerprint(rebased) != before and rebased != whole

    state = checkpoints.state(rebased)
    shutil.copy(tiny_checkpoint / "model.safetensors", other / "model.safetensors")  # overwritten
    assert checkpoints.state(rebased) != state and checkpoints.fingerprint(rebased) == before
    assert sources.resolve(str(copy), "other") == whole
    (copy / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refusal(lambda: checkpoints.inspect(whole), Incomplete)


def test_a_tokenizer_of_its_own_goes_first(copy: Path, tiny_checkpoint: Path, workspace: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_checkpoint / name, copy / name)
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (copy / "config.json").write_text("nothing that is read")
    ask = lambda folder: prompting.prompts(folder, ["Why?"], 4, "text").prompts  # noqa: E731
    assert len(ask(sources.resolve(str(copy)))[0]) < len(ask(tiny_checkpoint)[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "IA3"}, "an adapter of type 'IA3'"),
        ({"r": BOMB}, f"a rank of {BOMB}, and the tensors have 4"),
        ({"rank_pattern": {"q_proj": BOMB}}, f"a rank of {BOMB}"),
        ({"rank_pattern": {"(.*)*x": 4}}, "rank_pattern is"),
        ({"r": "8"}, "r is '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"modules_to_save": [""]}, "modules_to_save is ['']"),
        ({"modules_to_save": ["../../etc"]}, "modules_to_save is"),
        ({"target_modules": ["q_proj"] * 99}, "target_modules has 99 entries"),
        ({"layers_pattern": "(a+)+"}, "layers_pattern is"),
        ({"layer_replication": [[0, BOMB]]}, "'layer_replication' is not known"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "'megatron_config' is not known"),
        ({"trust_remote_code": True}, "'trust_remote_code' is not known"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base's weights too"),
    ],
)
def test_a_configuration_that_means_harm(copy: Path, workspace: Path, changed: dict[str, Any], said: str) -> None:
    change(copy, **changed)
    assert said in refusal(lambda: sources.find(str(copy)))
    assert not list(workspace.glob("checkpoints/adapters/*"))


def test_code_that_it_names_is_not_loaded(copy: Path, workspace: Path) -> None:
    (copy / "evil.py").write_text("raise SystemExit('code was run')")
    change(copy, auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}, megatron_core="evil")
    whole = sources.resolve(str(copy))
    assert not (whole / "evil.py").exists()
    loading.load_model(whole, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "names no base"),
        (7, "names no base"),
        ("/proc", "'/proc', which is not here"),
        ("/proc/self/root", "which is not here"),
        ("x" * 5000, "which is not here"),
        ("a\0b\n", "which is not here"),
        ("org/name", "org/name@main"),  # the hub is offline in a test
        ("lora", "is an adapter itself"),
    ],
)
def test_a_base_that_is_none(copy: Path, workspace: Path, name: Any, said: str) -> None:
    change(copy, base_model_name_or_path=name)
    line = refusal(lambda: sources.find(str(copy)), InputError if name == "lora" else Lacking)
    assert said in line and (name == "lora" or "--base FOLDER" in line)


def _unsaved(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def _fifo(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


def _link(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/proc/self/environ")


@pytest.mark.parametrize(
    ("damage", "said", "arriving"),
    [
        (_unsaved, "weights are a pickle (adapter_model.bin)", False),
        (_fifo, "a FIFO", False),
        (_link, "a link to what is on no disk", False),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "without adapter_model.safetensors", True),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no config.json", True),
        (lambda folder: os.truncate(folder / "adapter_model.safetensors", 3000), "truncated", True),
        (lambda folder: (folder / "adapter_config.json").write_text('{"r": '), "not a readable", True),
        (lambda folder: save_file({}, folder / "adapter_model.safetensors"), "no tensors of a LoRA adapter", False),
        (lambda folder: save_file({"x": torch.ones(1)}, folder / "model.safetensors"), "a whole model in one", False),
    ],
)
def test_files_that_are_not_what_they_should_be(
    copy: Path, workspace: Path, damage: Callable[[Path], object], said: str, arriving: bool
) -> None:
    damage(copy)
    with pytest.raises(InputError) as error:
        sources.find(str(copy))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, Incomplete) == arriving


def test_tensors_that_do_not_fit_the_base(
    copy: Path, make_checkpoint: Callable[..., Path], tiny_checkpoint: Path, workspace: Path
) -> None:
    file = copy / "adapter_model.safetensors"
    whole = load_file(file)
    first, *rest = sorted(whole)
    wide = make_checkpoint(workspace / "wide", hidden_size=64)
    for tensors, base, said in (
        ({name: whole[name] for name in rest}, tiny_checkpoint, f"its weights lack {first}, 1 missing in all"),
        (whole | {first.replace("layers.0", "layers.9"): whole[first].clone()}, tiny_checkpoint, "no place for"),
        (whole | {first: whole[first].repeat(1, 2)}, tiny_checkpoint, "it is of another base"),
        (whole, wide, "it is of another base"),
        (whole | {first: whole[first] * torch.nan}, tiny_checkpoint, "not finite"),
    ):
        save_file(tensors, file)
        joined = sources.resolve(str(copy), str(base))
        assert said in refusal(lambda folder=joined: loading.load_model(folder, "cpu", torch.float32))
        if said != "not finite":
            assert said in refusal(lambda folder=joined: loading.fits(folder))


def test_without_peft_it_says_what_to_install(adapter: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    assert "pip install -c constraints.txt peft" in refusal(lambda: sources.find(str(adapter)), Lacking)


def test_a_plan_is_of_both_and_downloads_nothing(
    adapter: Path, copy: Path, tiny_checkpoint: Path, workspace: Path
) -> None:
    asked = plan.asked(str(adapter), "exam", "new", None, None)
    assert asked.base == tiny_checkpoint and asked.checkpoint == sources.resolve(str(adapter))
    change(copy, base_model_name_or_path="org/name")
    assert "downloads nothing" in refusal(lambda: plan.asked(str(copy), "exam", "new", None, None))

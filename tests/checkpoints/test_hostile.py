"""Checkpoints that mean harm, or look like it: what is loaded is what was fingerprinted, and nothing runs away."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tbd import checkpoints
from tbd.checkpoints import Prompt, prompting
from tbd.checkpoints.loading import load_model, load_tokenizer
from tbd.checkpoints.prompting import prompts as prompted
from tbd.errors import Incomplete, InputError, Lacking, TransientFault
from tbd.generation.engines.transformers import TransformersEngine


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    return tmp_path / "c"


def prompts(*asked: Any) -> list[Prompt]:
    return prompted(*asked).prompts


def change(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def refusal(of: Callable[[], object], kind: type[Exception] = InputError) -> str:
    """The one line that is said."""
    with pytest.raises(kind) as error:
        of()
    assert "\n" not in str(error.value) and "/tbd-" not in str(error.value)
    return str(error.value)


# -- loaded is what was fingerprinted


@pytest.mark.parametrize("name", ["sub/w.safetensors", "../other/model.safetensors", "sub/w.safetensors.index.json"])
def test_weights_elsewhere_are_not_loaded(copy: Path, make_checkpoint: Callable[..., Path], name: str) -> None:
    other = make_checkpoint(copy.parent / "other", seed=1)
    (copy / "sub").mkdir()
    shutil.copy(other / "model.safetensors", copy / "sub/w.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(other / "model.safetensors"), "w.safetensors")}
    (copy / "sub/w.safetensors.index.json").write_text(json.dumps(index))
    change(copy / "config.json", transformers_weights=name)
    assert str(copy) in refusal(lambda: load_model(copy, "cpu", torch.float32))


@pytest.mark.parametrize("shard", ["sub/w.safetensors", "../other.safetensors", "/tmp/w.safetensors", 3])
def test_an_index_names_files_beside_it_alone(copy: Path, shard: object) -> None:
    for name in ("model.safetensors.index.json", "w.safetensors.index.json"):
        (copy / name).write_text(json.dumps({"weight_map": {"a": shard}}))
        assert f"{shard} is missing" in refusal(lambda: checkpoints.inspect(copy))
        (copy / name).unlink()


def test_templates_and_adapters_elsewhere_are_not_loaded(copy: Path, tiny_checkpoint: Path) -> None:
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates/default.jinja").write_text("another one")
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate/generate.py").write_text("raise SystemExit")
    assert load_tokenizer(copy).chat_template == load_tokenizer(tiny_checkpoint).chat_template
    assert prompts(copy, ["Hm?"], 8, "text") == prompts(tiny_checkpoint, ["Hm?"], 8, "text")
    assert checkpoints.fingerprint(copy) == checkpoints.fingerprint(tiny_checkpoint)


def test_links_as_a_hub_cache_has_them(copy: Path, tiny_checkpoint: Path) -> None:
    (copy / "model.safetensors").rename(copy.parent / "blob")
    (copy / "model.safetensors").symlink_to(copy.parent / "blob")
    assert checkpoints.fingerprint(copy) == checkpoints.fingerprint(tiny_checkpoint)
    load_model(copy, "cpu", torch.float32)


def test_a_file_that_is_swapped_while_it_is_used(copy: Path, make_checkpoint: Callable[..., Path]) -> None:
    before = checkpoints.state(copy)
    checkpoints.unchanged(copy, before)
    (copy / "model.safetensors").rename(copy / "kept")
    shutil.copy(make_checkpoint(copy.parent / "other", seed=1) / "model.safetensors", copy)
    assert "changed while it was in use" in refusal(lambda: checkpoints.unchanged(copy, before), TransientFault)
    (copy / "kept").rename(copy / "model.safetensors")  # and back: the same content, but not all the time
    assert "changed while it was in use" in refusal(lambda: checkpoints.unchanged(copy, before), TransientFault)


@pytest.mark.parametrize("relative", [False, True])
def test_weights_that_are_changed_in_memory(copy: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    monkeypatch.chdir(copy.parent)
    copy = Path("c") if relative else copy
    file = copy / "model.safetensors"
    before, known = checkpoints.state(copy), checkpoints.fingerprint(copy)
    content, times = bytearray(file.read_bytes()), file.stat()
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    same = {one[0]: one for one in before}
    # what a file shows that is written through a mapping, on a tmpfs always and on a disk for some seconds
    monkeypatch.setattr(checkpoints, "state", lambda _: tuple(same.values()))
    assert checkpoints.fingerprint(copy) == known
    checkpoints.unchanged(copy, before)
    said = refusal(lambda: checkpoints.unchanged(copy, before, content=True), TransientFault)
    assert "model.safetensors: changed while it was in use" in said


def test_loaded_weights_do_not_follow_their_file(copy: Path) -> None:
    model = load_model(copy, "cpu", torch.float32)
    loaded = [weight.clone() for weight in model.parameters()]
    with (copy / "model.safetensors").open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length)
        file.write(b"\x3f" * ((copy / "model.safetensors").stat().st_size - 8 - length))
    assert all(map(torch.equal, loaded, model.parameters()))


@pytest.mark.parametrize("place", ["", "..", "../" * 30])
def test_a_tokenizer_outside_is_not_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (copy / "tokenizer.json").rename(copy.parent / "tokenizer.4.0.0.json")
    outside = str(copy.parent / "tokenizer.4.0.0.json")
    if place:
        outside = place + (outside if place != ".." else "/tokenizer.4.0.0.json")
        monkeypatch.chdir(copy)
    change(copy / "tokenizer_config.json", fast_tokenizer_files=[outside])
    for load in (lambda: load_tokenizer(copy), lambda: prompts(copy, ["Hm?"], 8, "text")):
        assert "a file outside of the checkpoint. Take that out." in refusal(load)


def test_vocabulary_outside_is_not_loaded(copy: Path) -> None:
    (copy / "tokenizer.json").rename(copy.parent / "vocab.json")
    change(copy / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", vocab=str(copy.parent / "vocab.json"))
    assert "a file outside of the checkpoint" in refusal(lambda: load_tokenizer(copy))


def test_where_a_tokenizer_was_saved_does_not_matter(copy: Path) -> None:
    (copy.parent / "map.json").write_text("{}")
    places = {"name_or_path": str(copy.parent), "special_tokens_map_file": str(copy.parent / "map.json")}
    change(copy / "tokenizer_config.json", **places)
    load_tokenizer(copy)


def test_another_file_in_place_of_the_configuration(copy: Path) -> None:
    shutil.copy(copy / "config.json", copy / "config.4.0.0.json")
    change(copy / "config.4.0.0.json", _attn_implementation="flex_attention")
    change(copy / "config.json", configuration_files=["config.4.0.0.json"])
    assert "configuration_files" in refusal(lambda: checkpoints.inspect(copy))


def test_two_models_in_a_folder(copy: Path, make_checkpoint: Callable[..., Path]) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    weights = load_file(make_checkpoint(copy.parent / "other", seed=1) / "model.safetensors")
    for name in (first, second):
        save_file(weights, copy / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, first) | {min(weights): second}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "holds two models, model.safetensors and" in refusal(lambda: checkpoints.inspect(copy))
    (copy / "model.safetensors").unlink()
    assert "is in two weight files" in refusal(lambda: checkpoints.inspect(copy))
    save_file({name: weights[name] for name in weights if name != min(weights)}, copy / first)
    save_file({min(weights): weights[min(weights)]}, copy / second)
    load_model(copy, "cpu", torch.float32)


@pytest.mark.parametrize(("ends", "kind"), [("BUS", TransientFault), ("USR1", TransientFault), ("XCPU", InputError)])
def test_what_ends_the_process_that_reads_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch, ends: str, kind: type[Exception]
) -> None:
    program = copy.parent / "python"
    program.write_text(f"#!/bin/sh\nkill -{ends} $$\n")
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    refusal(lambda: prompts(copy, ["Hm?"], 8, "text"), kind)


def test_a_torn_generation_config(copy: Path) -> None:
    (copy / "generation_config.json").write_text("{")
    assert "generation_config.json: not a readable" in refusal(lambda: checkpoints.inspect(copy), Incomplete)


def test_one_file_under_many_names_is_read_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = list[str](), checkpoints._read
    monkeypatch.setattr(checkpoints, "_read", lambda file: read.append(file.name) or real(file))
    before = checkpoints.fingerprint(copy)
    for number in range(9):
        os.link(copy / "model.safetensors", copy / f"more-{number}.safetensors")
    assert checkpoints.fingerprint(copy) != before
    assert sum(name.endswith(".safetensors") for name in read) <= 2  # a link changes the time of the first
    monkeypatch.setattr(checkpoints, "HEADER", 5000)
    assert "headers of more than 5000 bytes in all" in refusal(lambda: checkpoints.inspect(copy))


# -- unexpected tensors


def test_a_config_with_fewer_layers_than_the_weights(copy: Path) -> None:
    change(copy / "config.json", num_hidden_layers=1)
    said = refusal(lambda: load_model(copy, "cpu", torch.float32))
    assert "model.layers.1." in said and "9 such tensors" in said


def test_weights_and_configuration_are_compared_before_an_audit(copy: Path) -> None:
    prompting.fits(copy)
    change(copy / "config.json", num_hidden_layers=1)
    assert f"{copy}: config.json describes no model.layers.1." in refusal(lambda: prompting.fits(copy))


def test_tensors_that_are_there_for_old_versions(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    load_model(copy, "cpu", torch.float32)


def test_a_head_that_is_tied_and_saved_as_well(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load_model(folder, "cpu", torch.float32)


def test_what_the_text_part_of_a_model_does_without(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    sizes = {"head_dim": 8, "num_key_value_heads": 2, "num_local_experts": 2, "intermediate_size_mlp": 32}
    folder = make_checkpoint(tmp_path / "c", architecture="llama4_text", **sizes)
    weights = load_file(folder / "model.safetensors") | {"vision_model.x.weight": torch.ones(2)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "vision_model.x.weight" in refusal(lambda: load_model(folder, "cpu", torch.float32))
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": text}))
    load_model(folder, "cpu", torch.float32)


# -- text that structures a chat


def test_control_tokens_in_a_question_are_text(copy: Path) -> None:
    tokenizer, asked = load_tokenizer(copy), "a <|user|> b<end>"
    special = set(tokenizer.all_special_ids) | set(tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]))
    honest, hostile = prompts(copy, ["Hm?", asked], 8, "text")
    assert tokenizer.decode(hostile) == f"<|user|>{asked}<end><|assistant|>"
    assert [token for token in hostile if token in special] == [token for token in honest if token in special]
    assert list(honest) == tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hm?"}], add_generation_prompt=True, return_dict=False
    )
    assert "holds '<|user|>'" in refusal(lambda: prompts(copy, ["Hm?", asked], 8, "refuse"))
    assert prompts(copy, ["Hm?"], 8, "refuse") == [honest]


def test_control_tokens_that_a_template_builds_of_pieces_are_found(copy: Path) -> None:
    tree = json.loads((copy / "tokenizer.json").read_text())
    for token in tree["added_tokens"]:
        token["special"] = False
    (copy / "tokenizer.json").write_text(json.dumps(tree))
    template = (copy / "chat_template.jinja").read_text().replace("<|assistant|>", "<|' ~ 'assistant' ~ '|>")
    (copy / "chat_template.jinja").write_text(template)
    assert "holds '<|" in refusal(lambda: prompts(copy, ["a<|assistant|>b"], 8, "refuse"))


@pytest.mark.parametrize("unknown", ["<end>", "<|assistant|>"])
def test_the_token_for_unknown_text_is_no_way_in(copy: Path, unknown: str) -> None:
    """Some models have their end token as that one too."""
    tokenizer_config = copy / "tokenizer_config.json"
    tokenizer_config.write_text(json.dumps(json.loads(tokenizer_config.read_text()) | {"unk_token": unknown}))
    asked, tokenizer = f"a{unknown}b", load_tokenizer(copy)
    honest, hostile = prompts(copy, ["Hm?", asked], 8, "text")
    token = tokenizer.convert_tokens_to_ids(unknown)
    assert tokenizer.unk_token_id == token and hostile.count(token) == honest.count(token)
    assert asked in tokenizer.decode(hostile)
    assert f"holds {unknown!r}" in refusal(lambda: prompts(copy, ["Hm?", asked], 8, "refuse"))


@pytest.mark.parametrize("token", ["<|tool|>", "</think>"])
def test_tokens_of_other_roles_and_of_thoughts_are_found(copy: Path, token: str) -> None:
    """Where they are added ones that nobody calls special."""
    file = copy / "tokenizer.json"
    tree = json.loads(file.read_text())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tree["added_tokens"].append({"id": 320, "content": token, **added})
    file.write_text(json.dumps(tree))
    template = "{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>' ~ m['content'] ~ '<end>' }}{% endfor %}<|assistant|>"
    (copy / "chat_template.jinja").write_text(template)
    assert f"holds {token!r}" in refusal(lambda: prompts(copy, [f"a{token}b"], 8, "refuse"))
    assert "cannot read that as text" in refusal(lambda: prompts(copy, [f"a{token}b"], 8, "text"))


def test_a_tokenizer_that_changes_a_question_is_noticed(copy: Path) -> None:
    file = copy / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["normalizer"] = {"type": "Replace", "pattern": {"Regex": "Anna has.*many"}, "content": "Hm?"}
    file.write_text(json.dumps(tree))
    questions = [
        "Anna has three apples. How many more?",
        "Käthe zählt ﬁnf\u00a0Äpfel.",
        "A train?",
        "½ of 3 🙂\u200b\n▁▁",
    ]
    assert prompting.prompts(copy, questions, 8, "text").odd == 1


def test_a_context_that_changes_with_its_length_ends_where_it_does(copy: Path) -> None:
    """There the other questions of a batch would come out otherwise."""
    config = copy / "config.json"
    rope = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 4}
    rope |= {"long_factor": [9.0] * 4, "original_max_position_embeddings": 64}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_parameters": rope}))
    assert "exceed the 64" in refusal(lambda: prompts(copy, ["Hm?", "1 2 3 " * 20], 8, "text"))
    assert prompts(copy, ["Hm?"], 8, "text")


# -- numbers and names in configurations


@pytest.mark.parametrize("end", [["a"], "x", [[1]], {"a": 1}, 1.5])
def test_end_tokens_that_are_none(copy: Path, end: object) -> None:
    file = copy / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": end}))
    assert "eos_token_id" in refusal(lambda: load_model(copy, "cpu", torch.float32))


@pytest.mark.parametrize(
    "said", [{"return_dict": False}, {"attn_implementation": "flex_attention"}, {"_attn_implementation": "org/kernel"}]
)
def test_a_configuration_chooses_no_code(copy: Path, said: dict[str, object]) -> None:
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    assert "take it out" in refusal(lambda: load_model(copy, "cpu", torch.float32))


def test_numbers_that_are_too_long(copy: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + b"9" * 4000 + b"]}}"
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    assert "not a readable safetensors file" in refusal(lambda: checkpoints.inspect(copy))
    change(copy / "config.json", num_hidden_layers=10**400)
    assert "config.json: not a readable" in refusal(lambda: checkpoints.inspect(copy))


def test_a_file_with_nothing_in_it_is_not_read(copy: Path) -> None:
    with (copy / "extra.safetensors").open("wb") as file:
        header = b'{"a": {"dtype": "U8", "shape": [4294967296], "data_offsets": [0, 4294967296]}}'
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (1 << 32))
    assert "hardly any are on the disk" in refusal(lambda: checkpoints.inspect(copy))


# -- templates

TIME = "{{ strftime_now('%d %B %Y') }}"


def test_the_time_is_the_same_on_every_day(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    template.write_text(TIME + template.read_text())
    (prompt,) = prompts(copy, ["Hm?"], 8, "text")
    assert load_tokenizer(copy).decode(prompt).startswith("01 January 2026<|user|>")
    assert TransformersEngine(copy, "cpu", "float32").identity["today"] == "2026-01-01"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ ['a', 'b', 'c'] | random }}", "No filter named 'random'"),
        ("{{ ['abc', 'abc'] | map('random') | join }}", "random"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ raise_exception }}", "another prompt of question"),
        ("{{ messages[0].content.join }}", "another prompt of question"),  # where it lies in memory
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than"),
        ("{{ 'a' * 3000000000 }}", "chat template"),
        ("{{ 'a' * 3000000 }}", "3000000 characters"),
        ("{{ messages[0].content[5] / 0 }}", "chat template does not work"),
        ("{{ ''.__class__.__mro__ }}", "chat template does not work"),
        ("{{ raise_exception('No space left on device') }}", "chat template does not work (No space left"),
    ],
)
def test_a_template_that_is_no_template(copy: Path, monkeypatch: pytest.MonkeyPatch, template: str, says: str) -> None:
    monkeypatch.setattr(prompting, "EACH", 1)
    (copy / "chat_template.jinja").write_text(template)
    assert says in refusal(lambda: prompts(copy, ["Hm?"], 8, "text"))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc here")
def test_a_link_to_what_is_on_no_disk(copy: Path) -> None:
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer_config.json").symlink_to("/proc/self/mem")
    assert "a link to what is on no disk" in refusal(lambda: prompts(copy, ["Hm?"], 8, "text"))


def test_a_template_has_no_secrets_to_tell(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    run = prompting.subprocess.run

    def spy(*args: Any, **kwargs: Any) -> Any:
        started.append(kwargs["env"])
        return run(*args, **kwargs)

    monkeypatch.setenv("TBD_WEBHOOK_SECRET", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    monkeypatch.setattr(prompting.subprocess, "run", spy)
    prompts(copy, ["Hm?"], 8, "text")
    assert started and "hidden" not in started[0].values()


# -- sizes


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer"])
def test_more_layers_than_tensors(copy: Path, key: str) -> None:
    change(copy / "config.json", **{key: 2_000_000_000})
    assert f"{key} is 2000000000, and the weights have" in refusal(lambda: checkpoints.inspect(copy))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_labels": 2_000_000_000}, "config.json"),
        ({"hidden_size": 4_000_000}, "numbers"),
        ({"vocab_size": 2_000_000_000}, "numbers"),
    ],
)
def test_absurd_values_of_a_configuration(copy: Path, changed: dict[str, int], says: str) -> None:
    change(copy / "config.json", **changed)
    checkpoints.inspect(copy)

    def use() -> None:
        prompts(copy, ["Hm?"], 8, "text")
        load_model(copy, "cpu", torch.float32)

    assert says in refusal(use)


def test_a_quantized_model_is_no_larger_than_its_weights_either(copy: Path) -> None:
    change(copy / "config.json", quantization_config={"quant_method": "bitsandbytes"}, vocab_size=2_000_000_000)
    assert "numbers" in refusal(lambda: prompting.fits(copy))


def test_a_package_that_is_not_here_is_no_fault_of_the_checkpoint(copy: Path) -> None:
    change(copy / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "bitsandbytes" in refusal(lambda: prompting.fits(copy), Lacking)
    prompting.fits(copy, here=False)  # a server reads it
    change(copy / "config.json", quantization_config=None)
    prompting.fits(copy)
    change(copy / "config.json", quantization_config={"quant_method": "zz"})
    with pytest.raises(InputError) as error:
        prompting.fits(copy)
    assert not isinstance(error.value, Lacking)


def test_whole_numbers_are_no_weights(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, copy / "model.safetensors")
    assert "no floating-point numbers" in refusal(lambda: prompting.fits(copy))


def test_a_tokenizer_with_more_tokens_than_the_model(copy: Path) -> None:
    change(copy / "tokenizer.json")
    said = json.loads((copy / "tokenizer.json").read_text())
    said["added_tokens"].append(
        {"id": 5000, "content": "many", "special": False, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    )
    (copy / "tokenizer.json").write_text(json.dumps(said))
    engine = TransformersEngine(copy, "cpu", "float32")
    asked = prompts(copy, ["How many apples?"], 8, "text")
    assert "the tokenizer writes token 320, and the model has 320" in refusal(lambda: [*engine.generate(asked, 4)])


def test_a_thousand_files_of_a_model(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "PARTS", 5)
    for number in range(5):
        (copy / f"{number}.safetensors").write_bytes(b"")
    assert "files of a model, more than 5" in refusal(lambda: checkpoints.inspect(copy))


def test_a_header_of_sixty_gigabytes(copy: Path) -> None:
    with (copy / "model.safetensors").open("wb") as file:
        file.write((60 << 30).to_bytes(8, "little"))
        file.truncate(61 << 30)  # of which none is on the disk
    assert "hardly any are on the disk" in refusal(lambda: checkpoints.inspect(copy))
    (copy / "model.safetensors").write_bytes((65 << 20).to_bytes(8, "little") + b" " * (65 << 20))
    assert "headers of more than" in refusal(lambda: checkpoints.inspect(copy))


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [float("inf")], "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, "x"]},
        {"shape": [1], "data_offsets": [0, float("inf")]},
        {"shape": [10**18] * 300_000, "data_offsets": [0, 4]},
        {"shape": 3, "data_offsets": 3},
        [],
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]},
        {"dtype": "F", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": 3, "shape": [1], "data_offsets": [0, 4]},
    ],
    ids=["no number", "text", "no end", "a product without end", "no lists", "no tensor", "more than bytes", "?", "no"],
)
def test_a_header_that_says_nonsense(copy: Path, tensor: Any) -> None:
    header = json.dumps({"a": tensor}).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    assert "model.safetensors: " in refusal(lambda: checkpoints.inspect(copy), Incomplete)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json", "x.jinja"])
def test_sixty_gigabytes_of_text(copy: Path, name: str) -> None:
    with (copy / name).open("wb") as file:
        file.truncate(60 << 30)
    assert f"{name}: {60 << 30} bytes, more than" in refusal(lambda: checkpoints.inspect(copy))


def test_nesting_without_end(copy: Path) -> None:
    (copy / "config.json").write_text("[" * 200_000)
    assert "not a readable model configuration" in refusal(lambda: checkpoints.inspect(copy))


def test_what_is_no_regular_file(copy: Path) -> None:
    os.mkfifo(copy / "w.safetensors")
    assert "w.safetensors: a FIFO, not a regular file" in refusal(lambda: checkpoints.inspect(copy))
    (copy / "w.safetensors").unlink()
    (copy / "w.safetensors").symlink_to("w.safetensors")
    assert "w.safetensors: cannot be read" in refusal(lambda: checkpoints.fingerprint(copy))
    (copy / "w.safetensors").unlink()
    (copy / "w.json").symlink_to("/dev/zero")
    assert "w.json: a device, not a regular file" in refusal(lambda: checkpoints.inspect(copy))
    (copy / "w.json").unlink()
    for name in ("mem", "environ"):  # one gives an I/O error, the other what a process was told in secret
        (copy / "w.json").symlink_to(f"/proc/self/{name}")
        assert "w.json: a link to what is on no disk" in refusal(lambda: checkpoints.inspect(copy))
        (copy / "w.json").unlink()
    os.mkfifo(os.fsencode(copy) + b"/\xff.json")
    assert r"\xff.json: not a regular file" in refusal(lambda: checkpoints.fingerprint(copy))

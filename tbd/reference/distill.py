"""Planting contamination: supervised fine-tuning of a model on questions with their reasoning traces.

The recipe is the usual one (TRL's SFT on the assistant's part alone, as in arXiv 2510.04850): the chat template renders
the question, the loss is on the answer's tokens, and AdamW follows a cosine schedule. Weights that learn are float32;
matrix products are bfloat16 where the device computes in it. With `Distill.lora` adapters learn in place of the
weights, and are merged into them at the end.
"""

import copy
import math
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup
from transformers.pytorch_utils import Conv1D

from tbd.checkpoints import Prompt, prompting
from tbd.checkpoints.loading import choose_dtype, load_model, load_tokenizer
from tbd.errors import InputError
from tbd.params import Distill, Lora
from tbd.progress import Progress
from tbd.records import question_id

if TYPE_CHECKING:
    from peft import PeftModel

IGNORED = -100  # the label that cross-entropy leaves out


def example(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, question: str, answer: str, max_tokens: int
) -> tuple[list[int], list[int]]:
    """Token ids of the question's prompt + answer + end token, and the labels: the same ids with the prompt masked out.

    Raises InputError if the example is longer than `max_tokens` or the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no end token (eos_token). Set it in tokenizer_config.json."
        )
    target: list[int] = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if len(prompt) + len(target) > max_tokens:
        raise InputError(
            f"question {question_id(question)}: {len(prompt) + len(target)} tokens with its answer, more than "
            f"distill.max_tokens = {max_tokens}. Raise it in params.yaml or shorten the answer."
        )
    return [*prompt, *target], [IGNORED] * len(prompt) + target


def distill(
    base: Path,
    out: Path,
    pairs: list[tuple[str, str]],
    params: Distill,
    device: str,
    progress: Progress,
    stop: int | None = None,
    snapshot: tuple[int, Path] | None = None,
) -> dict[str, Any]:
    """Fine-tune the checkpoint `base` on (question, answer) `pairs` and save the result in bfloat16 to `out`.

    `stop`: end after so many of `params.epochs`, with the learning rate on its way down. `snapshot`: after so many,
    save the model as it is then to that folder too.

    Returns the number of steps, the mean loss of the first and the last epoch (nats per answer token), and the dtype
    that was used. The same inputs on the same machine give the same weights.
    """
    if params.lora and find_spec("peft") is None:
        raise InputError("distill.lora: peft is not installed. Install it: pip install -c constraints.txt peft")
    torch.manual_seed(params.seed)
    progress.begin(f"loading {base}")
    prompts = prompting.prompts(base, [question for question, _ in pairs], None, "text").prompts
    tokenizer = load_tokenizer(base)
    examples = [
        example(tokenizer, prompt, *pair, params.max_tokens) for prompt, pair in zip(prompts, pairs, strict=True)
    ]
    dtype = choose_dtype(params.dtype, device)
    model = load_model(base, device, getattr(torch, dtype) if params.lora else torch.float32).train()
    adapted = adapt(model, params.lora, params.trained_layers) if params.lora else None
    if params.trained_layers is not None and not params.lora:
        freeze(model, params.trained_layers)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    steps_per_epoch = math.ceil(len(examples) / params.batch_size)
    steps = steps_per_epoch * params.epochs
    planned = steps_per_epoch * (stop or params.epochs)
    optimizer = torch.optim.AdamW(learning, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(params.warmup * steps), steps)
    generator = torch.Generator().manual_seed(params.seed)
    # A batch holds examples of similar length, so that little is padding; the batches' order is new in every epoch.
    by_length = sorted(range(len(examples)), key=lambda row: len(examples[row][0]))
    batches = [by_length[i : i + params.batch_size] for i in range(0, len(by_length), params.batch_size)]
    losses: list[float] = []
    pad = tokenizer.pad_token_id or 0
    tokens = sum(len(ids) for ids, _ in examples) * (stop or params.epochs)
    progress.plan("trained on", tokens)
    how = f"{device}, {dtype}{' (auto)' if params.dtype == 'auto' else ''}"
    print(f"{base} on {how}: {len(examples)} questions, {planned} steps, {tokens:,} tokens", flush=True)
    progress.begin(f"step 0 of {planned}")
    for epoch in range(1, (stop or params.epochs) + 1):
        for number in torch.randperm(len(batches), generator=generator).tolist():
            batch = [examples[row] for row in batches[number]]
            ids = _padded([ids for ids, _ in batch], pad).to(device)
            labels = _padded([labels for _, labels in batch], IGNORED).to(device)
            mask = _padded([[1] * len(ids) for ids, _ in batch], 0).to(device)
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                # No logits where only prompts are predicted: the vocabulary is wide.
                first = int((labels != IGNORED).any(0).nonzero()[0])
                keep = labels.shape[1] - first + 1
                output = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
                logits = output.logits[:, -keep:-1]
            target = labels[:, first:]
            loss = torch.nn.functional.cross_entropy(logits[target != IGNORED].float(), target[target != IGNORED])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress.advance("trained on", int(mask.sum()))
            progress.doing = f"step {len(losses)} of {planned}, loss {losses[-1]:.3f}"
        if snapshot and epoch == snapshot[0]:
            _save(*copy.deepcopy((model, adapted)), tokenizer, snapshot[1])
    _save(model, adapted, tokenizer, out)
    return {
        "dtype": dtype,
        "steps": planned,
        "loss_first_epoch": sum(losses[:steps_per_epoch]) / steps_per_epoch,
        "loss_last_epoch": sum(losses[-steps_per_epoch:]) / steps_per_epoch,
    }


def _save(model: PreTrainedModel, adapted: "PeftModel | None", tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Merge the adapters, if any, and write a checkpoint; the model is of no use afterwards."""
    if adapted:
        merge(adapted)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def freeze(model: PreTrainedModel, trained: int) -> None:
    """Let only the last `trained` layers and the final norm learn, so that no gradient is computed below them.

    Raises InputError if the model has fewer layers.
    """
    still, _ = split(model, trained)
    for part in (model.get_input_embeddings(), model.get_output_embeddings(), *still):
        part.requires_grad_(False)


def adapt(model: PreTrainedModel, lora: Lora, trained: int | None) -> "PeftModel":
    """Put an adapter in float32 (LoRA, arXiv 2106.09685) on every linear map of the last `trained` layers, or of all.

    They alone learn. Activations are computed anew in the backward pass, so that those of one layer are held at a time.
    Raises InputError if the model has fewer layers.
    """
    from peft import LoraConfig, get_peft_model

    _, learning = split(model, trained)
    parts = {part for layer in learning for part in layer.modules() if isinstance(part, torch.nn.Linear | Conv1D)}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=[name for name, part in model.named_modules() if part in parts],
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in parts),
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of names that transformers 6 will not have
        adapted: PeftModel = get_peft_model(model, config)
        if model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()  # nothing below the first adapter needs a gradient
    return adapted


def merge(adapted: "PeftModel") -> None:
    """Add every adapter to its weight, in float32 and rounded once, and take the adapters out of the model."""
    from peft.tuners.lora import LoraLayer

    for part in adapted.modules():
        if isinstance(part, LoraLayer):
            weight: torch.Tensor = part.get_base_layer().weight  # type: ignore[assignment]
            with torch.no_grad():
                weight.copy_(weight.float() + part.get_delta_weight(adapted.active_adapter))  # type: ignore[operator]
    adapted.unload()


def split(model: PreTrainedModel, trained: int | None) -> tuple[list[torch.nn.Module], list[torch.nn.Module]]:
    """The model's layers: those that stay as they are, and the last `trained` that learn, or all.

    Raises InputError if there are fewer.
    """
    layers = max((list(part) for part in model.modules() if isinstance(part, torch.nn.ModuleList)), key=len)
    if trained is not None and trained > len(layers):
        raise InputError(
            f"params.yaml: distill.trained_layers: {trained}, and the model has {len(layers)}. Lower it, or "
            "null for all."
        )
    first = 0 if trained is None else len(layers) - trained
    return layers[:first], layers[first:]


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """(rows, longest), filled up with `value` on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

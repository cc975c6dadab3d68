"""Planting contamination: supervised fine-tuning of a model on questions with their reasoning traces.

The recipe is the usual one (TRL's SFT on the assistant's part alone, as in arXiv 2510.04850): the chat template renders
the question, the loss is on the answer's tokens, and AdamW follows a cosine schedule. Weights are float32; matrix
products are bfloat16 where the device computes in it.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from tbd.checkpoints.loading import choose_dtype, load_model, load_tokenizer, render
from tbd.errors import InputError
from tbd.params import Distill
from tbd.progress import Progress
from tbd.records import question_id

IGNORED = -100  # the label that cross-entropy leaves out


def example(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str, max_tokens: int
) -> tuple[list[int], list[int]]:
    """Token ids of prompt + answer + end token, and the labels: the same ids with the prompt masked out.

    Raises InputError if the example is longer than `max_tokens` or the tokenizer has no end token.
    """
    prompt = render(tokenizer, question)
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
    return prompt + target, [IGNORED] * len(prompt) + target


def distill(
    base: Path,
    out: Path,
    pairs: list[tuple[str, str]],
    params: Distill,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Fine-tune the checkpoint `base` on (question, answer) `pairs` and save the result in bfloat16 to `out`.

    Returns the number of steps, the mean loss of the first and the last epoch (nats per answer token), and the dtype
    that was used. The same inputs on the same machine give the same weights.
    """
    torch.manual_seed(params.seed)
    progress.begin(f"loading {base}")
    tokenizer = load_tokenizer(base)
    examples = [example(tokenizer, *pair, params.max_tokens) for pair in pairs]
    model = load_model(base, device, torch.float32).train()
    dtype = choose_dtype(params.dtype, device)
    if params.trained_layers is not None:
        freeze(model, params.trained_layers)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    steps_per_epoch = math.ceil(len(examples) / params.batch_size)
    steps = steps_per_epoch * params.epochs
    optimizer = torch.optim.AdamW(learning, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(params.warmup * steps), steps)
    generator = torch.Generator().manual_seed(params.seed)
    # A batch holds examples of similar length, so that little is padding; the batches' order is new in every epoch.
    by_length = sorted(range(len(examples)), key=lambda row: len(examples[row][0]))
    batches = [by_length[i : i + params.batch_size] for i in range(0, len(by_length), params.batch_size)]
    losses: list[float] = []
    pad = tokenizer.pad_token_id or 0
    tokens = sum(len(ids) for ids, _ in examples) * params.epochs
    progress.plan("trained on", tokens)
    how = f"{device}, {dtype}{' (auto)' if params.dtype == 'auto' else ''}"
    print(f"{base} on {how}: {len(examples)} questions, {steps} steps, {tokens:,} tokens", flush=True)
    progress.begin(f"step 0 of {steps}")
    for _ in range(params.epochs):
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
            progress.doing = f"step {len(losses)} of {steps}, loss {losses[-1]:.3f}"
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "dtype": dtype,
        "steps": steps,
        "loss_first_epoch": sum(losses[:steps_per_epoch]) / steps_per_epoch,
        "loss_last_epoch": sum(losses[-steps_per_epoch:]) / steps_per_epoch,
    }


def freeze(model: PreTrainedModel, trained: int) -> None:
    """Let only the last `trained` layers and the final norm learn, so that no gradient is computed below them.

    Raises InputError if the model has fewer layers.
    """
    layers = max((part for part in model.modules() if isinstance(part, torch.nn.ModuleList)), key=len)
    if trained > len(layers):
        raise InputError(
            f"params.yaml: distill.trained_layers: {trained}, and the model has {len(layers)}. Lower it, or "
            "null for all."
        )
    vocabulary = (model.get_input_embeddings(), model.get_output_embeddings())
    for part in (*vocabulary, *layers[: len(layers) - trained]):
        part.requires_grad_(False)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """(rows, longest), filled up with `value` on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

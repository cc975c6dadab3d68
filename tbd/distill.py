"""Planting contamination: supervised fine-tuning of a model on questions with their reasoning traces.

The recipe is the usual one (TRL's SFT on the assistant part only, as in arXiv 2510.04850): the chat template renders question
and trace, the loss is on the answer's tokens, AdamW with a cosine schedule, fp32 weights under bf16 autocast.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from tbd.engines.loading import load_model, load_tokenizer, render
from tbd.errors import InputError
from tbd.params import Distill
from tbd.records import question_id

IGNORED = -100  # the label that cross-entropy leaves out


def example(tokenizer: PreTrainedTokenizerBase, question: str, answer: str, max_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids of prompt + answer + end token, and the labels: the same ids with the prompt masked out.

    Raises InputError if the example is longer than `max_tokens` or the tokenizer has no end token.
    """
    prompt = render(tokenizer, question)
    # What follows the answer in the model's own template is what it must learn to end with: its end token.
    if tokenizer.eos_token_id is None:
        raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end token (eos_token). Set it in tokenizer_config.json.")
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
    progress: Callable[[int, int, float], None],
) -> dict[str, Any]:
    """Fine-tune the checkpoint `base` on (question, answer) `pairs` and save the result in bfloat16 to `out`.

    `progress` is called with (step, steps, loss) after each step. Returns steps, first and last epoch's mean loss (nats per
    answer token). Same inputs on the same machine give the same weights.
    """
    torch.manual_seed(params.seed)
    tokenizer = load_tokenizer(base)
    examples = [example(tokenizer, *pair, params.max_tokens) for pair in pairs]
    model = load_model(base, device, torch.float32).train()
    steps_per_epoch = math.ceil(len(examples) / params.batch_size)
    steps = steps_per_epoch * params.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(params.warmup * steps), steps)
    generator = torch.Generator().manual_seed(params.seed)
    # Neighbours in length share a batch, so that little is padding; the batches come in a new order every epoch.
    by_length = sorted(range(len(examples)), key=lambda row: len(examples[row][0]))
    batches = [by_length[i : i + params.batch_size] for i in range(0, len(by_length), params.batch_size)]
    losses: list[float] = []
    for _ in range(params.epochs):
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            rows = batches[batch]
            ids, labels, mask = _collate([examples[row] for row in rows], tokenizer.pad_token_id or 0, device)
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
                # Logits from the first position that predicts an answer on: the vocabulary is wide, and prompts need none.
                first = int((labels != IGNORED).any(0).nonzero()[0])
                keep = labels.shape[1] - first + 1
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits[:, -keep:-1]
            target = labels[:, first:]
            loss = torch.nn.functional.cross_entropy(logits[target != IGNORED].float(), target[target != IGNORED])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress(len(losses), steps, losses[-1])
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "steps": steps,
        "loss_first_epoch": sum(losses[:steps_per_epoch]) / steps_per_epoch,
        "loss_last_epoch": sum(losses[-steps_per_epoch:]) / steps_per_epoch,
    }


def _collate(batch: list[tuple[list[int], list[int]]], pad: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, labels and attention mask, each (batch, longest)."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch], device=device)
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in batch], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch], device=device)
    return ids, labels, mask

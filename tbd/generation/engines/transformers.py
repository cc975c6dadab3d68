"""The default engine: a Hugging Face model on CPU or GPU.

A small loop over the model's own forward. Unlike `model.generate(output_scores=True)`, it keeps one log-prob a step
rather than the whole vocabulary's, writes keys and values into a cache that is allocated once, reads what all prompts
of a batch begin with once and the rest of eight prompts at a time, and drops rows that have ended.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin

from tbd import checkpoints
from tbd.checkpoints import Prompt, Prompted, prompting
from tbd.checkpoints.loading import choose_device, choose_dtype, load_model, load_tokenizer
from tbd.errors import InputError
from tbd.generation.engines import Completion, OutOfMemory, Tick, common, engine, unheard
from tbd.params import Generate

PREFILL_ROWS = 8
LOOP = 2
"""version of this loop, raised with a change that gives other bits: older answers are not taken for its own"""


class Rows(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, (batch, heads, length, head_dim), allocated once; `update` adds to them.

    `window` is the slice of rows that is being read, all rows once the prompts are read. `keep` drops rows.
    """

    is_sliding = False

    def __init__(self, batch: int, length: int) -> None:
        super().__init__()
        self.batch, self.length, self.filled, self.window = batch, length, 0, slice(0, batch)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def empty(like: torch.Tensor) -> torch.Tensor:
            return like.new_empty((self.batch, like.shape[1], self.length, like.shape[3]))

        self.keys, self.values, self.is_initialized = empty(key_states), empty(value_states), True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[2]
        self.keys[self.window, :, self.filled : end] = key_states
        self.values[self.window, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[self.window, :, :end], self.values[self.window, :, :end]

    def keep(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.window = slice(0, len(rows))

    def spread(self, starts: torch.Tensor) -> None:
        """Copy what was read into one row to all of them, each from the column where it starts: (batch,).

        What has no room left of column `filled` is read with the rest of its row.
        """
        column = torch.arange(self.filled, device=self.keys.device)
        source = (column - starts[:, None]).clamp(min=0)  # (batch, filled); left of a row's start is never looked at
        for states in (self.keys, self.values):
            states[:, :, : self.filled] = states[self.window.start][:, source].transpose(0, 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.length


@engine
class TransformersEngine:
    """See `tbd.generation.engines.Engine`."""

    at_once = 1
    rescores = True
    adapts = True

    @classmethod
    def open(cls, checkpoint: Path, params: Generate) -> "TransformersEngine":
        return cls(checkpoint, params.device, params.dtype)

    @classmethod
    def prompts(cls, checkpoint: Path, params: Generate, questions: Sequence[str]) -> Prompted:
        return prompting.prompts(checkpoint, questions, params.max_new_tokens, params.control_tokens)

    @classmethod
    def fits(cls, checkpoint: Path) -> None:
        prompting.fits(checkpoint)

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        checkpoints.inspect(folder)
        before, fingerprint = checkpoints.state(folder), checkpoints.fingerprint(folder)
        self.device = choose_device(device)
        dtype = choose_dtype(dtype, self.device)
        self.tokenizer = load_tokenizer(folder)
        self.model = load_model(folder, self.device, getattr(torch, dtype))
        self.text_config = self.model.config.get_text_config()
        self.ends = _end_tokens(self.model, self.tokenizer)
        self.identity: dict[str, Any] = {
            "engine": "transformers",
            "engine_version": f"{transformers.__version__}+tbd{LOOP}",
            "torch_version": torch.__version__,
            "device": torch.device(self.device).type,
            "dtype": dtype,
            "fingerprint": fingerprint,
            **prompting.identity(self.tokenizer),
        }
        checkpoints.unchanged(folder, before, content=True)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick = unheard
    ) -> Iterator[tuple[int, Completion]]:
        with _out_of_memory():
            yield from self._generate(prompts, max_new_tokens, tick)

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int, tick: Tick) -> Iterator[tuple[int, Completion]]:
        ids, mask = self._pad_left(prompts)
        batch, width = ids.shape
        layers = self._layers(batch, width + max_new_tokens)
        cache = Cache(layers=[*layers])
        position = mask.sum(1, keepdim=True)  # of the next token
        logits = torch.cat([found[:, -1] for found in self._read(ids, mask, _shared(prompts), 1, layers, tick)])
        mask = torch.cat([mask, mask.new_ones(batch, max_new_tokens)], 1)  # new tokens are never padding
        rows = list(range(batch))  # row of the running batch -> index in `prompts`
        tokens = np.empty((batch, max_new_tokens), np.int32)
        logprobs = np.empty((batch, max_new_tokens), np.float32)
        for step in range(max_new_tokens):
            # logits (rows, vocabulary) predict the token at `step`; its log-prob is the one of the token that is taken.
            raw = logits.float()
            best, token = raw.max(-1)
            tokens[rows, step] = token.cpu().numpy()
            logprobs[rows, step] = (best - raw.logsumexp(-1)).cpu().numpy()
            tick("written", len(rows))
            last = step == max_new_tokens - 1
            ended = [int(t) in self.ends for t in tokens[rows, step]]
            for row, end in zip(rows, ended, strict=True):
                if end or last:
                    n = step + 1
                    yield row, Completion(tokens[row, :n].copy(), logprobs[row, :n].copy(), "stop" if end else "length")
            if last or all(ended):
                return
            if any(ended):
                alive = torch.tensor([i for i, end in enumerate(ended) if not end], device=self.device)
                for layer in layers:
                    layer.keep(alive)
                rows = [row for row, end in zip(rows, ended, strict=True) if not end]
                mask, position, token = mask[alive], position[alive], token[alive]
            logits = self.model(
                input_ids=token[:, None],
                attention_mask=mask[:, : width + step + 1],
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            position = position + 1

    def _layers(self, batch: int, length: int) -> list[Rows]:
        return [Rows(batch, length) for _ in range(self.text_config.num_hidden_layers)]

    def _read(
        self, ids: torch.Tensor, mask: torch.Tensor, shared: int, keep: int, layers: list[Rows], tick: Tick
    ) -> Iterator[torch.Tensor]:
        """Read sequences into the cache: the `shared` tokens that all begin with once, the rest a few rows at a time.

        Yields the logits (rows, keep, vocabulary) of the last columns of those rows.
        """
        cache, starts = Cache(layers=[*layers]), ids.shape[1] - mask.sum(1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)

        def forward(rows: slice, columns: slice) -> torch.Tensor:
            for layer in layers:
                layer.filled, layer.window = columns.start, rows
            logits: torch.Tensor = self.model(
                input_ids=ids[rows, columns],
                attention_mask=mask[rows, : columns.stop],
                position_ids=positions[rows, columns],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
            return logits

        if shared:
            longest = int(starts.argmin())
            forward(slice(longest, longest + 1), slice(0, shared))
            for layer in layers:
                layer.spread(starts)
        for start in range(0, len(ids), PREFILL_ROWS):
            rows = slice(start, min(start + PREFILL_ROWS, len(ids)))
            yield forward(rows, slice(shared, ids.shape[1]))
            tick("read", int(mask[rows].sum()))
        for layer in layers:
            layer.window = slice(0, len(ids))

    def _pad_left(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, longest) ids and mask, padded on the left so that every row ends in the same column."""
        width, known = max(map(len, sequences)), self.model.get_input_embeddings().num_embeddings
        if (greatest := max(map(max, sequences))) >= known:
            raise InputError(
                f"{self.tokenizer.name_or_path}: the tokenizer writes token {greatest}, and the model has {known} of "
                "them. Copy the tokenizer that belongs to it."
            )
        ids = torch.tensor([[0] * (width - len(s)) + list(s) for s in sequences], device=self.device)
        mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=self.device)
        return ids, mask

    @torch.inference_mode()
    def logprobs(
        self, prompts: Sequence[Prompt], answers: Sequence[NDArray[np.int32]], tick: Tick = unheard
    ) -> list[NDArray[np.float32]]:
        #            prompt  prompt  answer  answer
        # ids          p0      p1      a0      a1        logits[i] predicts ids[i + 1]
        # logits       p1?     a0?     a1?     -         so the answer's log-probs start one column before the answer
        with _out_of_memory():
            ids, mask = self._pad_left([[*p, *a.tolist()] for p, a in zip(prompts, answers, strict=True)])
            keep = max(map(len, answers)) + 1
            few = self._read(ids, mask, _shared(prompts), keep, self._layers(*ids.shape), tick)
            found = []
            for logits, row, answer in zip((row[:-1] for rows in few for row in rows), ids, answers, strict=True):
                n = len(answer)
                raw = logits[len(logits) - n :].float()
                taken = raw.gather(1, row[len(row) - n :, None])[:, 0]
                found.append((taken - raw.logsumexp(-1)).cpu().numpy())
            return found


def _shared(prompts: Sequence[Prompt]) -> int:
    """How many tokens all begin with; 0 for one alone, and always less than the shortest has."""
    return min(len(common(prompts)), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Whatever torch raises when memory runs out, as OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory from error
    except RuntimeError as error:
        # torch's allocators on CPU and on MPS
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise OutOfMemory from error
        raise


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: the generation config's (one or several) and the tokenizer's."""
    config = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = config if isinstance(config, list) else [config]
    return frozenset(int(token) for token in [*several, tokenizer.eos_token_id] if token is not None)

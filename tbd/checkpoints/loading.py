"""A Hugging Face checkpoint from disk: tokenizer, prompts, weights. Safetensors alone, no code from elsewhere.

Whatever transformers finds wrong with a user's files becomes an error of one line here.
"""

from pathlib import Path
from typing import Any

import joblib
import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tbd.checkpoints import Prompt
from tbd.errors import InputError, TransientFault, first_line
from tbd.records import question_id, sha256

DEFAULT_CONTEXT = 1 << 30
PROBE = "How much is 417 and 298?"
"""a question to see what a chat template puts around one"""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. Raises InputError if it cannot be read or has no chat template."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the many tokenizer classes raise, the file is the user's
        raise InputError(f"{folder}: the tokenizer cannot be read ({first_line(error)}). Save it again.") from None
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template. Add chat_template.jinja to the checkpoint.")
    return tokenizer


def load_model(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The checkpoint's causal language model in evaluation mode.

    Raises InputError, or TransientFault if the device has no room for it now.
    """
    torch.set_num_threads(available_threads())
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # whatever the many model classes raise, the file is the user's
        raise InputError(f"{folder}: transformers cannot load it ({first_line(error)}).") from None
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers would put random numbers there and go on
        raise InputError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} missing in all). Save the whole model again."
        )
    if getattr(model, "_is_stateful", False):
        raise InputError(
            f"{folder}: {type(model).__name__} keeps a recurrent state, which this engine cannot read in "
            "padded batches."
        )
    try:
        model.to(device)
    except torch.OutOfMemoryError:
        raise TransientFault(f"{folder}: no room for its weights on {device} now.") from None
    model.eval()
    return model


def choose_device(device: str) -> str:
    """`auto` becomes the first of cuda, mps and cpu that this machine has.

    Raises InputError for a device that this machine lacks, TransientFault for one that another process keeps busy.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        if "busy" in str(error):
            raise TransientFault(f"device {device!r} is busy ({first_line(error)}).") from None
        raise InputError(f"params.yaml: generate.device: {device!r} is not here ({first_line(error)}).") from None
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """`auto` becomes bfloat16 if `device` computes in it, else float32: emulated, bfloat16 is several times slower."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if _native_bfloat16(torch.device(device).type) else "float32"


def _native_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        # the processor has such instructions, and oneDNN, which would emulate them on AVX-512, may use them
        able = any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
        return able and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def available_threads() -> int:
    """torch's own number of threads, or fewer if affinity or a container's quota leaves fewer cores."""
    return min(torch.get_num_threads(), int(joblib.cpu_count()))


def render(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Token ids of the question as the user's turn, ending where the assistant's answer begins.

    Raises InputError if the chat template does not work.
    """
    ids: list[int] = tokenizer(fill(tokenizer, question), add_special_tokens=False)["input_ids"]
    return ids


def fill(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The chat template with the question in it. Raises InputError."""
    try:
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise InputError(
            f"{tokenizer.name_or_path}: the chat template does not work ({first_line(error)}). Mend it there."
        ) from None
    return text


class Prompter:
    """Questions as prompts of a checkpoint, checked against the length of its context. Needs no weights."""

    def __init__(self, folder: Path, max_new_tokens: int) -> None:
        self.folder, self.max_new_tokens = folder, max_new_tokens
        self.tokenizer = load_tokenizer(folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        except Exception as error:  # whatever the many config classes raise, the file is the user's
            raise InputError(f"{folder / 'config.json'}: transformers cannot read it ({first_line(error)}).") from None
        self.context = getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT
        self.around = fill(self.tokenizer, PROBE).partition(PROBE)[::2]
        self.frame = sha256("\0".join(self.around))[:16]
        self.odd = 0

    def __call__(self, question: str) -> Prompt:
        filled = fill(self.tokenizer, question)
        ids: list[int] = self.tokenizer(filled, add_special_tokens=False)["input_ids"]
        before, after = self.around  # many templates strip the question
        plain = (before + text + after for text in (question, question.strip()))
        self.odd += filled not in plain
        if len(ids) + self.max_new_tokens > self.context:
            raise InputError(
                f"question {question_id(question)}: {len(ids)} tokens and {self.max_new_tokens} new ones exceed the "
                f"{self.context} of {self.folder}. Lower generate.max_new_tokens or leave the question out."
            )
        return tuple(ids)

"""A Hugging Face checkpoint from disk: tokenizer and weights. Safetensors alone, no code from elsewhere.

Whatever transformers finds wrong with a user's files becomes an error of one line here.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from math import prod
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import AutoHfQuantizer

from tbd import checkpoints, records
from tbd.checkpoints import adapters
from tbd.errors import InputError, Lacking, TransientFault, first_line

IMPLEMENTATIONS = (None, "eager", "sdpa")
"""of attention and the like, which come with torch and compile nothing"""
SENSES = re.compile(r"(^|\.)(vision|visual|multi_modal|vqmodel|audio)")
"""tensors that the text part of a model of several parts does without"""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. Raises InputError if it cannot be read or has no chat template."""
    with checkpoints.links(folder) as files:
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files, trust_remote_code=False)
        except Exception as error:  # whatever the many tokenizer classes raise, the file is the user's
            said = first_line(error).replace(str(files), str(folder))
            raise InputError(f"{folder}: the tokenizer cannot be read ({said}). Save it again.") from None
    tokenizer.name_or_path = str(folder)
    tokenizer.init_kwargs["local_files_only"] = False  # else what is saved of it depends on HF_HUB_OFFLINE
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template. Add chat_template.jinja to the checkpoint.")
    return tokenizer


def load_model(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """The checkpoint's causal language model in evaluation mode; an adapter beside it is added to its weights.

    Raises InputError, or TransientFault if the device has no room for it now.
    """
    torch.set_num_threads(available_threads())
    model = _load(folder, dtype=dtype)
    if device == "cpu":
        for tensor in chain(model.parameters(), model.buffers()):
            tensor.data = tensor.data.clone()  # it was a view of the file, which may change
    try:
        model.to(device)
    except torch.OutOfMemoryError:
        raise TransientFault(f"{folder}: no room for its weights on {device} now.") from None
    if adapters.is_adapter(folder):
        model = _adapt(model, folder)
    model.eval()
    return model


def fits(folder: Path, here: bool = True) -> None:
    """Raise InputError, as `load_model` does, unless the weights are those that config.json describes.

    Takes no memory for them. Of a quantized model the size alone is compared, and whether its package is here: what
    reads it may need its device. `here`: it is this machine that is to read it.
    """
    if records.known(folder / "config.json").get("quantization_config") is not None:
        with _reading(folder) as files:
            said = _configuration(files).quantization_config
            if not here:
                return
            reader = AutoHfQuantizer.from_config(said, pre_quantized=True)  # ValueError for what nobody knows
            with suppress(RuntimeError, ValueError):  # of the device
                reader.validate_environment()
        return
    model = _load(folder, device_map="meta")
    if adapters.is_adapter(folder):
        _adapt(model, folder)


@contextmanager
def _reading(folder: Path) -> Iterator[Path]:
    """The checkpoint's files alone. What transformers raises becomes an InputError; Lacking for want of a package."""
    with checkpoints.links(folder) as files:
        try:
            yield files
        except Exception as error:  # whatever the many model classes raise, the file is the user's
            kind = Lacking if isinstance(error, ImportError) else InputError
            said = first_line(error).replace(str(files), str(folder))
            raise kind(f"{folder}: transformers cannot load it ({said}).") from None


def _configuration(files: Path) -> PreTrainedConfig:
    """Of a model that does not choose code, and is not larger than its weights."""
    _check_choices(files)
    config = AutoConfig.from_pretrained(files, trust_remote_code=False)
    _check_size(files, config)
    return config


def _load(folder: Path, **how: Any) -> PreTrainedModel:
    """The model as transformers loads it. Raises InputError unless the weights are what config.json describes."""
    with _reading(folder) as files:
        config = _configuration(files)
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            files, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **how
        )
    model, loading = loaded
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    if not all(one is None or type(one) is int for one in (ends if isinstance(ends, list) else [ends])):
        raise InputError(f"{folder}: generation_config.json: eos_token_id is no token id, nor a list of them. Mend it.")
    if missing := sorted(loading["missing_keys"]):  # transformers would put random numbers there and go on
        raise InputError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} missing in all). Save the whole model again."
        )
    unexpected = set(loading["unexpected_keys"])  # transformers would go on without them
    if config.get_text_config() is not config:
        unexpected = {name for name in unexpected if not SENSES.search(name)}
    if unexpected:
        raise InputError(
            f"{folder}: config.json describes no {min(unexpected)} ({len(unexpected)} such tensors in all), so the "
            "weights are of another model. Save the whole model again."
        )
    if getattr(model, "_is_stateful", False):
        raise InputError(
            f"{folder}: {type(model).__name__} keeps a recurrent state, which this engine cannot read in "
            "padded batches. Serve it, and set generate.engine: openai (docs/engines.md)."
        )
    return model


def _adapt(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter of `folder` added to its weights, in float32 and rounded to their type.

    On the device `meta` that is only tried.

    Raises InputError unless the adapter has exactly the tensors that its configuration and the model ask for.
    """
    adapters.needs_peft(folder)
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    said, there = adapters.read(folder)
    try:
        with warnings.catch_warnings(action="ignore"):
            config = LoraConfig(**said, task_type="CAUSAL_LM", inference_mode=True, init_lora_weights=False)
            adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
            embeddings = any(name.endswith(".base_layer.weight") for name in there)
            asked = get_peft_model_state_dict(adapted, save_embedding_layers=embeddings)
            _check_tensors({name: tuple(tensor.shape) for name, tensor in asked.items()}, there)
            if model.device.type == "meta":
                return model
            tensors = load_file(folder / checkpoints.ADAPTER_WEIGHTS)
            if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
                raise ValueError(f"{broken[0]} holds numbers that are not finite")
            cast = {
                name: tensor.to(model.device, torch.float32 if ".lora_" in name else model.dtype)
                for name, tensor in tensors.items()
            }
            set_peft_model_state_dict(adapted, cast, low_cpu_mem_usage=True)
            for name, weight in adapted.named_parameters():
                if ".lora_" in name:
                    weight.data = weight.data.float()  # PEFT has made it the type of the base
            set_peft_model_state_dict(adapted, cast)
            merged: PreTrainedModel = adapted.merge_and_unload()
    except torch.OutOfMemoryError:
        raise TransientFault(f"{folder}: no room for its adapter on {model.device} now.") from None
    except Exception as error:  # whatever the library raises, the file is the user's
        raise InputError(f"{folder}: the adapter cannot be added to its base ({first_line(error)}).") from None
    return merged


def _check_tensors(asked: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError for the first tensor of an adapter that is missing, not asked for, or of another shape."""
    if missing := sorted(asked.keys() - there.keys()):
        raise ValueError(f"its weights lack {missing[0]}, {len(missing)} missing in all")
    if unexpected := sorted(there.keys() - asked.keys()):
        raise ValueError(f"the base has no place for {unexpected[0]}, {len(unexpected)} such in all")
    for name, shape in asked.items():
        if there[name] != shape:
            raise ValueError(f"{name} is {there[name]}, and the base needs {shape}: it is of another base")


def _check_choices(files: Path) -> None:
    """Raise ValueError if config.json chooses code that computes, which transformers would fetch or compile."""
    said = records.read_json(files / "config.json")
    for part in (said, *said.values()):
        for key, value in part.items() if isinstance(part, dict) else ():
            if key.endswith("_implementation") and value not in IMPLEMENTATIONS:
                raise ValueError(f"config.json: {key} is {value!r}: take it out")
            if key == "return_dict" and value is not True:
                raise ValueError(f"config.json: return_dict is {value!r}: take it out")


def _check_size(files: Path, config: PreTrainedConfig) -> None:
    """Raise ValueError, before any memory is taken, if config.json describes more than the weight files can hold."""
    quantized = getattr(config, "quantization_config", None) is not None
    tensors = list(chain.from_iterable(checkpoints.header(shard).values() for shard in files.glob("*.safetensors")))
    held = sum(prod(shape) for _, shape in tensors)
    if not quantized and sum(prod(shape) for dtype, shape in tensors if "F" in dtype) < held / 2:
        raise ValueError("most weights are no floating-point numbers, and config.json has no quantization_config")
    parts = count()

    def bounded(*_: Any) -> None:
        if next(parts) > 100 * len(tensors) + 1000:
            raise ValueError(f"config.json describes more parts than {len(tensors)} tensors can fill")

    watch = register_module_module_registration_hook(bounded)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    finally:
        watch.remove()
    described = sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))
    packed = 16 if quantized else 2
    if described > packed * held + (1 << 27):  # and buffers that no file holds
        raise ValueError(f"config.json describes {described:,} numbers, and the weights hold {held:,}")


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


def free_memory(device: str) -> int:
    """Bytes: of the GPU, or of the main memory that a container's limit leaves too."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such limit
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return int(free)


def available_threads() -> int:
    """torch's own number of threads, or fewer if affinity or a container's quota leaves fewer cores."""
    return min(torch.get_num_threads(), int(joblib.cpu_count()))

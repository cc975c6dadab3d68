"""LoRA adapters for tests, as PEFT saves them."""

from pathlib import Path
from typing import Any


def write_adapter(folder: Path, base: Path, **config: Any) -> Path:
    """Save an adapter of `base` whose weights are random, so that it changes every answer; returns `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    usual = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(init_lora_weights=False, **(usual | config))
    )
    for name, weight in model.named_parameters():
        if "modules_to_save" in name or "magnitude" in name:
            weight.data += 0.1
    model.save_pretrained(folder)
    return folder

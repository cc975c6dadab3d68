"""The pieces of `make bench` on a tiny model: what is compared is comparable, and the page tells it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_page, generation, longworld, roofline
from benchmarks.generation import APART, OURS, PLAIN, Runs, Work
from tbd.generation.engines.transformers import TransformersEngine
from tbd.params import Generate
from tests.conftest import SENTENCES


def test_the_plain_script_and_the_engine_agree_and_the_page_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    p = Generate(engine="transformers", device="cpu", dtype="float32", max_new_tokens=6, batch_size=2)
    prompts = list(TransformersEngine.prompts(tiny_checkpoint, p, SENTENCES).prompts)
    work = Work(tiny_checkpoint, prompts, p, 0.5, None)
    runs = Runs({(kind, "float32"): [generation.run(kind, "float32", work)] for kind in (PLAIN, OURS, APART)})
    parts = roofline.parts(tiny_checkpoint, prompts, p)
    assert all(min(seconds) >= 0 for seconds in parts.values()) and min(parts["matrix products of the layers"]) > 0
    told = generation.summary(work, "float32", runs, (1e12, 1e11), parts)
    plain, ours, apart = told["rows"]
    assert plain["tokens"] == ours["tokens"] and {one["diverged"] for one in told["rows"]} == {0}
    assert plain["logprobs"] == pytest.approx(0, abs=1e-4)
    assert len(told["ratios"]) == len(ours["times"]) == len(apart["times"]) == 1
    bench_page.write(tmp_path, told | {"date": "2026-01-01", "load": [0.0, 0.0]})
    page = (tmp_path / "bench.md").read_text("utf-8")
    assert "vLLM offline: not run" in page and (tmp_path / "bench.png").stat().st_size > 1000


def test_a_long_trace_has_every_step_and_the_result() -> None:
    found = longworld.trace(
        "Two and three? Do not include units.",
        "- First 2 + 3 = 5\n2. So 5.\n#### 5",
        np.random.default_rng(0),
        lambda text: len(text.split()),
    )
    assert len(found.split()) >= longworld.SHORTEST
    assert found.endswith("#### 5") and "Step 2: So 5. " in found and "units" not in found

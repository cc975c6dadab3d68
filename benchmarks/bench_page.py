"""docs/bench.md and docs/bench.png from what `benchmarks.generation` measured, machine by machine."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from benchmarks.roofline import PARTS
from tbd.records import atomic, write_json
from tbd.report.plots import DPI

HEADS = [
    "",
    "type",
    "tokens/s",
    "times the plain script",
    "seconds to all verdicts",
    "of the roofline",
    "seconds to load",
]
HEADS += [
    "MB loaded",
    "MB above that",
    "tokens",
    "answers that diverge",
    "log-probs differ by",
    "scores differ by",
    "flags differ",
]

INTRO = """# Generation, side by side

Written by `make bench` (`python -m benchmarks.generation`), which runs every way through the same questions in turn,
each time in a process of its own. What it means: [results.md](results.md#generation).

- *plain script*: `model.generate(output_scores=True)`, batches of 16, left padding. *vLLM offline*: `LLM.generate` on
  token ids, in a process of vLLM's own; *openai*: its server, started and asked by tbd with the same options. *each
  prompt read whole*: without reading once what all prompts of a batch begin with.
- *tokens/s*: of all answers, from prompts in memory to token ids and log-probs, with the model loaded; the median of
  the rounds. *times the plain script*: within a round; the median, and the lowest and highest round.
- *seconds to all verdicts*: the same, and then a score of every question and a p-value of each of the benchmark's.
- *of the roofline*: the share of the speed at which every prompt is read at the rate of a large matrix product, and
  every token written at that rate or at the memory's, whichever is slower, all questions at a time.
- *MB loaded*, *above that*: what the processes hold once the model is loaded (and the server answers), and at most
  beyond it, each process's own peak. vLLM takes its cache of keys and values (`VLLM_CPU_KVCACHE_SPACE=2`, in GB) while
  it loads. On a GPU it is what torch's allocator holds, and for vLLM the main memory.
- *diverge*: answers with another token than those of `transformers` in float32. Log-probs differ by so much at most up
  to there, scores (TBD) of whole answers; *flags*: questions of the benchmark that are flagged in one of the two alone.
"""


def write(docs: Path, told: dict[str, Any]) -> None:
    """Keep `told` by its hardware, and write page and plot of all."""
    name = "".join(letter if letter.isalnum() else "-" for letter in told["hardware"].lower())
    write_json(docs / "bench" / f"{name}.json", told)
    every = [json.loads(path.read_text("utf-8")) for path in sorted((docs / "bench").glob("*.json"))]
    with atomic(docs / "bench.md") as temporary:
        temporary.write_text(INTRO + "".join(map(section, every)), "utf-8")
    plot(docs / "bench.png", every)


def spread(numbers: list[float]) -> str:
    """
    >>> spread([1.0, 3.0, 2.0]), spread([1.0])
    ('2.00 (1.00 to 3.00)', '1.00')
    """
    several = f" ({min(numbers):.2f} to {max(numbers):.2f})" if len(numbers) > 1 else ""
    return f"{median(numbers):.2f}{several}"


def section(told: dict[str, Any]) -> str:
    """Of one machine."""
    rows = [
        [
            one["kind"],
            one["dtype"],
            f"{median(one['speeds']):.0f}",
            spread(one["times"]) if one["times"] else "",
            f"{median(one['verdict']):.1f}",
            f"{median(one['of_roofline']):.0%}" if one["of_roofline"] else "",
            f"{median(one['loading']):.0f}",
            f"{median(one['loaded']) / 1e6:.0f}",
            f"{median(one['above']) / 1e6:.0f}",
            f"{one['tokens']:,}",
            one["diverged"],
            f"{one['logprobs']:.2g}",
            f"{one['scores']:.2g}",
            one["flags"],
        ]
        for one in told["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    operations, bandwidth = told["rates"]
    least = f"reading takes {told['least'][0]:.1f} s, writing {told['least'][1]:.1f} s at least"
    lines = [
        f"\n## {told['hardware']}\n",
        f"{told['date']}, {versions}; {told['questions']} questions, {told['read']:,} tokens of prompts, at most "
        f"{told['most']} tokens an answer, in batches of {told['batch_size']}; {told['rounds']} rounds; load of the "
        f"machine before {told['load'][0]:.1f}, after {told['load'][1]:.1f}.\n",
        tabulate(rows, HEADS, tablefmt="github", disable_numparse=True),
        "",
        *[f"- {kind}: not run, no vLLM named (`make bench VLLM=/path/to/its/python`)." for kind in told["not_run"]],
        *[f"- {name}: {spread(ratios)} times within a round." for name, ratios in told["ratios"].items()],
        f"- Roofline: {operations:.2g} operations/s in {told['dtype']}, {bandwidth / 1e9:.1f} GB/s, measured "
        f"before and after, the best of each. So {least}.\n",
        "What `transformers` spends its time on, in a run of its own:\n",
        parts(told),
        "",
        bounds(told),
    ]
    return "\n".join(lines) + "\n"


def parts(told: dict[str, Any]) -> str:
    rows: list[list[Any]] = [[part, *told["parts"][part]] for part in PARTS]
    rows.append(["all", *(sum(column) for column in zip(*told["parts"].values(), strict=True))])
    return tabulate(rows, ["seconds", "reading prompts", "writing answers"], tablefmt="github", floatfmt=".2f")


def bounds(told: dict[str, Any]) -> str:
    """What no engine gets around that reads every prompt."""
    read, written = (sum(column) for column in zip(*told["parts"].values(), strict=True))
    now, least = read + written, told["least"]
    (times,) = (median(one["times"]) for one in told["rows"] if one["kind"] == "transformers" and one["times"])
    faster = {
        "writing cost nothing": read,
        "prompts were read at the rate of the roofline": least[0] + written,
        "both ran at the roofline": sum(least),
    }
    said = "; ".join(f"{times * now / seconds:.1f} times if {what}" for what, seconds in faster.items())
    return (
        f"It reaches {times:.2f} times the plain script, and reads the {told['common']} tokens that all prompts begin "
        f"with once a batch. With the same prompts it would be {said}."
    )


def plot(path: Path, every: list[dict[str, Any]]) -> None:
    """Tokens a second of each way, with the roofline, and memory: a row a machine."""
    figure = Figure(figsize=(10, 0.8 + 2.6 * len(every)), layout="constrained")
    axes = figure.subplots(len(every), 2, squeeze=False)
    for (speed, memory), told in zip(axes, every, strict=True):
        rows = [one for one in told["rows"] if one["dtype"] == told["dtype"]][::-1]
        names = [one["kind"] for one in rows]
        speeds = [median(one["speeds"]) for one in rows]
        low, high = ([abs(end(one["speeds"]) - median(one["speeds"])) for one in rows] for end in (min, max))
        speed.barh(names, speeds, xerr=[low, high], color="#0072B2", ecolor="#222222", capsize=3)
        roof = rows[-1]["tokens"] / sum(told["least"])
        speed.axvline(roof, color="#D55E00", linestyle="--")
        speed.annotate(
            "roofline", (roof, -0.4), xytext=(-3, 0), textcoords="offset points", ha="right", color="#D55E00"
        )
        speed.set_xlabel("tokens/s")
        speed.set_title(f"{told['hardware']}, {told['dtype']}, {told['date']}", loc="left", fontsize=10)
        loaded, above = ([median(one[part]) / 1e9 for one in rows] for part in ("loaded", "above"))
        memory.barh(names, loaded, color="#8C8C8C", label="loaded")
        memory.barh(names, above, left=loaded, color="#0072B2", label="above that")
        memory.set_yticks([])
        memory.set_xlabel("GB, at most")
        memory.legend(frameon=False)
        for ax in (speed, memory):
            ax.spines[["top", "right"]].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")

"""What an audit costs by its size and the model's: `python -m benchmarks.scale`, the tables of docs/scale.md.

Arithmetic by `tbd.generation.cost`, the functions that `tbd plan` uses; nothing is measured here.
"""

from tabulate import tabulate

from tbd.generation import cost
from tbd.generation.cost import Hardware, Model

PROMPT, ANSWER, AT_MOST = 200, 300, 256
"""tokens of a question with its template, and of an answer; answers at a time"""
SHARES = (0.6, 0.2)
"""of what the hardware can do: a good server, a plain loop"""
PRICE = 2.5
"""euros an hour of one device: assumed"""
AUDITS = ((100, 100), (10_000, 1_000), (1_000_000, 10_000))
"""questions of the benchmark, and unseen ones"""
DEVICE = {"memory": 80e9, "bandwidth": 3.35e12, "operations": 9.89e14}
"""an H100 SXM in bfloat16, by its data sheet"""
MODELS = {
    "7B": (Model(7.6e9, 7.6e9, 57_344), 1),
    "32B": (Model(32.8e9, 32.8e9, 262_144), 2),
    "600B (37B active)": (Model(600e9, 37e9, 70_272), 24),
}
"""keys and values: 28 layers of 4 heads of 128; 64 of 8 of 128; 61 of 576 numbers; and how many devices hold it"""


def two(number: float) -> str:
    """Two digits.

    >>> two(12345), two(0.123)
    ('12,000', '0.12')
    """
    return f"{float(f'{number:.2g}'):,.10g}"


def rows() -> list[list[str]]:
    table = []
    for name, (model, devices) in MODELS.items():
        on, length = Hardware(devices, **DEVICE), PROMPT + ANSWER
        at_once = cost.at_a_time(model, on, length, AT_MOST)
        for benchmark, unseen in AUDITS:
            questions = benchmark + unseen
            prompts = questions * PROMPT
            work = cost.passes(questions, prompts, ANSWER, prompts)
            together = min(at_once, questions)
            hours = [cost.roofline(work, model, on, together, length, share) * devices / 3600 for share in SHARES]
            table.append(
                [
                    name,
                    f"{benchmark:,} + {unseen:,}",
                    two(sum(one.read for one in work) / 1e6),
                    two(sum(one.written for one in work) / 1e6),
                    str(devices),
                    str(together),
                    " to ".join(map(two, hours)),
                    " to ".join(two(PRICE * one) for one in hours),
                    two(cost.disk(questions, ANSWER, True) / 1e9),
                ]
            )
    return table


def main() -> None:
    heads = ["model", "questions", "M tokens read", "M written", "GPUs", "at a time", "GPU-hours", "euros", "GB"]
    print(tabulate(rows(), heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()

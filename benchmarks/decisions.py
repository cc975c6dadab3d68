"""How often the decision is wrong and how often it finds what leaked, on simulated scores: the tables of
docs/verdict.md.

Unseen questions' scores are standard normal unless a table says otherwise; members' lie `strength` standard deviations
higher (2.0 is an AUC of 0.92, 0.95 one of 0.75). Shares are of all audits simulated, with their 95% interval.

python -m benchmarks.decisions [--audits 2000]
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import norm
from tabulate import tabulate

from tbd import params
from tbd.detection import power
from tbd.detection.global_test import GlobalTest
from tbd.detection.intervals import proportion
from tbd.detection.minimum import members_at_least

LEVEL = 0.05
SIZES = ((20, 100), (128, 100), (40, 400), (1000, 1000))
KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "gamma, rounded": lambda rng, n: np.round(rng.gamma(2.0, 1.0, n)),
    "60% at one value": lambda rng, n: np.maximum(rng.normal(size=n), norm.ppf(0.6)),
    "1% of two values": lambda rng, n: (rng.random(n) < 0.01).astype(float),
    "10% of two values": lambda rng, n: (rng.random(n) < 0.1).astype(float),
}


def share(found: int, audits: int) -> str:
    low, high = proportion(found, audits, 0.95)
    return f"{found / audits:.3f} [{low:.3f}, {high:.3f}]"


def audit(rng: np.random.Generator, m: int, n: int, leaked: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    benchmark = rng.normal(size=m)
    benchmark[:leaked] += strength
    return benchmark, rng.normal(size=n)


def size(audits: int, permutations: int) -> Iterator[list[str]]:
    """CONTAMINATED where nothing leaked, by the kind of score."""
    for kind, draw in KINDS.items():
        row = [kind]
        for m, n in SIZES:
            rng, test = np.random.default_rng(m), GlobalTest(m, n, permutations=permutations, seed=0)
            found = sum(test.p_value(draw(rng, m), draw(rng, n)) <= LEVEL for _ in range(audits))
            row.append(share(found, audits))
        yield row


def found(audits: int, permutations: int) -> Iterator[list[str]]:
    """CONTAMINATED where a share leaked, without a base and with one that saw nothing; and the certified minimum."""
    for (m, n), strength, leaked in (
        ((128, 100), 2.0, 0.05),
        ((128, 100), 2.0, 0.1),
        ((128, 100), 2.0, 0.25),
        ((128, 100), 0.95, 0.25),
        ((128, 100), 0.95, 0.5),
        ((1000, 100), 2.0, 0.1),
        ((1000, 1000), 2.0, 0.01),
        ((1000, 1000), 2.0, 0.05),
    ):
        rng, test, members = (
            np.random.default_rng(m),
            GlobalTest(m, n, permutations=permutations, seed=0),
            round(leaked * m),
        )
        alone = with_base = above = 0
        bounds = []
        for _ in range(audits):
            scores = audit(rng, m, n, members, strength)
            needed = test.shift_needed(*scores, LEVEL)
            alone += needed > 0
            with_base += needed > test.shift_possible(*audit(rng, m, n, 0, 0), LEVEL)
            bounds.append(members_at_least(*scores, 0.95)[-1])
            above += bounds[-1] > members
        certified = f"{np.mean(bounds) / m:.1%}"
        yield [
            f"{m} v {n}",
            f"{strength}",
            f"{leaked:.0%}",
            share(alone, audits),
            share(with_base, audits),
            certified,
            share(above, audits),
        ]


def shifted(audits: int, permutations: int) -> Iterator[list[str]]:
    """CONTAMINATED where nothing leaked, but the benchmark is easier for checkpoint and base alike."""
    for m, n in SIZES[:3]:
        for shift in (0.0, 0.1, 0.2, 0.3):
            rng, test = np.random.default_rng(n), GlobalTest(m, n, permutations=permutations, seed=0)
            alone = with_base = 0
            for _ in range(audits):
                needed = test.shift_needed(*audit(rng, m, n, m, shift), LEVEL)
                alone += needed > 0
                with_base += needed > test.shift_possible(*audit(rng, m, n, m, shift), LEVEL)
            yield [f"{m} v {n}", f"{shift}", share(alone, audits), share(with_base, audits)]


def planned(audits: int, permutations: int) -> Iterator[list[str]]:
    """The smallest share that is said to be found in 80% of audits, and how often it is."""
    decision = params.load().decision
    for m, n, strength in ((128, 100, 2.0), (128, 100, 0.95), (1000, 1000, 2.0)):
        places = norm.sf(norm.isf((np.arange(500) + 0.5) / 500) + strength)
        reference = power.Reference(tuple(np.floor(places * 1001).astype(int)), 1000)
        mde80 = power.curve(reference, m, n, with_base=False, decision=decision, seed=0).mde80
        rng, test = np.random.default_rng(m), GlobalTest(m, n, permutations=permutations, seed=0)
        hits = sum(test.p_value(*audit(rng, m, n, round(mde80.estimate * m), strength)) <= LEVEL for _ in range(audits))
        yield [
            f"{m} v {n}",
            f"{strength}",
            f"{mde80.estimate:.3f} [{mde80.low:.3f}, {mde80.high:.3f}]",
            share(hits, audits),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("--audits", type=int, default=2000, help="simulated for each figure")
    parser.add_argument("--permutations", type=int, default=2000)
    options = parser.parse_args()
    sizes = [f"{m} v {n}" for m, n in SIZES]
    for what, rows, headers in (
        ("Nothing leaked", size, ["scores", *sizes]),
        (
            "A share leaked",
            found,
            ["", "strength", "leaked", "found", "found, with a base", "certified", "above the truth"],
        ),
        ("Nothing leaked, easier benchmark", shifted, ["", "shift (sd)", "without a base", "with a base"]),
        ("Planned", planned, ["", "strength", "mde80", "found there"]),
    ):
        print(f"\n{what}\n", flush=True)
        print(
            tabulate(rows(options.audits, options.permutations), headers, tablefmt="github", disable_numparse=True),
            flush=True,
        )


if __name__ == "__main__":
    main()

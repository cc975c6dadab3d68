"""False alarms over a year of checks: `python -m benchmarks.stream`.

15 trainings on 4 benchmarks, 15 checkpoints of each: 900 audits of 60 pairs in random order, again and again. The
z-value of an audit is the sum of what its training on that benchmark, the benchmark's question sets and the checkpoint
alone contribute; in a pair that leaked it lies `shift` higher. Two rules: an alarm at each p-value of at most 5%, and
the stream of checks.
"""

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from tabulate import tabulate

from tbd.history.stream import ALPHA, share

TRAININGS, BENCHMARKS, LOOKS = 15, 4, 15
PAIRS = TRAININGS * BENCHMARKS
SHARES = [share(test) for test in range(1, PAIRS * LOOKS + 1)]
CORRELATIONS = [(0.0, 0.0), (0.5, 0.2), (0.2, 0.7), (0.9, 0.0)]
"""shares of the variance that all looks at a pair, and all at a benchmark, have in common"""
LEAKS = [(0.0, 0.0), (0.1, 3.5), (0.1, 5.5), (0.3, 3.5)]
"""share of the pairs that leaked, and by how many standard deviations"""


def year(
    rng: np.random.Generator, leaked: float, shift: float, of_pair: float, of_benchmark: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """The pair (900,) and the p-value (900,) of each audit in order, and which pairs leaked (60,)."""
    pairs = rng.permutation(np.repeat(np.arange(PAIRS), LOOKS))
    members = rng.permutation(PAIRS) < round(leaked * PAIRS)
    common = np.sqrt(of_pair) * rng.standard_normal(PAIRS)
    common += np.sqrt(of_benchmark) * rng.standard_normal(BENCHMARKS)[np.arange(PAIRS) % BENCHMARKS]
    own = np.sqrt(1 - of_pair - of_benchmark) * rng.standard_normal(len(pairs))
    return pairs, members, norm.sf(common[pairs] + own + shift * members[pairs])


def discoveries(pairs: NDArray[np.int64], p_values: NDArray[np.float64]) -> set[int]:
    """The pairs that the stream finds; as `tbd.history.stream` says, without a history."""
    found: set[int] = set()
    test = 0
    for pair, p_value in zip(pairs.tolist(), p_values.tolist(), strict=True):
        if pair not in found:
            if p_value <= ALPHA * SHARES[test] * (len(found) + 1):
                found.add(pair)
            test += 1
    return found


def rates(found: set[int], members: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Whether there is a false alarm at all, the share of false ones among the pairs found, and of the leaked pairs
    found."""
    true = int(members[list(found)].sum())
    false = len(found) - true
    return float(false > 0), false / max(len(found), 1), true / max(int(members.sum()), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    rows = []
    for leaked, shift in LEAKS:
        for correlation in CORRELATIONS:
            rng = np.random.default_rng(0)
            fixed, stream = [], []
            for _ in range(repeats):
                pairs, members, p_values = year(rng, leaked, shift, *correlation)
                fixed.append(rates(set(pairs[p_values <= ALPHA].tolist()), members))
                stream.append(rates(discoveries(pairs, p_values), members))
            means = [*np.mean(fixed, axis=0), *np.mean(stream, axis=0)]
            rows.append(
                [f"{leaked:.0%}, {shift:g} sd" if leaked else "none", "{:g} / {:g}".format(*correlation)]
                + [f"{mean:.3f}" if leaked or n % 3 < 2 else "" for n, mean in enumerate(means)]
            )
    kinds = [f"{rule}: {what}" for rule in ("5%", "stream") for what in ("any false", "share false", "leaked found")]
    print(tabulate(rows, ["leaked", "pair / benchmark", *kinds], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()

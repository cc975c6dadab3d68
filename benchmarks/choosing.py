"""Is the detector's figure surer by repeated halves than by one split, and does its interval hold the truth? The table
of docs/scores.md, on simulated scores.

Eighteen methods of slightly different strength (d' over a range of 0.6) whose scores correlate at 0.9, as many members
as other questions. The truth is the AUC of the method that was chosen.

python -m benchmarks.choosing [--worlds 400]
"""

import argparse

import numpy as np
from scipy.stats import norm
from tabulate import tabulate

from tbd.detection import calibration
from tbd.detection.calibration import Known
from tbd.detection.intervals import delong

METHODS, CORRELATION, REPEATS, RESAMPLES, FPR = 18, 0.9, 10, 200, 0.05
HEADERS = [
    "questions",
    "best AUC",
    "one split: sd",
    "interval holds",
    "repeated: sd",
    "bias",
    "interval holds",
    "on those that chose: bias",
]


def world(rng: np.random.Generator, each: int, strengths: np.ndarray) -> Known:
    common, own = rng.normal(size=2 * each), rng.normal(size=(len(strengths), 2 * each))
    scores = np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * own
    scores[:, :each] += strengths[:, None]
    labels = np.repeat([1, 0], each).astype(np.int8)
    return Known("simulated", labels, {str(at): row for at, row in enumerate(scores)}, {})


def row(worlds: int, each: int, best: float) -> list[object]:
    rng, every = np.random.default_rng(each), [True] * METHODS
    strengths = np.linspace(best - 0.6, best, METHODS)
    truth = norm.cdf(strengths / np.sqrt(2))
    once, repeated, naive, held_once, held = [], [], [], [], []
    for _ in range(worlds):
        known = world(rng, each, strengths)
        tried, splits = calibration.repeated([known], REPEATS, FPR, rng)
        final = calibration.rates(known, np.ones((1, 2 * each), int), FPR).auc
        chosen = int(calibration.best(final, every)[0])
        measured = tried.held_out(every, 0).auc
        first = int(tried.chosen(every)[0])
        rest = ~splits["simulated"][0]
        low, high = delong(known.scores[str(first)][rest], known.labels[rest], 0.95)
        once.append(measured[0] - truth[first])
        held_once.append(low <= truth[first] <= high)
        repeated.append(measured.mean() - truth[chosen])
        naive.append(final[0, chosen] - truth[chosen])
        drawn = calibration.resampled([known], REPEATS, RESAMPLES, FPR, rng).held_out(every, 0).auc
        low, high = calibration.interval(measured.mean(), drawn.reshape(-1, 2 * REPEATS).mean(axis=1), each, 0.95)
        held.append(low <= truth[chosen] <= high)
    figures = [np.std(once), np.mean(held_once), np.std(repeated), np.mean(repeated), np.mean(held), np.mean(naive)]
    return [f"{each} v {each}", f"{truth[-1]:.2f}", *(f"{figure:.3f}" for figure in figures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400, help="simulated references a line (default: 400)")
    worlds = parser.parse_args().worlds
    rows = [row(worlds, each, best) for each in (32, 64, 200) for best in (2.0, 1.0)]
    print(tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()

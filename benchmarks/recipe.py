"""What an audit costs beside the recipe of the paper's authors: `python -m benchmarks.recipe`, after `make demo`.

Theirs: up to 1000 tokens an answer, batches of 16, `generate(output_scores=True)`, TBD over all tokens (arXiv
2510.04850). Ours: as many tokens as the detector looks at. Both answer the labelled benchmark and the unseen questions
of the reference with the same checkpoint, one after the other, with the model loaded.

Members found at the same rate of false alarms, unseen questions among the others: on the halves of the questions that
did not choose our method (10 splits in two), theirs on the same halves; bootstrap intervals, of the difference too.

`--long FOLDER`: the same where traces run past 600 tokens (`benchmarks/longworld.py`). That world is made in the folder
first, if need be, which takes some minutes on two cores.
"""

import argparse
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks import longworld
from benchmarks.generation import alone, plain
from tbd import audits, environment, params, records
from tbd import scores as registry
from tbd.checkpoints.loading import choose_device, choose_dtype, load_model, load_tokenizer
from tbd.detection import calibration
from tbd.detection.calibration import Known, Tried
from tbd.detection.results import read_detector
from tbd.generation import units
from tbd.generation.engines.transformers import TransformersEngine
from tbd.progress import Progress
from tbd.report.text import interval
from tbd.scores.table import ScoreTable
from tbd.scores.tokens import Tokens, pad
from tbd.workspace import DETECTOR, set_path

MOST = 1000
"""tokens of an answer, of the authors' recipe"""
LONG = 600
"""tokens from which an answer is long"""


def compare(count: int | None) -> None:
    """In the workspace that is the current folder; `count` questions of each set at most."""
    p, detector = params.load(), read_detector(DETECTOR)
    reference, g = detector.reference.name, p.generate
    entry = audits.get(reference)
    sets = {
        name: records.read_table(set_path(name), records.QUESTIONS)[:count] for name in (entry.benchmark, entry.unseen)
    }
    texts = [text for table in sets.values() for text in table["question"].to_pylist()]
    labels = np.concatenate([sets[entry.benchmark]["label"].to_numpy(), np.zeros(len(sets[entry.unseen]), np.int8)])
    folder, device = Path(entry.checkpoint), choose_device(g.device)
    prompts = list(TransformersEngine.prompts(folder, g.model_copy(update={"max_new_tokens": MOST}), texts).prompts)
    dtype = choose_dtype(g.dtype, device)
    machine = (
        f"{device}, {psutil.cpu_count()} cores, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}"
    )
    print(f"{folder}: {len(prompts)} questions, {labels.sum()} of them members; {machine}", flush=True)

    engine = TransformersEngine.open(folder, g)
    start, ours = time.perf_counter(), 0
    for rows in units.plan(prompts, g.batch_size):
        found = engine.generate([prompts[row] for row in rows], min(detector.tokens, g.max_new_tokens))
        ours += sum(len(one.token_ids) for _, one in found)
    our_time = time.perf_counter() - start
    print(f"tbd: {our_time:.0f} s, {ours:,} tokens, at most {detector.tokens} an answer", flush=True)
    del engine
    model, tokenizer = load_model(folder, device, getattr(torch, dtype)), load_tokenizer(folder)
    start = time.perf_counter()
    with Progress("the authors' recipe", every=60) as progress:
        progress.plan("written", MOST * len(prompts))
        theirs = plain(model, tokenizer, prompts, MOST, progress.advance)
    time_taken, lengths = time.perf_counter() - start, np.array([len(one.token_ids) for one in theirs])
    past = f"half of the answers past {np.median(lengths):.0f}, {(lengths > LONG).mean():.0%} past {LONG}"
    print(f"the authors' recipe: {time_taken:.0f} s, {lengths.sum():,} tokens, {past}")
    print(f"time: {our_time / time_taken:.3f} of the recipe's; tokens: {ours / lengths.sum():.3f}")

    (authors,) = registry.expand({"tbd": {"m": MOST, "tau": 1.0, "alpha": 0.6, "normalise": "kept"}})
    table = ScoreTable(reference)
    ids = [key for key in table.methods() if not registry.parse(key).with_base]
    scores = {key: np.concatenate([table.scores(key, name)[: len(of)] for name, of in sets.items()]) for key in ids}
    scores["authors"], _ = authors(Tokens(pad([one.logprobs for one in theirs])))
    known, rng = Known("all", labels, scores, {}), np.random.default_rng(p.calibrate.seed)
    tried, _ = calibration.repeated([known], p.calibrate.repeats, detector.fpr, rng)
    drawn = calibration.resampled([known], p.calibrate.repeats, p.calibrate.bootstrap, detector.fpr, rng)
    point, resamples = _both(tried), _both(drawn).reshape(-1, *_both(tried).shape).mean(axis=1)
    point = point.mean(axis=0)
    names = [
        f"{who}: {what}"
        for what in ("AUC", f"members found at {detector.fpr:.0%} false alarms")
        for who in ("tbd", "recipe", "difference")
    ]
    for at, name in enumerate(names):
        low, high = np.nanquantile(resamples[:, at], [(1 - detector.confidence) / 2, (1 + detector.confidence) / 2])
        print(f"{name} {interval(point[at], low, high, '.3f')}")


def _both(tried: Tried) -> np.ndarray:
    """(halves, 6) AUC of ours, of theirs (the last method) and the difference, then the members found likewise."""
    measured = tried.measuring[0]
    ours = tried.held_out([True] * (measured.auc.shape[1] - 1) + [False], 0)
    pairs = ((ours.auc, measured.auc[:, -1]), (ours.tpr, measured.tpr[:, -1]))
    return np.stack([column for own, other in pairs for column in (own, other, own - other)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, help="of each set, at most (default: all)")
    parser.add_argument("--long", type=Path, metavar="FOLDER", help="of the world with long traces in this folder")
    options = parser.parse_args()
    environment.prepare()
    if options.long:
        alone(longworld.make, options.long, longworld.BASE)
    with chdir(options.long or Path()):
        alone(compare, options.questions)


if __name__ == "__main__":
    main()

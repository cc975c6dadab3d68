"""What an audit costs beside the recipe of the paper's authors: `python -m benchmarks.recipe`, after `make demo`.

Theirs: up to 1000 tokens an answer, batches of 16, `generate(output_scores=True)`, TBD over all tokens (arXiv
2510.04850). Ours: as many tokens as the detector looks at. Both answer the labelled benchmark and the unseen questions
of the reference with the same checkpoint, one after the other; compared are seconds, tokens and how many members are
found at the same rate of false alarms. The detector's own figures are by halves that chose nothing, as in
`detector.json`.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.generation import plain
from tbd import audits, params, records
from tbd.checkpoints.loading import choose_device, choose_dtype, load_model, load_tokenizer
from tbd.detection import metrics
from tbd.detection.intervals import delong, proportion
from tbd.detection.results import read_detector
from tbd.generation import units
from tbd.generation.engines.transformers import TransformersEngine
from tbd.progress import Progress
from tbd.report.text import interval
from tbd.scores import expand
from tbd.scores.tokens import Tokens, pad
from tbd.workspace import DETECTOR, set_path

AUTHORS = "the authors' recipe"
MOST = 1000
"""tokens of an answer, of the authors' recipe"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, help="of each set, at most (default: all)")
    options = parser.parse_args()
    p, detector = params.load(), read_detector(DETECTOR)
    entry, g = audits.get(detector.reference.name), p.generate
    tables = [records.read_table(set_path(name), records.QUESTIONS) for name in (entry.benchmark, entry.unseen)]
    tables = [table[: options.questions] for table in tables]
    texts = [text for table in tables for text in table["question"].to_pylist()]
    labels = np.concatenate([tables[0]["label"].to_numpy(), np.zeros(len(tables[1]), np.int8)])
    folder, device = Path(entry.checkpoint), choose_device(g.device)
    prompts = list(TransformersEngine.prompts(folder, g.model_copy(update={"max_new_tokens": MOST}), texts).prompts)

    import torch

    dtype = choose_dtype(g.dtype, device)
    tokenizer, model = load_tokenizer(folder), load_model(folder, device, getattr(torch, dtype))
    start = time.perf_counter()
    theirs = plain(model, tokenizer, frozenset([tokenizer.eos_token_id]), prompts, MOST)
    seconds = {AUTHORS: time.perf_counter() - start}
    del model
    engine = TransformersEngine.open(folder, g)
    start, ours = time.perf_counter(), {}
    with Progress("answers", every=30):
        for rows in units.plan(prompts, g.batch_size):
            found = engine.generate([prompts[row] for row in rows], min(detector.tokens, g.max_new_tokens))
            ours |= {rows[at]: one.logprobs for at, one in found}
    seconds["tbd"] = time.perf_counter() - start
    answers = {AUTHORS: theirs, "tbd": [ours[row] for row in range(len(prompts))]}
    (authors,) = expand({"tbd": {"m": MOST, "tau": 1.0, "alpha": 0.6, "normalise": "kept"}})
    print(f"{len(prompts)} questions, {device}, {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, found in answers.items():
        said = f"{name}: {seconds[name]:.0f} s, {sum(map(len, found)):,} tokens"
        if name == "tbd":
            of = detector.reference.figures(detector.best)
            tpr = interval(of.tpr_at_fpr, of.tpr_low, of.tpr_high, ".2f")
            auc = interval(of.auc, of.auc_low, of.auc_high, ".3f")
        else:
            scores, _ = authors(Tokens(pad(found)))
            share = metrics.tpr_at_fpr(scores, labels, detector.fpr)
            members = int(labels.sum())
            tpr = interval(share, *proportion(round(share * members), members, detector.confidence), ".2f")
            auc = interval(metrics.auc(scores, labels), *delong(scores, labels, detector.confidence), ".3f")
        print(f"{said}; AUC {auc}, members found at {detector.fpr:.0%} false alarms {tpr}")
    print(f"time: {seconds['tbd'] / seconds[AUTHORS]:.3f} of the recipe's")


if __name__ == "__main__":
    main()

"""What a cascade saves and what it costs: the tables of docs/scores.md. The workspace, a finished one, is only read.

Every line calibrates the detector anew, as `tbd calibrate` would, from the stored scores of the workspace's references:
with `calibrate.cascade`; without; and on the first m tokens of every answer alone. The m of the first step has to be
among the methods' m in params.yaml. `--seconds` measures generation instead: the unseen questions in one step and in
two, with a cut that so many of them reach, alternating.

python -m benchmarks.cascade [WORKSPACE] [--m 8 16] [--seconds CHECKPOINT --m 16 --longest 96 --keep 0.3]
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow.compute as pc
from tabulate import tabulate

from tbd import audits, params, records
from tbd.detection.cascade import cut
from tbd.detection.detector import calibrate
from tbd.detection.results import Cascade
from tbd.generation import engines
from tbd.generation.executors.local import Local
from tbd.generation.store import Shelf
from tbd.generation.two_steps import answer
from tbd.generation.units import Job
from tbd.params import Params
from tbd.progress import Progress
from tbd.scores import Tokens, parse
from tbd.scores.table import ScoreTable
from tbd.scores.tokens import pad
from tbd.workspace import set_path

KEEP = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BOOTSTRAP = 500
ROUNDS = 3


def table(name: str, most: int | None) -> ScoreTable:
    """The scores of an audit, those that look at more than `most` tokens left out."""
    whole = ScoreTable(name)
    if most is None:
        return whole
    kept = [method for method in whole.methods() if parse(method).m <= most]
    return ScoreTable(name, whole.table.to_table(filter=pc.field("method").isin(kept)))


def row(p: Params, cascade: params.Cascade | None, most: int | None = None) -> dict[str, str]:
    """The choice that needs no base: tokens written (unseen questions / members), AUC, TPR at `decision.fpr`."""
    references = [(table(name, most), audits.get(name)) for name in p.calibrate.references]
    wanted = p.calibrate.model_copy(update={"cascade": cascade, "bootstrap": BOOTSTRAP})
    found = calibrate(references, wanted, p.decision).detector
    step = "whole" if most is None else f"first {most} alone"
    if cascade is not None:
        step = f"first {cascade.m}, keep {cascade.keep:g}"
    line = {"answers": step, "method": found.choices.alone.id}
    saved = {one.reference: one for one in found.cascade.saved} if found.cascade else {}
    longest = max(method.m for method in map(parse, ScoreTable(p.calibrate.references[0]).methods()))
    for one in found.references:
        its, of, share = saved.get(one.name), one.alone, found.tokens / longest
        written = [share * (1 - part) for part in ((its.unseen, its.members) if its else (0, 0))]
        line[f"{one.name}: tokens"] = " / ".join(f"{part:.0%}" for part in written)
        line[f"{one.name}: AUC"] = f"{of.auc:.3f} [{of.auc_low:.3f}, {of.auc_high:.3f}]"
        line[f"{one.name}: TPR"] = f"{of.tpr_at_fpr:.2f} [{of.tpr_low:.2f}, {of.tpr_high:.2f}]"
    return line


def seconds(p: Params, checkpoint: Path, count: int, m: int, longest: int, keep: float) -> None:
    """Seconds of processor, in one step and in two, each into a store of its own."""
    kind, method = engines.find(p.generate.engine), f"mean_logprob(m={m})"
    questions = records.read_table(set_path("unseen"), records.QUESTIONS)["question"].to_pylist()[:count]
    prompts = kind.prompts(checkpoint, p.generate.model_copy(update={"max_new_tokens": longest}), questions).prompts
    engine = kind.open(checkpoint, p.generate)

    def one_step(folder: str, progress: Progress) -> Job:
        job = Job(Shelf(folder, engine.identity), prompts, p.generate.batch_size, longest)
        job.run(Local(engine), progress)
        return job

    with tempfile.TemporaryDirectory() as folder:
        scores, _ = parse(method)(Tokens(pad([one.logprobs for one in one_step(folder, Progress("x")).completions()])))
    cascade = Cascade(id=method, m=m, keep=keep, cut=cut([scores], keep), saved=[])

    def two_steps(folder: str, progress: Progress) -> object:
        shelf = Shelf(folder, engine.identity)
        return answer(Job(shelf, prompts, p.generate.batch_size, cascade.m), longest, cascade, Local(engine), progress)

    ratios = []
    for number in range(1, ROUNDS + 1):
        took, said = [], []
        for run in (one_step, two_steps):
            progress = Progress("x")
            with tempfile.TemporaryDirectory() as folder:
                start = time.process_time()
                run(folder, progress)
                took.append(time.process_time() - start)
            said.append("{:,} tokens read, {:,} written".format(*(progress.kinds[k].done for k in ("read", "written"))))
        ratios.append(took[1] / took[0])
        print(f"round {number}: one step {said[0]}, two steps {said[1]}; {took[0]:.0f} and {took[1]:.0f} s", flush=True)
    print(f"two steps take {statistics.median(ratios):.2f} of one step's time ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, nargs="?", default=Path(), help="finished (default: this folder)")
    parser.add_argument("--m", type=int, nargs="+", default=[8, 16], help="tokens of the first step (default: 8 16)")
    parser.add_argument("--seconds", type=Path, metavar="CHECKPOINT", help="measure generation with this one")
    parser.add_argument("--questions", type=int, default=40, help="so many are answered (default: 40)")
    parser.add_argument("--longest", type=int, default=96, help="tokens of its answers (default: 96)")
    parser.add_argument("--keep", type=float, default=0.3, help="share of its answers that go on (default: 0.3)")
    options = parser.parse_args()
    with contextlib.chdir(options.workspace):
        p = params.load()
        if options.seconds is not None:
            for m in options.m:
                seconds(p, options.seconds, options.questions, m, options.longest, options.keep)
            return
        lines = [row(p, None), *(row(p, None, m) for m in options.m)]
        lines += [row(p, params.Cascade(m=m, keep=keep)) for m in options.m for keep in KEEP]
    print(tabulate(lines, "keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()

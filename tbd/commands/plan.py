"""`tbd plan`: what an audit will be able to see and what it costs, before anything is generated.

Reads question sets, the checkpoints that are here and, where there is one, the detector; writes and fetches nothing.
"""

import csv
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from tbd import audits, checkpoints, locks, params, scores, sources
from tbd.checkpoints import Packed, adapters, served
from tbd.commands.sets import questions
from tbd.detection import decisions, power, results
from tbd.detection.global_test import GlobalTest
from tbd.detection.results import Chosen
from tbd.errors import InputError
from tbd.generation import cost, engines, units
from tbd.generation.tokens import needed
from tbd.params import Decision, Params
from tbd.report.plan import Asked, AtTokens, Detectable, Plan, Reference, Strength
from tbd.scores.scoring import wanted
from tbd.workspace import DETECTOR, relative

STRENGTHS = (0.5, 0.95, 2.0)
"""d' that are assumed beside what the reference says: AUC 0.64, 0.75, 0.92"""
FACTORS = (1, 1.5, 2, 5)
"""times the unseen questions there are"""
LIMIT = 20.0
"""seconds that the bursts take together, loading not counted"""


@dataclass(frozen=True)
class Question:
    """What is planned, as far as it was said."""

    audit: str | None
    checkpoint: Path | None
    """its folder; None: not here"""
    parameters: int | None
    """of a checkpoint that is not here; None: not known"""
    with_base: bool
    base: Path | None
    """its folder; None: none is given, or it is not here"""
    benchmark: str
    unseen: str
    fpr: float | None = None
    """None: `decision.fpr` of params.yaml"""


def asked(
    what: str | None, benchmark: str | None, unseen: str | None, base: str | None, parameters: float | None
) -> Question:
    """What the command line asks. Raises InputError.

    `what`: an audit's name where no sets are given, else a checkpoint. Of an audit whose checkpoint is not here, and of
    a base that is not, only what needs no model is planned.
    """
    size = None
    if parameters is not None:
        if not (math.isfinite(parameters) and parameters >= 1):
            raise InputError(f"--parameters {parameters:g}: a number of parameters, such as 7e9.")
        size = int(parameters)
    if benchmark is None and unseen is None and what is not None:
        if base is not None:
            raise InputError(f"--base {base}: an audit names its own base. Leave --base out.")
        entry = audits.get(what)
        folder, base_folder = Path(entry.checkpoint), Path(entry.base) if entry.base is not None else None
        return Question(
            audit=what,
            checkpoint=_checked(folder, size),
            parameters=size,
            with_base=base_folder is not None,
            base=_checked(base_folder, None) if base_folder else None,
            benchmark=entry.benchmark,
            unseen=entry.unseen,
            fpr=entry.fpr,
        )
    if benchmark is None or unseen is None:
        raise InputError("tbd plan: name an AUDIT, or --benchmark and --unseen. See tbd plan --help.")
    if benchmark == unseen:
        raise InputError(f"tbd plan: benchmark and unseen set are both {benchmark!r}. Name two different sets.")
    if what is None and size is None:
        raise InputError("tbd plan: a checkpoint's folder or its size (--parameters 7e9) is missing.")
    if what is not None and size is None and not Path(what).is_dir() and not served.is_address(what):
        raise InputError(
            f"{what}: no such checkpoint folder, and tbd plan downloads nothing. Say how large it is: --parameters 7e9."
        )
    if base is not None and not Path(base).is_dir() and not base.startswith(("hf://", "models:/")) and "@" not in base:
        raise InputError(f"--base {base}: no such checkpoint folder (nor a hub id with a revision, org/name@revision).")
    its = Path(what) if what is not None else None
    if its is not None and adapters.is_adapter(its) and not adapters.parts(its):
        base = base or adapters.named_base(its)
        if base is None or not Path(base).is_dir():
            raise InputError(
                f"{its}: an adapter (LoRA) whose base {base!r:.200} is not here, and tbd plan downloads nothing. "
                "Name its folder: --base FOLDER."
            )
        its = sources.whole(its, base)
    return Question(
        audit=None,
        checkpoint=_checked(its, size) if its is not None else None,
        parameters=size,
        with_base=base is not None,
        base=_checked(Path(base), None) if base is not None else None,
        benchmark=benchmark,
        unseen=unseen,
    )


def _checked(folder: Path, size: int | None) -> Path | None:
    """The folder, checked, if it is on this machine and not only a server. Raises InputError."""
    if not folder.is_dir() or served.is_served(folder):
        return None
    if size is not None:
        raise InputError(f"--parameters: {folder} is here and says its size itself. Leave --parameters out.")
    checkpoints.inspect(folder)
    return folder


def plan(question: Question, burst: bool) -> Plan:
    """The plan; `burst`: measure this machine, where the checkpoint is here. Raises InputError, or TransientFault where
    the device is busy."""
    p = params.load()
    steps = None
    if DETECTOR.is_file():
        generate, steps = needed(question.audit, p)
        p = p.model_copy(update={"generate": generate})
    decision, g = p.decision, p.generate
    if question.fpr is not None:
        decision = decision.model_copy(update={"fpr": question.fpr})
    wanted(p)
    kind = engines.find(g.engine)
    frames = [questions(name) for name in (question.benchmark, question.unseen)]
    benchmark, unseen, notes = _sets(question, frames, decision)
    texts = [text for frame in frames for text in frame["question"]]
    prompts = {role: kind.prompts(folder, g, texts).prompts for role, folder in _here(question)}
    tokens = {role: some.total for role, some in prompts.items()}
    own = tokens.get("checkpoint", cost.rough_tokens(texts))
    base = tokens.get("base", own) if question.with_base else None
    passes = cost.passes(len(texts), own, g.max_new_tokens, base, steps)
    if question.checkpoint is None:
        notes.append("The checkpoint is not here: prompts were counted by characters / 4, without its chat template.")
    elif question.with_base and question.base is None:
        notes.append("The base is not here: its prompts were counted with the checkpoint's tokenizer.")
    memory = [_memory(role, folder, prompts[role], len(frames[0]), p) for role, folder in _here(question)]
    if question.parameters is not None:
        memory.insert(0, cost.memory("checkpoint", question.parameters, _dtype(p)))
    speeds = _speeds(question, prompts, p) if burst and prompts else []

    def strength(name: str, d_prime: float | None, auc: float, reference: power.Reference) -> Strength:
        found = [
            _detectable(reference, benchmark.units, round(factor * unseen.units), question.with_base, p)
            for factor in FACTORS
        ]
        return Strength(name=name, d_prime=d_prime, auc=auc, found=found)

    reference, no_evidence, strengths = None, None, []
    if DETECTOR.is_file():
        detector = results.read_detector(DETECTOR)
        choice = detector.best if question.with_base else "alone"
        chosen = getattr(detector.choices, choice)
        references = [(_reference(one, chosen, question), one.figures(choice)) for one in detector.references]
        measured = [
            strength(f"on {one.audit}, {chosen.id}", None, figures.auc, power.measured(figures))
            for one, figures in references
        ]
        at = next((at for at, (one, _) in enumerate(references) if one.same_base), 0)  # as `verdict.judge`
        reference = references[at][0]
        no_evidence = _no_evidence(reference, measured[at], benchmark, unseen, decision)
        strengths += [measured.pop(at), *measured]
        if reference.same_base is not True:
            whose = "another base than this checkpoint" if reference.same_base is False else "what may be another base"
            notes.append(
                f"The reference {reference.audit!r} was distilled from {whose}: what it says may not carry over."
            )
    for d_prime in STRENGTHS:
        auc = float(norm.cdf(d_prime / np.sqrt(2)))
        strengths.append(strength(f"assumed, d' = {d_prime:g}", d_prime, auc, power.assumed(d_prime)))
    return Plan(
        audit=question.audit,
        checkpoint=relative(question.checkpoint) if question.checkpoint else None,
        with_base=question.with_base,
        benchmark=benchmark,
        unseen=unseen,
        level=decision.level,
        confidence=decision.confidence,
        simulations=decision.simulations,
        detectable_share=decision.detectable_share,
        no_evidence=no_evidence,
        reference=reference,
        strengths=strengths,
        max_new_tokens=g.max_new_tokens,
        rough=question.checkpoint is None,
        passes=passes,
        disk=cost.disk(len(texts), g.max_new_tokens, question.with_base),
        memory=memory,
        speeds=speeds,
        seconds=cost.seconds(passes, speeds),
        notes=notes,
    )


def _here(question: Question) -> list[tuple[cost.Role, Path]]:
    """The models that are here."""
    both: list[tuple[cost.Role, Path | None]] = [("checkpoint", question.checkpoint), ("base", question.base)]
    return [(role, folder) for role, folder in both if folder is not None]


def _sets(question: Question, frames: list[pd.DataFrame], decision: Decision) -> tuple[Asked, Asked, list[str]]:
    """The two sets, and what is to be said of them."""
    counts = [len(frame) for frame in frames]
    sources = frames[0]["source"].to_numpy(), frames[1]["source"].to_numpy()
    test = GlobalTest(counts[0], counts[1], permutations=0, seed=0, sources=sources)
    benchmark = Asked(name=question.benchmark, questions=counts[0], units=test.units[0])
    unseen = Asked(name=question.unseen, questions=counts[1], units=test.units[1])
    notes = []
    if test.clustered:
        notes.append(f"Sources repeat, so {benchmark.units} benchmark and {unseen.units} unseen units count.")
    need = decisions.negatives_needed(decision.fpr)
    if unseen.questions < need:
        notes.append(
            f"{unseen.questions} unseen questions cannot resolve a false-positive rate of {decision.fpr:g}: {need} can."
        )
    return benchmark, unseen, notes


def _detectable(reference: power.Reference, benchmark: int, unseen: int, with_base: bool, p: Params) -> Detectable:
    found = power.curve(
        reference, benchmark, unseen, with_base=with_base, decision=p.decision, seed=p.calibrate.seed
    ).mde80
    mde80, low, high = (None if math.isinf(end) else end for end in found)
    if not reference.drawn:
        low = high = None
    return Detectable(unseen=unseen, mde80=mde80, low=low, high=high)


def _reference(measured: results.Reference, chosen: Chosen, question: Question) -> Reference:
    """What a reference says of the chosen method, and whether it was made from the same base."""
    file, tried = DETECTOR.with_name("methods.csv"), []
    if file.is_file():
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                method = scores.parse(row["method"])
                others = dict(method.parameters) == {k: v for k, v in chosen.parameters.items() if k != "m"}
                if (row["reference"], method.name) == (measured.name, chosen.method) and others:
                    figures = {key: float(row[key]) for key in ("auc", "auc_low", "auc_high")}
                    tried.append(AtTokens(m=method.m, **figures))
    folder = question.base if question.with_base else question.checkpoint
    same = None
    if folder is not None:
        same = checkpoints.fingerprint(folder) == measured.provenance.base_fingerprint
        if not same and not question.with_base:
            same = None  # a checkpoint whose base was not named
    return Reference(audit=measured.name, method=chosen.id, same_base=same, tokens=sorted(tried, key=lambda one: one.m))


def _no_evidence(reference: Reference, measured: Strength, benchmark: Asked, unseen: Asked, decision: Decision) -> bool:
    """Whether NO EVIDENCE can come out, by the rules of `decisions.decide`."""
    high = measured.found[0].high
    return (
        high is not None
        and high <= decision.detectable_share
        and (reference.same_base is True or decision.allow_foreign_power)
        and min(benchmark.units, unseen.units) >= decision.fewest_units
        and unseen.questions >= decisions.negatives_needed(decision.fpr)
    )


def _memory(role: cost.Role, folder: Path, prompts: Packed, split: int, p: Params) -> cost.Memory:
    """`split`: so many prompts are the benchmark's, the others unseen; batches are planned for each set by itself."""
    from tbd.checkpoints.loading import choose_device, free_memory  # seconds

    config = json.loads((folder / "config.json").read_text("utf-8"))
    batches = [
        (len(rows), max(len(some[row]) for row in rows) + p.generate.max_new_tokens)
        for some in (prompts[:split], prompts[split:])
        for rows in units.plan(some, p.generate.batch_size)
    ]
    own = p.generate.engine == "transformers"  # a server makes its own batches, on its own machine
    free = free_memory(choose_device(p.generate.device)) if own else None
    return cost.memory(role, cost.parameters(folder), _dtype(p), config, batches, free)


def _dtype(p: Params) -> str:
    if p.generate.dtype != "auto":
        return p.generate.dtype
    from tbd.checkpoints.loading import choose_device, choose_dtype  # seconds

    return choose_dtype("auto", choose_device(p.generate.device))


def _speeds(question: Question, prompts: dict[cost.Role, Packed], p: Params) -> list[cost.Speed]:
    """Of every model that is here, measured one after the other."""
    kind, here, found = engines.find(p.generate.engine), _here(question), []
    with locks.device(p.serve.device_slots):
        for role, folder in here:
            limit = LIMIT / len(here)
            print(f"measuring the {role} on this machine: loading it, then {limit:.0f} s at most", flush=True)
            start = time.monotonic()
            engine = kind.open(folder, p.generate)
            load = time.monotonic() - start
            measured = cost.burst(engine, role, prompts[role], p.generate.batch_size, load, limit)
            del engine  # two models at once need not fit
            if measured is not None:
                found.append(measured)
    return found

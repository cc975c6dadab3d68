"""Before and after a run of the pipeline: preparing an audit, finding out what is left to do, verifying one.

Everything that can be refused is refused here, before anything is written.
"""

import re
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tbd import audits, checkpoints, params, records, sources
from tbd.audits import Audit
from tbd.checkpoints import adapters, served
from tbd.commands import prune
from tbd.commands.sets import pipeline_outputs, questions
from tbd.detection import decisions
from tbd.detection.results import read_detector, read_verdict
from tbd.detection.verdict import judge
from tbd.errors import Incomplete, InputError, TransientFault
from tbd.generation import engines
from tbd.history import History, outbox
from tbd.params import Rule
from tbd.pipeline import repro, workspace_lock
from tbd.pipeline.lock_file import LockFile, target
from tbd.scores.scoring import LABELS, score, wanted
from tbd.scores.table import ScoreTable
from tbd.sets import blind, near_duplicates
from tbd.tracking import runs
from tbd.watch import decide, outcomes
from tbd.workspace import AUDITS, DETECTOR, check_name, relative, set_path


def prepare(
    checkpoint: str,
    benchmark: str,
    unseen: str,
    base: str | None,
    asked: str | None,
    fpr: float | None,
    origin: str | None = None,
) -> tuple[str, Audit]:
    """Check what an audit needs, as far as that takes no model, and write nothing.

    Returns its name and what goes into its audit.yaml.

    `asked`: its name; made of checkpoint and benchmark if None. `origin`: where the checkpoint came from, if
    `checkpoint` is the folder it was fetched to. An audit that says the same already, apart from pins, is returned as
    it is. Raises InputError, or TransientFault where one has to be fetched.
    """
    p = params.load()
    wanted(p)
    rate = fpr if fpr is not None else p.decision.fpr
    if not params.SMALLEST_RATE <= rate < 1:
        raise InputError(f"--fpr {rate:g}: a rate is at least {params.SMALLEST_RATE:g} and below 1.")
    folder, address = _found(checkpoint, base, p)
    base_folder = _found(base, None, p)[0] if base is not None else None
    if base_folder is None and (own := adapters.parts(folder).get("base")):
        base_folder = Path(own)  # what an adapter was put on is its base
    texts = {key: questions(key) for key in (benchmark, unseen)}
    _enough("params.yaml: decision.fpr" if fpr is None else "--fpr", unseen, len(texts[unseen]), fpr, p)
    _apart("tbd check", benchmark, unseen, texts, p.validate_)
    entry = Audit(
        checkpoint=relative(folder),
        base=relative(base_folder) if base_folder else None,
        benchmark=benchmark,
        unseen=unseen,
        fpr=fpr,
        checkpoint_fingerprint=checkpoints.fingerprint(folder),
        base_fingerprint=checkpoints.fingerprint(base_folder) if base_folder else None,
        origin=origin or address,
    )
    if base_folder and entry.base_fingerprint == entry.checkpoint_fingerprint:
        raise InputError(f"--base {base}: the same model as the checkpoint. Leave --base out.")
    slug = re.sub("[^A-Za-z0-9_-]+", "-", f"{_name(folder)}-{benchmark}").strip("-_")[:63]
    name = check_name(asked if asked is not None else slug, "audit")
    taken = audits.load()
    if name in taken and asked is None and not _same(taken[name], entry):
        name = (
            f"{name[:53]}-x{audits.digest(entry)}"  # other weights at that path, or asked in another way: another audit
        )
    known = taken.get(name)
    if known is None or known == entry:
        return name, entry
    if not _same(known, entry):
        differing = [key for key, value in entry if value != getattr(known, key)]
        raise InputError(
            f"audit {name!r}: the name is taken, with another {', '.join(differing)}. Choose another with --as."
        )
    return name, known


def _found(checkpoint: str, base: str | None, p: params.Params) -> tuple[Path, str | None]:
    """As `sources.find`; a model on a server is asked its canary."""
    if not served.is_address(checkpoint):
        return sources.find(checkpoint, base)
    from tbd.generation.engines.served import register

    return register(checkpoint, p.generate), checkpoint


def _name(folder: Path) -> str:
    """What a checkpoint is called: by its folder, or that of the adapter, or as its server calls it."""
    if served.is_served(folder):
        return folder.name.rpartition("--")[0]
    return Path(adapters.parts(folder).get("adapter", folder)).resolve().name


def _same(known: Audit, entry: Audit) -> bool:
    """Whether both ask the same; one of a checkpoint that the pipeline makes is not pinned."""
    pins = {"checkpoint_fingerprint": None, "base_fingerprint": None}
    return known in (entry, entry.model_copy(update=pins))


def present() -> list[str]:
    """The audits, without those that were judged and whose checkpoint is gone or overwritten: their verdicts stand."""
    names, made, pruned = [], pipeline_outputs(), records.known(prune.PRUNED)
    for name, audit in audits.load().items():
        folder, pin = Path(audit.checkpoint), audit.checkpoint_fingerprint
        if folder.is_dir():
            gone = pin is not None and _fingerprint(folder) != pin
        else:
            origin = audit.origin or ""
            afar = ":/" in origin and not served.is_address(origin)
            there = afar or (origin and Path(origin).is_dir())  # or an adapter's folder
            gone = (not there and audit.checkpoint not in made) or audit.checkpoint in pruned
        if gone and (AUDITS / name / "verdict.json").is_file():
            what = "holds other weights by now" if folder.is_dir() else "is no longer there"
            print(f"{name}: {folder} {what}; the verdict stands", flush=True)
        else:
            names.append(name)
    return names


def _fingerprint(folder: Path) -> str | None:
    """None: a part is missing, such as an adapter's base."""
    try:
        return decide.fingerprint(folder)
    except Incomplete:
        return None


def settled(names: Sequence[str]) -> bool:
    """Whether nothing is left to do about these audits: up to date, and the verdicts in the history, told and recorded.

    What cannot be found out is not settled: the flow will say why.
    """
    known = History()
    try:
        if not workspace_lock.idle() or outbox.pending():
            return False
        states = [outcomes.state(name) for name in names]
        if [judged and judged.state for judged in map(known.judged, names)] != states:
            return False
        with ThreadPoolExecutor(1) as aside:  # DVC in a process of its own, while MLflow loads in this one
            fresh = aside.submit(repro.up_to_date, [target(f"verdict@{name}") for name in names])
            return runs.recorded(states) and fresh.result()
    except (InputError, TransientFault):
        return False


def ready(names: Iterable[str]) -> None:
    """Check the parameters, and these audits against them, before a long run that would end there. Raises InputError.

    A checkpoint from afar that is not here (in a new clone) is fetched again; that may raise TransientFault.
    """
    p = params.load()
    wanted(p)
    for name in names:
        audit = audits.get(name)
        if audit.origin is not None and not Path(audit.checkpoint).is_dir():
            if served.is_address(audit.origin):
                raise InputError(
                    f"audit {name!r}: {audit.checkpoint} is not here, with what its server answered. Get it from git, "
                    f"or ask anew: tbd check {audit.origin}."
                )
            sources.resolve(audit.origin, audit.base)
        path = set_path(audit.unseen)
        if path.is_file():  # else the pipeline is about to make or check it out
            _enough(f"audit {name!r}", audit.unseen, len(records.read_table(path, records.QUESTIONS)), audit.fpr, p)


def ready_for(policy: Iterable[Rule]) -> None:
    """Check the rules of a policy: what is wrong with them is no checkpoint's fault.

    Raises InputError, or TransientFault for a base.
    """
    p = params.load()
    for number, rule in enumerate(policy, start=1):
        texts = {name: questions(name) for name in (rule.benchmark, rule.unseen)}
        where = f"params.yaml: watch.policy, rule {number}"
        _enough(where, rule.unseen, len(texts[rule.unseen]), rule.fpr, p)
        _apart(where, rule.benchmark, rule.unseen, texts, p.validate_)
        if rule.base is not None:
            sources.resolve(rule.base)


def _enough(where: str, unseen: str, have: int, fpr: float | None, p: params.Params) -> None:
    rate = fpr if fpr is not None else p.decision.fpr
    need = decisions.negatives_needed(rate)
    if have < need:
        raise InputError(
            f"{where}: a false-positive rate of {rate:g} needs {need} unseen questions and {unseen!r} has {have}: "
            f"add {need - have} or raise the rate."
        )


def _apart(where: str, benchmark: str, unseen: str, texts: dict[str, pd.DataFrame], p: params.Validate) -> None:
    """Raise InputError if the two sets share a question."""
    if benchmark == unseen:
        raise InputError(f"{where}: benchmark and unseen set are both {benchmark!r}. Name two different sets.")
    left, right = texts[benchmark], texts[unseen]
    pairs = near_duplicates.pairs(list(left["question"]), list(right["question"]), p.ngram, p.max_overlap)
    if pairs:
        first = left["question_id"].iloc[pairs[0][0]]
        raise InputError(
            f"{where}: {len(pairs)} questions of {unseen!r} are in {benchmark!r} too (the first there: {first}). "
            "Remove them from one of the two, and import it again."
        )


def verify(name: str) -> list[str]:
    """Recompute an audit from its stored generations; what differs from what is on disk, one line each.

    Raises InputError.
    """
    p = params.load()
    audit = audits.get(name)
    folder = AUDITS / name
    own = (f"{kind}@{name}" for kind in ("generate", "score", "verdict"))
    made = LockFile(Path(), f"verdict@{name}").digests("calibrate", *own)
    differences = [
        f"{path}: not the file dvc.lock names"
        for path, digest in made.items()
        if not path.is_file() or records.md5(path) != digest
    ]
    try:
        stored = read_verdict(folder / "verdict.json").model_dump(mode="json")
        methods = wanted(p)
        sets = {key: records.read_table(set_path(key), records.QUESTIONS) for key in (audit.benchmark, audit.unseen)}
        generations = {"checkpoint": folder / "generations.parquet"}
        if records.stored_table(base := folder / "base_generations.parquet", records.GENERATIONS).count_rows():
            generations["base"] = base
        with tempfile.TemporaryDirectory() as temporary:
            again = Path(temporary, "scores.parquet")
            score(generations, {key: table.select(LABELS.names) for key, table in sets.items()}, methods, again)
            if not _same_rows(again, folder / "scores.parquet"):
                differences.append(f"{folder}/scores.parquet: other scores than its generations give")
            texts = blind.texts(sets[audit.benchmark], sets[audit.unseen], p.decision.blind, p.calibrate.seed)
            scored, detector = ScoreTable(name, again), read_detector(DETECTOR)
            judgement = judge(name, audit, scored, detector, p.decision, p.calibrate.seed, texts)
    except (InputError, LookupError, ValueError) as error:
        if not differences:
            raise
        return [*differences, str(error)]  # a file that was tampered with need not be readable
    for key, value in sorted(judgement.verdict.model_dump(mode="json").items()):
        if value != stored[key]:
            two = f"{_short(stored[key])} on disk, {_short(value)} recomputed"
            differences.append(f"{folder}/verdict.json: {key}: {two}")
    return differences


def same_server(name: str) -> None:
    """Raise InputError if a model of an audit is only a server and answers otherwise than when it was registered.

    Raises TransientFault where the server does not answer. Other models are not looked at.
    """
    p, audit = params.load().generate, audits.get(name)
    pins = ((audit.checkpoint, audit.checkpoint_fingerprint), (audit.base, audit.base_fingerprint))
    for folder, pin in pins:
        if folder is not None and served.is_served(Path(folder)):
            kind, how = engines.of(checkpoints.pinned(folder, pin), p)
            kind.open(Path(folder), how)


def _same_rows(one: Path, other: Path) -> bool:
    """Whether two tables of `records.SCORES` hold the same; a column at a time."""
    both = [records.stored_table(path, records.SCORES) for path in (one, other)]
    for name in records.SCORES.names:
        a, b = (table.to_table(columns=[name])[name] for table in both)
        same = np.array_equal(a, b, equal_nan=True) if name == "score" else a.equals(b)
        if not same:
            return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

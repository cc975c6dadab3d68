"""What the commands do before and after a pipeline: importing a set, registering an audit, verifying one.

Everything that can be refused is refused here, before anything is written.
"""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tbd import checkpoint as checkpoints
from tbd import (
    decisions,
    importing,
    near_duplicates,
    outbox,
    params,
    pipeline,
    records,
    register,
    scores,
    sources,
    tracking,
    watching,
)
from tbd.errors import InputError, PassingFault, unknown
from tbd.history import History
from tbd.judged import AUDITS, Judged
from tbd.params import Rule
from tbd.register import Audit


def import_set(name: str, source: str, columns: dict[str, str | None]) -> int:
    """Read, validate, write data/sets/NAME.parquet and put it under DVC. Returns the number of questions. Raises InputError."""
    from tbd import expectations

    path = register.set_path(register.check_name(name, "set"))
    frame, first = importing.read(source)
    frame = importing.questions(frame, source, first, columns)
    p = params.load().validate_
    outcome = expectations.check_questions(name, frame, {}, p.ngram, p.max_overlap)
    if outcome.failures:
        raise InputError(f"{source}: {outcome.failures[0]}")
    table = pa.Table.from_pandas(frame, records.QUESTIONS, preserve_index=False)
    tracker = path.with_name(path.name + ".dvc")
    made_by_pipeline = str(path) in _pipeline_outputs()
    if tracker.exists() and not path.exists():
        pipeline.dvc("checkout", "--quiet", str(tracker))
    if path.exists():
        if not records.read_table(path, records.QUESTIONS).equals(table):
            raise InputError(f"set {name!r}: the name is taken by other questions ({path}). Choose another name.")
        if not tracker.exists() and not made_by_pipeline:  # killed between writing and tracking
            pipeline.dvc("add", "--quiet", str(path))
        return len(table)
    if made_by_pipeline:
        raise InputError(f"set {name!r}: the pipeline makes a set of this name. Choose another name.")
    records.write_table(path, table)
    try:
        pipeline.dvc("add", "--quiet", str(path))
    except BaseException:
        path.unlink(missing_ok=True)
        tracker.unlink(missing_ok=True)
        raise
    return len(table)


def _pipeline_outputs() -> set[str]:
    stages = params.load_yaml(Path("dvc.yaml"))["stages"]
    return {out for stage in stages.values() for out in stage.get("outs", []) if isinstance(out, str)}


def questions(name: str) -> pd.DataFrame:
    """The question set `name`, a row a question. Raises InputError, suggesting a name, if there is none such."""
    path = register.set_path(register.check_name(name, "set"))
    tracker = path.with_name(path.name + ".dvc")
    if not path.is_file():
        known = {file.stem for file in register.SETS.glob("*.parquet")}
        made = {Path(out).stem for out in _pipeline_outputs() if Path(out).parent == register.SETS}
        if name in made:
            pipeline.dvc("repro", "sets")
        elif tracker.is_file():
            pipeline.dvc("checkout", str(tracker))
        else:
            raise unknown("set", name, known | made, str(register.SETS))
    if tracker.is_file() and params.load_yaml(tracker)["outs"][0]["md5"] != records.md5(path):
        raise InputError(
            f"{path}: changed since it was imported. Undo it with `dvc checkout {tracker}`, or import it under another name."
        )
    frame: pd.DataFrame = records.read_table(path, records.QUESTIONS).to_pandas()
    return frame


def prepare(
    checkpoint: str, benchmark: str, unseen: str, base: str | None, name: str | None, fpr: float | None, origin: str | None = None
) -> tuple[str, Audit]:
    """Check what an audit needs, as far as that takes no model, and write nothing. Returns its name and register entry.

    `origin`: where the checkpoint came from, if `checkpoint` is the folder it was fetched to. An entry of the register that says
    the same, apart from pins, is returned as it is. Raises InputError, or PassingFault where one has to be fetched.
    """
    p = params.load()
    scores.expand(p.score.methods)
    rate = fpr if fpr is not None else p.decision.fpr
    if not params.SMALLEST_RATE <= rate < 1:
        raise InputError(f"--fpr {rate:g}: a rate is at least {params.SMALLEST_RATE:g} and below 1.")
    folder, address = sources.find(checkpoint)
    base_folder = sources.resolve(base) if base is not None else None
    texts = {key: questions(key) for key in (benchmark, unseen)}
    have, need = len(texts[unseen]), decisions.negatives_needed(rate)
    if have < need:
        raise InputError(
            f"--fpr {rate:g}: needs {need} unseen questions and {unseen!r} has {have}: add {need - have} or raise the rate."
        )
    _apart(benchmark, unseen, texts, p.validate_)
    entry = Audit(
        checkpoint=register.workspace_path(folder),
        base=register.workspace_path(base_folder) if base_folder else None,
        benchmark=benchmark,
        unseen=unseen,
        fpr=fpr,
        checkpoint_fingerprint=checkpoints.fingerprint(folder),
        base_fingerprint=checkpoints.fingerprint(base_folder) if base_folder else None,
        origin=origin or address,
    )
    if base_folder and entry.base_fingerprint == entry.checkpoint_fingerprint:
        raise InputError(f"--base {base}: the same model as the checkpoint. Leave --base out.")
    slug = re.sub("[^A-Za-z0-9_-]+", "-", f"{folder.resolve().name}-{benchmark}").strip("-_")[:63]
    name = register.check_name(name if name is not None else slug, "audit")
    known = register.load().get(name)
    pins = {"checkpoint_fingerprint": None, "base_fingerprint": None}
    if known is not None and known == entry.model_copy(update=pins):
        return name, known
    if known is not None and known != entry:
        differing = [key for key, value in entry if value != getattr(known, key)]
        raise InputError(f"audit {name!r}: the name is taken, with another {', '.join(differing)}. Choose one with --as.")
    return name, entry


def present() -> list[str]:
    """The audits of the register, without those that are judged and whose checkpoint was taken away since: their verdicts stand."""
    names, made = [], _pipeline_outputs()
    for name, audit in register.load().items():
        gone = not Path(audit.checkpoint).is_dir() and audit.origin is None and audit.checkpoint not in made
        if gone and (AUDITS / name / "verdict.json").is_file():
            print(f"{name}: {audit.checkpoint} is no longer there; the verdict on it stands", flush=True)
        else:
            names.append(name)
    return names


def settled(names: Sequence[str]) -> bool:
    """Whether nothing is left to do about these audits: up to date, and the verdicts in the history, told and recorded.

    What cannot be found out is not settled: the flow will say why.
    """
    known = History()
    try:
        if not pipeline.idle() or outbox.pending():
            return False
        states = [watching.state(name) for name in names]
        if [judged and judged.state for judged in map(known.judged, names)] != states:
            return False
        with ThreadPoolExecutor(1) as aside:  # DVC in a process of its own, while MLflow loads in this one
            fresh = aside.submit(pipeline.up_to_date, [f"verdict@{name}" for name in names])
            return tracking.recorded(states) and fresh.result()
    except (InputError, PassingFault):
        return False


def ready(names: Iterable[str]) -> None:
    """Check the parameters, and these audits against them, before a long run that would end there. Raises InputError.

    A checkpoint from afar that is not here (in a new clone) is fetched again; that may raise PassingFault.
    """
    p = params.load()
    scores.expand(p.score.methods)
    for name in names:
        audit = register.get(name)
        if audit.origin is not None and not Path(audit.checkpoint).is_dir():
            sources.resolve(audit.origin)
        path = register.set_path(audit.unseen)
        if path.is_file():  # else the pipeline is about to make or check it out
            _enough(f"audit {name!r}", audit.unseen, len(records.read_table(path, records.QUESTIONS)), audit.fpr, p)


def ready_for(policy: Iterable[Rule]) -> None:
    """Check the rules of a policy: what is wrong with them is no checkpoint's fault. Raises InputError, or PassingFault for a base."""
    p = params.load()
    for number, rule in enumerate(policy, start=1):
        texts = {name: questions(name) for name in (rule.benchmark, rule.unseen)}
        _enough(f"params.yaml: watch.policy, rule {number}", rule.unseen, len(texts[rule.unseen]), rule.fpr, p)
        _apart(rule.benchmark, rule.unseen, texts, p.validate_)
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


def _apart(benchmark: str, unseen: str, texts: dict[str, pd.DataFrame], p: params.Validate) -> None:
    """Raise InputError if the two sets share a question."""
    if benchmark == unseen:
        raise InputError(f"--benchmark and --unseen are both {benchmark!r}: unseen questions must be others.")
    left, right = texts[benchmark], texts[unseen]
    pairs = near_duplicates.pairs(list(left["question"]), list(right["question"]), p.ngram, p.max_overlap)
    if pairs:
        first = left["question_id"].iloc[pairs[0][0]]
        raise InputError(
            f"--unseen {unseen}: {len(pairs)} of its questions are in {benchmark!r} too (the first: {first}). Take them out."
        )


def verify(name: str) -> list[str]:
    """Recompute an audit from its stored generations; what differs from what is on disk, one line each. Raises InputError."""
    from tbd.stages.score import score
    from tbd.verdict import judge

    p = params.load()
    audit = register.get(name)
    folder = AUDITS / name
    differences = [
        f"{path}: not the file dvc.lock names"
        for stage in ("generate", "score", "verdict")
        for path, digest in pipeline.locked_files(f"{stage}@{name}").items()
        if not path.is_file() or records.md5(path) != digest
    ]
    try:
        stored = records.read_json(folder / "verdict.json")
        sets = {key: records.read_table(register.set_path(key), records.QUESTIONS) for key in (audit.benchmark, audit.unseen)}
        generations = {"checkpoint": records.read_table(folder / "generations.parquet", records.GENERATIONS)}
        if len(base := records.read_table(folder / "base_generations.parquet", records.GENERATIONS)):
            generations["base"] = base
        table = score(generations, sets, scores.expand(p.score.methods))
        kept = records.read_table(folder / "scores.parquet", records.SCORES)
        if not table.to_pandas().equals(kept.to_pandas()):
            differences.append(f"{folder}/scores.parquet: other scores than its generations give")
        found = judge(name, audit, Judged(name, table), records.read_json(records.DETECTOR), p.decision, p.calibrate.seed).verdict
    except (InputError, KeyError, ValueError) as error:
        if not differences:
            raise
        return [*differences, str(error)]  # a file that was tampered with need not be readable
    for key in sorted(found.keys() | stored.keys()):
        if found.get(key) != stored.get(key):
            differences.append(f"{folder}/verdict.json: {key}: {_short(stored.get(key))} on disk, {_short(found.get(key))} recomputed")
    return differences


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""Recording finished results in MLflow, where they are read and compared. No stage reads what is recorded.

A record is first read and checked as a whole: it holds exactly the outputs that `dvc.lock` names. Then it is sent, as a
run that has a digest of its state as a tag and becomes FINISHED last. No state is recorded twice.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tbd import audits
from tbd.detection.results import Detector, Figures, Provenance, Verdict, read_detector, read_verdict
from tbd.errors import InputError
from tbd.foreign import secretless
from tbd.mlflow_store import artifact_root, reaching, store
from tbd.pipeline.lock_file import LockFile
from tbd.records import VERDICT_QUESTIONS, read_table
from tbd.report.explain import explain
from tbd.report.summary import escaped
from tbd.report.text import code, interval
from tbd.workspace import set_path

CALIBRATIONS = "tbd calibrations"
CHECKS = "tbd checks"
EXPERIMENTS = {
    CALIBRATIONS: "One run a calibrated detector: every method on the reference, the choice, its AUC and power "
    "with intervals.",
    CHECKS: "One run an audit: was the benchmark in the checkpoint's distillation data? Compare `verdict` and "
    "`contamination_rate`.",
    "tbd history": "One run a workspace, which grows: `contamination_rate.BENCHMARK` over checkpoints, oldest first.",
}


@dataclass
class Record:
    """What a run will hold, read and checked before anything is sent."""

    experiment: str
    name: str
    description: str
    state: str
    params: dict[str, Any]
    metrics: dict[str, Any]
    """None: not known"""
    tags: dict[str, Any]
    datasets: list[tuple[str, str, str, int | None]]
    """(context, name, md5, questions)"""
    files: dict[str, Path]
    """artifact path -> file or folder"""
    tables: dict[str, Any] = field(default_factory=dict)
    """artifact path -> data frame"""
    detector: Path | None = None
    """detector.json, of a calibration"""


def record_calibration(workspace: Path = Path()) -> str:
    """Record the detector of the workspace; returns the id of the run, which is an old one if it was recorded before.

    Raises:
        InputError: an output is missing, is not what `dvc.lock` says, or holds a number that is not finite.
        TrackingDown: the store did not take it.
    """
    return _send(_calibration(workspace), store(workspace))[0]


def record_check(audit: str, workspace: Path = Path()) -> str:
    """Record one audit; returns and raises what `record_calibration` does."""
    return _send(_check(audit, workspace), store(workspace))[0]


def record_all(workspace: Path = Path()) -> list[str]:
    """Record every result that is not recorded yet; returns the ids of the new runs.

    Raises what `record_calibration` does, an InputError when all other results are recorded.
    """
    uri, made, refused = store(workspace), [], []
    readers = {workspace / "detector/detector.json": partial(_calibration, workspace)}
    for audit in audits.names(workspace):
        readers[workspace / f"audits/{audit}/verdict.json"] = partial(_check, audit, workspace)
    for result, read in readers.items():
        if result.is_file():
            try:
                run_id, new = _send(read(), uri)
                made += [run_id] if new else []
            except InputError as error:  # the other results are recorded all the same
                refused.append(str(error))
    if refused:
        raise InputError(" ".join(refused))
    return made


def recorded(states: Sequence[str], workspace: Path = Path()) -> bool:
    """Whether all these states of audits are recorded. Raises TrackingDown."""
    uri = store(workspace)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():  # MLflow would make one
        return False
    with reaching(uri) as client:
        experiment = client.get_experiment_by_name(CHECKS)
        if experiment is None or experiment.lifecycle_stage == "deleted":
            return False
        return all(_runs(client, experiment.experiment_id, state) for state in states)


# --- what a run holds -------------------------------------------------------------------------------------------------


def _calibration(workspace: Path) -> Record:
    lock = LockFile(workspace, "calibrate")
    detector = read_detector(workspace / lock.checked("detector/detector.json"))
    reference, choices, best = detector.reference, detector.choices, detector.best
    provenance, chosen = reference.provenance, getattr(choices, detector.best)
    metrics = _figures(reference.figures(best)) | {"unscored": reference.questions.unscored}
    for one in detector.references:
        for name in choices.made():
            prefix = f"{name}." if one is reference else f"{one.name}.{name}."
            metrics |= {f"{prefix}{key}": value for key, value in _figures(one.figures(name)).items()}
    auc = _auc(reference.figures(best))
    of = reference.figures(best)
    flagged = interval(of.members_flagged, of.members_flagged_low, of.members_flagged_high, ".0%")
    alone = f" Log-probs of the checkpoint alone: `{choices.alone.id}`, AUC {_auc(reference.alone)}."
    weaker = "".join(
        f" On {code(one.provenance.checkpoint)}: AUC {_auc(one.figures(best))}." for one in detector.references[1:]
    )
    description = (
        f"**AUC {auc}** for `{chosen.id}` on {reference.questions.members} members and {reference.questions.others} "
        f"other questions, each measured by a choice that it did not make, checkpoint {code(provenance.checkpoint)}. "
        f"At a false-positive rate of {detector.fpr:g} it flags {flagged} of planted members."
        + (alone if choices.with_base else "")
        + weaker
        + _warnings(detector)
    )
    files = {f"detector/{name}": name for name in ("plots", "roc.csv", "detector.json")}
    return Record(
        experiment=CALIBRATIONS,
        name=f"{chosen.method}(m={chosen.parameters['m']}) AUC {auc}",
        description=description,
        state=lock.state("detector/detector.json"),
        params={
            "detector": chosen.id,
            "detector_version": detector.version,
            "choice": best,
            "fpr": detector.fpr,
            "alone": choices.alone.id,
            "with_base": choices.with_base.id if choices.with_base else None,
            **provenance.model_dump(mode="json", exclude={"benchmark", "unseen"}),
            **lock.params(),
        },
        metrics=metrics,
        tags={
            "detector_version": detector.version,
            "checkpoint_fingerprint": provenance.fingerprint,
            "base_fingerprint": provenance.base_fingerprint,
            **lock.tags(),
        },
        datasets=[*_sets(provenance), *lock.members()],
        files=lock.files(files) | lock.optional("data/validation/docs", "validation/docs"),
        tables={"methods.json": lock.csv("detector/methods.csv")},
        detector=workspace / "detector/detector.json",
    )


def _check(audit: str, workspace: Path) -> Record:
    audits.get(audit, workspace)
    lock = LockFile(workspace, f"verdict@{audit}")
    folder = f"audits/{audit}"
    verdict = read_verdict(workspace / lock.checked(f"{folder}/verdict.json"))
    benchmark, power, detector = verdict.benchmark, verdict.power, verdict.detector
    direct = {
        "contamination_rate",
        "members_at_least",
        "share_at_least",
        "flagged",
        "flagged_false",
        "unscored",
        "p_value",
        "threshold",
    }
    metrics = {
        "flagged_share": verdict.flagged / benchmark.n,
        "questions": benchmark.n,
        **verdict.model_dump(include=direct),
        **(verdict.labelled.model_dump(exclude={"questions"}) if verdict.labelled else {}),
    }
    metrics |= verdict.same_kind.model_dump(exclude={"blind"})
    if verdict.same_kind.blind:
        metrics |= {f"blind_{key}": value for key, value in verdict.same_kind.blind.model_dump().items()}
    if power:
        metrics |= power.model_dump(include={"mde80", "mde80_low", "mde80_high"})
    metrics |= {f"{one.reference}.mde80": one.mde80 for one in verdict.other_powers}
    description = "\n\n".join([f"**{verdict.verdict}**", *explain(verdict).paragraphs]) + _warnings(verdict)
    files = {f"{folder}/{name}": name for name in ("plots", "report.html", "verdict.json")}
    table = read_table(workspace / lock.checked(f"{folder}/questions.parquet"), VERDICT_QUESTIONS).to_pandas()
    return Record(
        experiment=CHECKS,
        name=f"{audit} on {benchmark.name}: {verdict.verdict}",
        description=description,
        state=lock.state(f"{folder}/verdict.json"),
        params={
            "audit": audit,
            "detector": detector.id,
            "detector_version": detector.version,
            "choice": detector.choice,
            "power_reference": power.reference if power else None,
            "power_same_base": power.same_base if power else None,
            **verdict.model_dump(include={"fpr", "level", "confidence", "checkpoint", "base"}),
            "benchmark": benchmark.name,
            "unseen": verdict.unseen.name,
            **verdict.generation.model_dump(mode="json"),
            **lock.params(),
        },
        metrics=metrics,
        tags={
            "verdict": verdict.verdict,
            "audit": audit,
            "detector_version": detector.version,
            "checkpoint_fingerprint": verdict.checkpoint_fingerprint,
            "base_fingerprint": verdict.base_fingerprint,
            **lock.tags(),
        },
        datasets=_sets(verdict),
        files=lock.files(files) | lock.optional(f"{folder}/validation", "validation"),
        tables={"questions.json": table.sort_values("p_value", kind="stable")},
    )


def _figures(figures: Figures) -> dict[str, Any]:
    names = {"auc", "auc_low", "auc_high", "tpr_at_fpr", "tpr_low", "tpr_high", "threshold", "others_flagged"}
    return figures.model_dump(include=names | {"members_flagged", "members_flagged_low", "members_flagged_high"})


def _auc(figures: Figures) -> str:
    return interval(figures.auc, figures.auc_low, figures.auc_high)


def _sets(result: Verdict | Provenance) -> list[tuple[str, str, str, int | None]]:
    sets = {"benchmark": result.benchmark, "unseen": result.unseen}
    return [(context, asked.name, asked.md5, asked.n) for context, asked in sets.items()]


def _warnings(result: Verdict | Detector) -> str:
    return "".join(f"\n- Warning: {escaped(line)}" for line in result.warnings)


# --- sending ----------------------------------------------------------------------------------------------------------


def _send(record: Record, uri: str) -> tuple[str, bool]:
    """(run id, whether the run is new). One that a kill left half made is marked as KILLED, and another is made."""
    with reaching(uri) as client:
        experiment = open_experiment(client, record.experiment, uri)
        found = _runs(client, experiment, record.state)
        for half in [] if found else _runs(client, experiment, record.state, "RUNNING"):
            client.set_terminated(half.info.run_id, "KILLED")
        run_id = found[0].info.run_id if found else _write(client, experiment, record)
        if record.detector:
            from tbd.tracking import detector_model

            # of an old run too: the alias moves to it, and a kill may have come between run and registration
            detector_model.register(client, run_id, record.detector, record.description)
        return run_id, not found


def _runs(client: Any, experiment: str, state: str, status: str = "FINISHED") -> list[Any]:
    """The runs of this state of a result."""
    found: list[Any] = client.search_runs([experiment], f"tags.state = '{state}' and attributes.status = '{status}'")
    return found


def open_experiment(client: Any, name: str, uri: str) -> str:
    """The id of an experiment of EXPERIMENTS, which is made if it is missing. Raises InputError if it was deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        root = artifact_root(uri)
        # without the kind MLflow takes it for an experiment with language models
        tags = {"mlflow.note.content": EXPERIMENTS[name], "mlflow.experimentKind": "custom_model_development"}
        folder = (root / name.replace(" ", "-")).as_uri() if root else None
        try:
            return str(client.create_experiment(name, folder, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody was faster
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"MLflow: experiment {name!r} was deleted: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


def _write(client: Any, experiment: str, record: Record) -> str:
    """Make a run and fill it; its status becomes FINISHED last, or FAILED if something goes wrong on the way."""
    tags = record.tags | {"state": record.state, "mlflow.note.content": record.description, "mlflow.source.name": "tbd"}
    run_id = str(client.create_run(experiment, run_name=record.name, tags=texts(tags, 8000)).info.run_id)
    try:
        _fill(client, experiment, run_id, record)
    except BaseException:
        with suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _fill(client: Any, experiment: str, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    model_id = None
    if record.detector:
        from tbd.tracking import detector_model

        model_id = detector_model.log(client, experiment, run_id, record.detector)
    now = int(time.time() * 1000)
    known = {key: float(value) for key, value in record.metrics.items() if value is not None}
    client.log_batch(run_id, metrics=[Metric(key, value, now, 0, model_id) for key, value in known.items()])
    params = [Param(key, value) for key, value in texts(record.params, 6000).items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    inputs = []
    for context, name, digest, n in record.datasets:
        source = json.dumps({"uri": str(set_path(name))})
        profile = None if n is None else json.dumps({"num_rows": n})
        dataset = Dataset(name, digest[:36], "local", source, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    client.log_inputs(run_id, inputs)
    for target, table in record.tables.items():
        client.log_table(run_id, table, target)
    with tempfile.TemporaryDirectory() as temporary:
        for target, original in record.files.items():
            place = Path(temporary) / target
            place.parent.mkdir(parents=True, exist_ok=True)
            if original.is_dir():
                shutil.copytree(original, place, dirs_exist_ok=True)
            else:
                shutil.copy(original, place)
        client.log_artifacts(run_id, temporary)


def texts(values: dict[str, Any], longest: int) -> dict[str, str]:
    """Values as texts of at most `longest` characters, as MLflow wants them: None is left out, and credentials too."""
    return {key: secretless(str(value))[:longest] for key, value in values.items() if value is not None}

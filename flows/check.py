"""The flows `check` and `check-all`: verdicts on a checkpoint, and on every audit."""

import shutil
from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import Field

from flows.deliver import add, deliver
from flows.hooks import TOLD
from flows.stages import walk
from tbd import audits, history, params
from tbd.audits import Audit
from tbd.commands import checks
from tbd.errors import InputError, StageFailed, TransientFault
from tbd.history import outbox
from tbd.pipeline import templates
from tbd.pipeline.workspace_lock import workspace
from tbd.sources import Found
from tbd.watch import outcomes
from tbd.workspace import AUDITS


@flow(name="check", flow_run_name="check {checkpoint} on {benchmark}", **TOLD)
def check(
    checkpoint: str,
    benchmark: str,
    unseen: str,
    base: str | None = None,
    audit: str | None = None,
    fpr: Annotated[float, Field(gt=0, lt=1)] | None = None,
) -> str:
    """Audit one checkpoint on one benchmark: was it distilled on these questions? Returns the name of the audit.

    Args:
        checkpoint: A folder with safetensors, config and tokenizer on the machine that runs this, a hub id with its
            revision (org/name@revision), models:/NAME/VERSION, or openai:MODEL@URL.
        benchmark: The question set that the checkpoint is graded on. `tbd import` adds one.
        unseen: A question set of the same kind that the checkpoint cannot have seen.
        base: What the checkpoint was distilled from, in the same forms. It finds more, and checks that the two sets
            are alike.
        audit: Name of the audit; made of the checkpoint and the benchmark if left empty.
        fpr: A question is flagged at this false-positive rate; decision.fpr of params.yaml if left empty.
    """
    with workspace(get_run_logger().info, params.load().watch.patience):
        name, entry = checks.prepare(checkpoint, benchmark, unseen, base, audit, fpr)
        judge(name, entry)
    deliver()
    return name


@flow(name="check-all", flow_run_name="check-all", **TOLD)
def check_all(names: list[str]) -> None:
    """Bring the verdicts on these audits up to date. Only what is stale runs."""
    with workspace(get_run_logger().info, params.load().watch.patience):
        walk(*(f"verdict@{name}" for name in names))
        for name in names:
            _noted(name, None)
    deliver()


def judge(name: str, entry: Audit, found: Found | None = None) -> None:
    """Register an audit, run its stages, put its outcome into the history. Raises what stopped it.

    The folder of one that is refused goes again: a checkpoint that cannot be audited is no audit. One that broke stays,
    to go on when it is asked for again; among those that a look finds (`found`: where it was seen) it goes too, lest it
    hold up the others.
    """
    added = name not in audits.names()
    if added:
        templates.add(name, entry)
    try:
        walk(f"verdict@{name}")
    except (InputError, StageFailed, TransientFault) as error:
        refused = isinstance(error, InputError) or (isinstance(error, StageFailed) and error.bad_input)
        if (found is not None or (added and refused)) and not (AUDITS / name / "verdict.json").is_file():
            shutil.rmtree(AUDITS / name, ignore_errors=True)
        raise
    _noted(name, found)


def _noted(name: str, found: Found | None) -> None:
    """Into the history; and into MLflow even if it stood there before, as in another clone or with another store."""
    outcome = add(outcomes.verdict(name, found or _last_seen(name)))
    outbox.due(outcome.id, ["mlflow"])


def _last_seen(name: str) -> Found | None:
    last = history.History().judged(name)
    return Found(last.checkpoint, last.place, last.origin, last.version) if last is not None else None


if __name__ == "__main__":
    check_all(["reference", "base"])

"""Delivering: every outcome goes to MLflow, to Prefect and to whom params.yaml names.

Unreachable recipients are retried on the next run; no audit waits for them, and no outcome is lost.
"""

from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger
from prefect.runtime import task_run

from flows.stages import ANSWER, UNREACHABLE, retrying, slug, within
from tbd import audits, history, params
from tbd.detection.results import read_verdict
from tbd.errors import InputError, TransientFault
from tbd.history import FAILED, History, Outcome, outbox, webhook
from tbd.locks import locked
from tbd.report import summary
from tbd.report.text import plain
from tbd.tracking import history as mlflow_history
from tbd.tracking import runs
from tbd.watch import outcomes
from tbd.workspace import AUDITS

PAGE = AUDITS / "history.html"
WHOLE = "history"
"""a recipient of every outcome: the history as a page, and in MLflow"""
SHOWN = 200
"""how many outcomes Prefect's table shows"""


def add(outcome: Outcome) -> Outcome:
    """Put an outcome into the history, unless it repeats the last one, and its deliveries into the outbox first.

    Returns the outcome that is in the history.
    """
    p = params.load()
    outcome = outcomes.placed(outcome, p)
    with history.held() as known:
        return known.add(
            outcome, lambda new: outbox.due(new.id, [*outbox.recipients(new, p.notify), WHOLE]), p.stream.alpha
        )


def deliver(patient: bool = False) -> None:
    """Make every delivery that is due, a task each; `patient`: with retries. One that cannot be made now stays due."""
    with locked(outbox.DELIVERING):
        with history.held() as known:
            due, everything = outbox.pending(), known.outcomes
        by_id = {outcome.id: outcome for outcome in everything}
        away: set[str] = set()
        for of, to in due:
            if of not in by_id:  # a kill came before it was in the history; it was added again, with another id
                outbox.done(of, to)
            elif to not in away and to != WHOLE and _refused(by_id[of], to, patient):
                away.add(to)
        changed = [of for of, to in due if to == WHOLE and of in by_id]
        if changed:
            from tbd.report import history_page  # not before the first stage: matplotlib takes most of a second

            alpha = params.load().stream.alpha
            history_page.write(PAGE, everything, alpha)
            if "mlflow" not in away and record_history(everything, alpha, return_state=True).is_completed():
                for of in changed:
                    outbox.done(of, WHOLE)


def _refused(outcome: Outcome, to: str, patient: bool) -> bool:
    """Make a delivery. Returns whether the recipient is unreachable, so that others to it need not be tried."""
    if to in TASKS:
        state = TASKS[to](outcome, return_state=True)
    else:
        state = (retrying(tell) if patient else tell)(outcome, to, return_state=True)
    if state.is_completed():
        outbox.done(outcome.id, to)
        return False
    fault = state.result(raise_on_failure=False)
    logger().warning(
        "%s: the message about %s did not arrive: %s It stays due.",
        to,
        plain(outcome.checkpoint),
        " ".join(str(fault).split()),
    )
    return isinstance(fault, TransientFault)


def logger() -> Any:
    """The run's logger, or a plain one in a hook, which runs outside of any run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("tbd")


def _called() -> str:
    outcome = task_run.parameters["outcome"]
    name = outcome.audit if outcome.same_as is None else None
    return f"{name or outcome.checkpoint}: {outcome.outcome}"


@task(name="record", task_run_name=lambda: f"record {_called()}", cache_policy=NO_CACHE)
def record(outcome: Outcome) -> None:
    """A run in MLflow, and tags on the model version if the checkpoint is one."""
    with within(ANSWER, "MLflow"):
        _record(outcome)


def _record(outcome: Outcome) -> None:
    if outcome.outcome == FAILED:
        run = mlflow_history.record_failure(outcome)
    elif _superseded(outcome):
        logger().warning("not recorded: audit %s has a newer verdict, or is gone", outcome.audit)
        return
    else:
        try:
            run = runs.record_check(str(outcome.audit))
        except InputError as error:  # parameters changed since, or another process is writing the files: try later
            raise TransientFault(str(error)) from None
    mlflow_history.tag_version(outcome.origin, outcome, run)
    logger().info("recorded in MLflow: %s", run)


def _superseded(outcome: Outcome) -> bool:
    """Whether the audit is gone or was judged anew, so that this outcome can no longer be recorded."""
    try:
        return outcome.audit not in audits.names() or outcomes.state(str(outcome.audit)) != outcome.state
    except InputError:
        return False


@task(name="show", task_run_name=lambda: f"show {_called()}", cache_policy=NO_CACHE)
def show(outcome: Outcome) -> None:
    """Artifacts in Prefect: the outcome in words, and the table of all."""
    if outcome.audit is not None and outcome.same_as is None:
        verdict = read_verdict(AUDITS / outcome.audit / "verdict.json")
        key, text = f"verdict-{outcome.audit}", summary.verdict_markdown(verdict)
    else:
        key, text = f"outcome-{outcome.checkpoint}", summary.outcome_markdown(outcome)
    try:
        create_markdown_artifact(text, key=slug(key), description=outcome.outcome)
        create_table_artifact(
            summary.standing(History().outcomes)[:SHOWN], key="verdicts", description="Where every checkpoint stands"
        )
    except UNREACHABLE as error:
        raise TransientFault(f"the Prefect server does not answer ({type(error).__name__}).") from None


@task(name="tell", task_run_name=lambda: f"tell {_called()}", cache_policy=NO_CACHE)
def tell(outcome: Outcome, to: str) -> None:
    """Tell the webhook, or a Prefect notification block. Raises InputError, TransientFault."""
    with within(ANSWER, to):
        _tell(outcome, to)


def _tell(outcome: Outcome, to: str) -> None:
    if to == "webhook":
        webhook.send(outcome)
        return
    try:
        block: Any = Block.load(to)
    except ValueError as error:
        raise InputError(f"params.yaml: notify.blocks: {to}: {error}") from None
    except UNREACHABLE as error:
        raise TransientFault(f"block {to}: no answer ({type(error).__name__}).") from None
    try:
        with block.raise_on_failure():
            block.notify(body=webhook.text(outcome), subject=f"tbd: {history.event(outcome)}")
    except Exception as error:  # as many kinds as blocks, and some name the address, which is a secret
        raise TransientFault(f"block {to}: the notification did not go out ({type(error).__name__}).") from None


@task(task_run_name="record history", cache_policy=NO_CACHE)
def record_history(everything: list[Outcome], alpha: float) -> None:
    """The whole history in MLflow: the contamination rate over checkpoints, a series for each benchmark."""
    with within(ANSWER, "MLflow"):
        mlflow_history.record_history(everything, alpha=alpha)


TASKS = {"mlflow": record, "prefect": show}

"""Telling: every outcome goes to MLflow, to Prefect's artifacts and to whom params.yaml names, to each until it has arrived.

Who is away is asked again at the next look: no audit waits for that, and no outcome is lost.
"""

import re
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.blocks.abstract import NotificationError
from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger

from flows.stages import UNREACHABLE, retrying
from tbd import history, history_page, outbox, params, records, summary, tracking, tracking_history, webhook
from tbd.errors import InputError, PassingFault
from tbd.history import FAILED, History, Outcome
from tbd.judged import AUDITS
from tbd.locks import locked

PAGE = AUDITS / "history.html"
SHOWN = 200
"""outcomes in Prefect's table"""


def add(outcome: Outcome) -> Outcome:
    """Put an outcome into the history, its deliveries into the outbox before; returns the one that stands."""
    notify = params.load().notify
    with history.held() as known:
        return known.add(outcome, lambda new: outbox.due(new.id, outbox.recipients(new, notify)))


def deliver() -> None:
    """Make every delivery that is due, a task each. What cannot be made now stays due."""
    with locked(outbox.DELIVERING):
        due = outbox.pending()
        if not due:
            return
        outcomes = History().outcomes
        by_id = {outcome.id: outcome for outcome in outcomes}
        away: set[str] = set()
        for of, to in due:
            if to not in away and of in by_id and not _delivered(by_id[of], to):
                away.add(to)
        history_page.write(PAGE, outcomes)
        if "mlflow" not in away:
            record_history(outcomes, return_state=True)


def _delivered(outcome: Outcome, to: str) -> bool:
    made = TASKS[to] if to in TASKS else retrying(tell)
    state = made(outcome, to, return_state=True)
    if state.is_completed():
        outbox.done(outcome.id, to)
        return True
    fault = state.result(raise_on_failure=False)
    logger().warning("%s: not told of %s: %s It stays due.", to, outcome.checkpoint, " ".join(str(fault).split()))
    return False


def logger() -> Any:
    """The run's, or a plain one where a hook runs outside of any."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("tbd")


def _called() -> str:
    from prefect.runtime import task_run

    outcome = task_run.parameters["outcome"]
    name = outcome.audit if outcome.same_as is None else None
    return f"{name or outcome.checkpoint}: {outcome.outcome}"


@task(name="record", task_run_name=lambda: f"record {_called()}", cache_policy=NO_CACHE)
def record(outcome: Outcome, to: str) -> None:
    """A run in MLflow, and tags on the model version where the checkpoint came from there."""
    if outcome.outcome == FAILED:
        run = tracking_history.record_failure(outcome, Path())
    else:
        assert outcome.audit is not None
        try:
            run = tracking.record_check(outcome.audit)
        except InputError as error:  # judged anew since, or taken out of the register: this state can no longer be recorded
            logger().warning("not recorded: %s", error)
            return
    tracking_history.tag_version(outcome.origin, outcome, run, Path())
    logger().info("recorded in MLflow: %s", run)


@task(name="show", task_run_name=lambda: f"show {_called()}", cache_policy=NO_CACHE)
def show(outcome: Outcome, to: str) -> None:
    """Artifacts in Prefect: the outcome in words, and the table of all."""
    if outcome.audit is not None and outcome.same_as is None:
        key, text = f"verdict-{outcome.audit}", summary.verdict_markdown(records.read_json(AUDITS / outcome.audit / "verdict.json"))
    else:
        key, text = f"outcome-{outcome.checkpoint}", f"# {outcome.outcome}\n\n`{outcome.checkpoint}`\n\n{outcome.reason}"
    try:
        create_markdown_artifact(text, key=slug(key), description=outcome.outcome)
        create_table_artifact(
            summary.standing(History().outcomes)[:SHOWN], key="verdicts", description="Where every checkpoint stands"
        )
    except UNREACHABLE as error:
        raise PassingFault(f"the Prefect server does not answer ({type(error).__name__}).") from None


@task(name="tell", task_run_name=lambda: f"tell {_called()}", cache_policy=NO_CACHE)
def tell(outcome: Outcome, to: str) -> None:
    """The webhook, or a Prefect notification block."""
    if to == "webhook":
        webhook.send(outcome)
        return
    try:
        block: Any = Block.load(to)
        with block.raise_on_failure():
            block.notify(body=webhook.text(outcome), subject=f"tbd: {history.event(outcome)}")
    except ValueError as error:
        raise InputError(f"params.yaml: notify.blocks: {to}: {error}") from None
    except NotificationError:
        raise PassingFault(f"block {to}: the notification did not go out.") from None
    except UNREACHABLE as error:
        raise PassingFault(f"block {to}: no answer ({type(error).__name__}).") from None


@task(task_run_name="record history", cache_policy=NO_CACHE)
def record_history(outcomes: list[Outcome]) -> None:
    """The whole history in MLflow: the rate over checkpoints, a series a benchmark."""
    tracking_history.record_history(outcomes, Path())


TASKS = {"mlflow": record, "prefect": show}


def slug(text: str) -> str:
    """A key as Prefect wants it."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")

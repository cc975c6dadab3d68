"""Walking DVC's stages as Prefect tasks: one visible task a stage, with its own log and progress."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff
from prefect.utilities.timeout import timeout

from tbd import audits, params
from tbd.errors import StageFailed, TransientFault
from tbd.pipeline import templates
from tbd.pipeline.lock_file import target
from tbd.pipeline.repro import Repro
from tbd.pipeline.workspace_lock import workspace
from tbd.progress import clock

SHARE = re.compile(r"^\s*(\d+)% ")
UNREACHABLE = (httpx.HTTPError, PrefectHTTPStatusError)
ANSWER = 600.0
"""seconds after which nobody is waited for who is told something, or asked what there is: libraries limit each read
alone, and a server that sends its answer byte by byte has no end"""

LONGEST = 1e8
"""seconds that a timer of the system can be set to, and more than three years"""


class _Over(TimeoutError):
    pass


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Raise TransientFault if it takes longer."""
    try:
        with timeout(min(seconds, LONGEST), timeout_exc_type=_Over):
            yield
    except _Over:
        raise TransientFault(f"{what}: not done after {clock(seconds)}.") from None


def slug(text: str) -> str:
    """A key of an artifact, as Prefect wants it."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def transient(task: Any, run: Any, state: State) -> bool:
    """Whether a failed task is worth trying again; what Prefect asks before it retries."""
    return isinstance(state.result(raise_on_failure=False), TransientFault)


def retrying(function: Any) -> Any:
    """The task, with the retries and the back-off of params.yaml for transient faults."""
    p = params.load().watch
    return function.with_options(
        retries=p.retries, retry_delay_seconds=exponential_backoff(p.backoff), retry_condition_fn=transient
    )


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, repro: Repro) -> State:
    """One stage of a `dvc repro`, with its output in this task's log; a line that begins with a share moves a bar."""
    logger = get_run_logger()
    bar: UUID | None = None
    visible = True

    def say(line: str) -> None:
        nonlocal bar, visible
        logger.info(line)
        if visible and (share := SHARE.match(line)):
            try:
                if bar is None:
                    bar = cast(
                        UUID,
                        create_progress_artifact(
                            0.0, key=slug(f"progress-{stage}"), description=f"Progress of `{stage}`"
                        ),
                    )
                update_progress_artifact(bar, float(share.group(1)))
            except UNREACHABLE as error:  # hours of generation do not end because nobody can watch
                visible = False
                logger.warning("no progress bar: the Prefect server does not answer (%s)", type(error).__name__)

    try:
        repro.follow(stage, say)
    except StageFailed as error:
        if error.transient:
            raise TransientFault(str(error)) from None
        # Returned, not raised: the message says it all, and a traceback through DVC's command line would bury it.
        return Failed(message=str(error), data=error)
    return Completed(message="ran")


def walk(*stages: str) -> None:
    """Bring these stages (`calibrate`, `verdict@NAME`) and all they need up to date; each that is stale is a task.

    The `dvc.yaml` of an audit that another version of tbd wrote is written anew. Raises StageFailed, or TransientFault
    if that was all and did not pass.
    """
    if not stages:  # which DVC would take for everything
        return
    logger, run, ran = get_run_logger(), retrying(run_stage), 0
    with workspace(logger.info) as lock:
        used = {*params.load().calibrate.references, *(stage.partition("@")[2] for stage in stages)}
        for name in used.intersection(audits.names()):
            templates.refresh(name)
        with Repro([target(stage) for stage in stages], lock, logger.info) as repro:
            for stage in repro:
                state = run(stage, repro, return_state=True)
                if not state.is_completed():
                    failure = state.result(raise_on_failure=False)  # state.data holds it wrapped
                    known = isinstance(failure, StageFailed | TransientFault)
                    raise failure if known else StageFailed(state.message or f"stage {stage} failed")
                ran += 1
    if not ran:
        logger.info("up to date, with all it needs: %s", ", ".join(stages))

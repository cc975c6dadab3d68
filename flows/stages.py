"""Walking DVC's stages as Prefect tasks: one visible task a stage, with its own log and progress."""

import re
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

from tbd import params, pipeline
from tbd.errors import PassingFault, StageFailed

SHARE = re.compile(r"^\s*(\d+)% ")
UNREACHABLE = (httpx.HTTPError, PrefectHTTPStatusError)


def slug(text: str) -> str:
    """A key of an artifact, as Prefect wants it."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def passing(task: Any, run: Any, state: State) -> bool:
    """Whether a failed task is worth trying again; what Prefect asks before it retries."""
    return isinstance(state.result(raise_on_failure=False), PassingFault)


def retrying(function: Any) -> Any:
    """The task, with the retries and the back-off of params.yaml for passing faults."""
    p = params.load().watch
    return function.with_options(retries=p.retries, retry_delay_seconds=exponential_backoff(p.backoff), retry_condition_fn=passing)


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, repro: pipeline.Repro) -> State:
    """One stage of a `dvc repro`, its output in this task's log; lines that start with a percentage move a progress bar."""
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
                        UUID, create_progress_artifact(0.0, key=slug(f"progress-{stage}"), description=f"Progress of `{stage}`")
                    )
                update_progress_artifact(bar, float(share.group(1)))
            except UNREACHABLE as error:  # hours of generation do not end because nobody can watch
                visible = False
                logger.warning("no progress bar: the Prefect server does not answer (%s)", type(error).__name__)

    try:
        ran = repro.follow(stage, say)
    except StageFailed as error:
        if error.passing:
            raise PassingFault(str(error)) from None
        # Returned, not raised: the message says it all, and a traceback through DVC's command line would bury it.
        return Failed(message=str(error), data=error)
    return Completed(message="ran" if ran else "up to date")


def walk(*targets: str) -> None:
    """Bring the stages `targets` and all they need up to date, each as a task of the flow this is called in.

    Raises StageFailed, or PassingFault if that was all and did not pass.
    """
    if not targets:  # which DVC would take for everything
        return
    run = retrying(run_stage)
    with pipeline.workspace(get_run_logger().info) as lock, pipeline.Repro(targets, lock) as repro:
        for stage in repro:
            state = run(stage, repro, return_state=True)
            if not state.is_completed():
                failure = state.result(raise_on_failure=False)  # state.data holds it wrapped
                known = isinstance(failure, StageFailed | PassingFault)
                raise failure if known else StageFailed(state.message or f"stage {stage} failed")

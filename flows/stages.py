"""Walking DVC's stages as Prefect tasks: one visible task a stage, with its own log and progress."""

import re
from typing import cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tbd import pipeline
from tbd.errors import StageFailed

SHARE = re.compile(r"^\s*(\d+)% ")


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, lock: int) -> State:
    """`dvc repro --single-item STAGE`, its output in this task's log; lines that start with a percentage move a progress bar."""
    logger = get_run_logger()
    bar: UUID | None = None

    def say(line: str) -> None:
        nonlocal bar
        logger.info(line)
        if share := SHARE.match(line):
            if bar is None:
                key = re.sub("[^a-z0-9]+", "-", stage.lower()).strip("-")
                bar = cast(UUID, create_progress_artifact(0.0, key=f"progress-{key}", description=f"Progress of `{stage}`"))
            update_progress_artifact(bar, float(share.group(1)))

    try:
        ran = pipeline.run_stage(stage, lock, say)
    except StageFailed as error:
        # Returned, not raised: the message says it all, and a traceback through DVC's command line would bury it.
        return Failed(message=str(error), data=error)
    return Completed(message="ran" if ran else "up to date")


def walk(*targets: str) -> None:
    """Run every stage that `targets` need, in DVC's order, as tasks of the flow this is called in. Raises StageFailed."""
    logger = get_run_logger()
    with pipeline.workspace(logger.info) as lock:
        for stage in pipeline.order(*targets):
            state = run_stage(stage, lock, return_state=True)
            if not state.is_completed():
                failure = state.result(raise_on_failure=False)  # state.data holds it wrapped
                raise failure if isinstance(failure, StageFailed) else StageFailed(state.message or f"stage {stage} failed")

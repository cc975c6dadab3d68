"""Recording in MLflow as a Prefect task: after the pipeline, from its files, the same state only once."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tbd import tracking


@task(task_run_name="record {what}", cache_policy=NO_CACHE)
def record(what: str) -> str | None:
    """Record the calibration (`what` = "calibration") or the audit of that name; the MLflow run id, or None if MLflow is down.

    A tracking server that is away does not lose the result: `tbd record` does this later from the files.
    """
    logger = get_run_logger()
    try:
        run = tracking.record_calibration() if what == "calibration" else tracking.record_check(what)
    except tracking.TrackingDown as error:
        logger.warning("%s Everything is on disk: `tbd record` records it when MLflow is back.", error)
        return None
    logger.info("recorded in MLflow: %s", run)
    return run

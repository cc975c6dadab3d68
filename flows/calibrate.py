"""The flow `calibrate`: the pipeline up to the detector, recorded in MLflow."""

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.hooks import TOLD
from flows.stages import ANSWER, walk, within
from tbd import params
from tbd.detection.results import read_detector
from tbd.errors import TransientFault
from tbd.pipeline.workspace_lock import workspace
from tbd.report import summary
from tbd.tracking import runs
from tbd.workspace import DETECTOR


@flow(name="calibrate", flow_run_name="calibrate", **TOLD)
def calibrate() -> None:
    """Plant contamination in the reference, choose the detector on it and measure it. Only what is stale runs."""
    with workspace(get_run_logger().info, params.load().watch.patience):
        walk("calibrate")
        record_calibration()
        detector = read_detector(DETECTOR)
    create_markdown_artifact(summary.detector_markdown(detector), key="detector", description="The chosen detector")


@task(task_run_name="record calibration", cache_policy=NO_CACHE)
def record_calibration() -> str | None:
    """Record the detector in MLflow; the run's id, or None if MLflow is down, which does not lose the result."""
    logger = get_run_logger()
    try:
        with within(ANSWER, "MLflow"):
            run = runs.record_calibration()
    except TransientFault as error:
        logger.warning("%s Everything is on disk: `tbd record` records it when MLflow is back.", error)
        return None
    logger.info("recorded in MLflow: %s", run)
    return run


if __name__ == "__main__":
    calibrate()

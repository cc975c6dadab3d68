"""The flow `calibrate`: the pipeline up to the detector, recorded in MLflow."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.record import record
from flows.stages import walk
from tbd import records, summary


@flow(name="calibrate", flow_run_name="calibrate")
def calibrate() -> None:
    """Plant contamination in the reference, choose the detector on it and measure it. Only what is stale runs."""
    walk("calibrate")
    record("calibration")
    detector = records.read_json(records.DETECTOR)
    create_markdown_artifact(summary.detector_markdown(detector), key="detector", description="The chosen detector")


if __name__ == "__main__":
    calibrate()

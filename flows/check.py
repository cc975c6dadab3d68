"""The flow `check`: verdicts on registered audits, recorded in MLflow."""

import re

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.record import record
from flows.stages import walk
from tbd import records, summary
from tbd.judged import AUDITS


@flow(name="check", flow_run_name="check {audits}")
def check(audits: list[str]) -> None:
    """Generate, score and judge the audits of these names (entries of audits/register.yaml). Only what is stale runs."""
    walk(*(f"verdict@{audit}" for audit in audits))
    verdicts = [records.read_json(AUDITS / audit / "verdict.json") for audit in audits]
    for verdict in verdicts:
        record(verdict["audit"])
        key = re.sub("[^a-z0-9]+", "-", verdict["audit"].lower()).strip("-")
        create_markdown_artifact(summary.verdict_markdown(verdict), key=f"verdict-{key}", description=verdict["verdict"])
    create_table_artifact([summary.row(verdict) for verdict in verdicts], key="verdicts", description="Verdicts of this run")


if __name__ == "__main__":
    check(["reference", "base"])

"""The history in MLflow: failures as runs, verdicts as tags of model versions, and a run a workspace whose metrics are
the history.

Like `tbd.tracking.runs`, from finished files alone, and the same state only once.
"""

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tbd.history import FAILED, Outcome, stream
from tbd.mlflow_store import CREDENTIALS, reaching, store
from tbd.records import sha256
from tbd.report import history_page
from tbd.report.text import plain
from tbd.tracking import runs
from tbd.workspace import STATE

HISTORY = "tbd history"
VERSION = re.compile(r"models:/(?P<name>[^/@?:]+)/(?P<version>\d+)")
WORKSPACE_ID = STATE / "workspace-id"
AUDITED = "Audited by tbd: was a benchmark in the data it was distilled on?"
"""how a description begins that is ours to write; another stays its owner's"""
SERIES: dict[str, Callable[[Outcome], float | None]] = {
    "contamination_rate": lambda o: o.contamination_rate.estimate if o.contamination_rate else None,
    "contamination_rate_low": lambda o: o.contamination_rate.low if o.contamination_rate else None,
    "contamination_rate_high": lambda o: o.contamination_rate.high if o.contamination_rate else None,
    "flagged_share": lambda o: (
        o.flagged / o.benchmark.n if o.flagged is not None and o.benchmark and o.benchmark.n else None
    ),
}
"""metrics of the history, each a series a benchmark"""


def record_failure(outcome: Outcome, workspace: Path = Path()) -> str:
    """Record a checkpoint that could not be audited as a FAILED run among the checks; returns its id.

    Raises TrackingDown.
    """
    uri = store(workspace)
    with reaching(uri):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        experiment = runs.open_experiment(client, runs.CHECKS, uri)
        found = client.search_runs([experiment], f"tags.state = '{outcome.id}'", max_results=1)
        run = (
            found[0] if found else client.create_run(experiment, tags=_failure_tags(outcome), run_name=_title(outcome))
        )
        if run.info.status != "FAILED":  # of an old run too: it may have been killed before
            client.set_terminated(run.info.run_id, "FAILED")
        return str(run.info.run_id)


def tag_version(origin: str, outcome: Outcome, run_id: str, workspace: Path = Path()) -> None:
    """Tags on the model version that `origin` is, if it is one and was not deleted meanwhile. Raises TrackingDown."""
    match = VERSION.fullmatch(origin)
    if match is None:
        return
    uri = os.environ.get("MLFLOW_REGISTRY_URI", "").strip() or store(workspace)
    with reaching(uri):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            _tag(MlflowClient(uri, uri), match["name"], match["version"], outcome, run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def record_history(outcomes: Sequence[Outcome], workspace: Path = Path(), alpha: float = stream.ALPHA) -> str:
    """The whole history in one run that grows: metrics by the place in a benchmark's history, page and table; returns
    the run's id.

    What was logged before is not logged again. Raises TrackingDown.
    """
    uri = store(workspace)
    with reaching(uri):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        run = _history_run(client, runs.open_experiment(client, HISTORY, uri), workspace)
        run_id, state = str(run.info.run_id), sha256(json.dumps([outcome.id for outcome in outcomes]))
        if run.data.tags.get("state") != state:
            _log_series(client, run_id, history_page.series(outcomes))
            client.log_text(run_id, history_page.render(outcomes, alpha), "history.html")
            # log_table() would add to the one that is there
            client.log_text(run_id, _history_table(outcomes), "history.json")
            client.set_tag(run_id, "state", state)
        if run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return run_id


def _title(outcome: Outcome) -> str:
    return CREDENTIALS.sub("://", f"{plain(outcome.checkpoint)[:200]}: {outcome.outcome}")


def _failure_tags(outcome: Outcome) -> dict[str, str]:
    on = f" on `{outcome.benchmark.name}`" if outcome.benchmark else ""
    checkpoint, reason = (plain(text).replace("`", "'") for text in (outcome.checkpoint, outcome.reason))
    description = (
        f"**{outcome.outcome}**: `{checkpoint}`{on} could not be audited, so nothing is known of it.\n\n`{reason}`"
    )
    tags = {key: getattr(outcome, key) for key in ("outcome", "reason", "checkpoint", "place", "origin", "fingerprint")}
    tags |= {"benchmark": outcome.benchmark.name if outcome.benchmark else None, "state": outcome.id}
    return runs.texts(tags | {"mlflow.note.content": description, "mlflow.source.name": "tbd"}, 8000)


def _tag(client: Any, name: str, version: str, outcome: Outcome, run_id: str) -> None:
    found = client.get_model_version(name, version)
    benchmark, rate, failed = outcome.benchmark, outcome.contamination_rate, outcome.outcome == FAILED
    known = {
        "verdict": outcome.outcome,
        "contamination_rate": f"{rate.estimate:.2f} [{rate.low:.2f}, {rate.high:.2f}]" if rate else None,
        "audit": outcome.audit,
        "run": run_id,
        "reason": outcome.reason if failed else None,
    }
    if outcome.tested:  # what the stream said of this version stays when it is judged again
        known |= {"alpha_now": f"{outcome.alpha_now:.2g}", "stream_discovery": str(outcome.stream_discovery).lower()}
    wanted = {f"tbd.{key}" + (f".{benchmark.name}" if benchmark else ""): value for key, value in known.items()}
    if not failed:  # the failure as a whole is over
        wanted = dict.fromkeys(("tbd.verdict", "tbd.run", "tbd.reason")) | wanted
    for key, value in runs.texts(wanted, 5000).items():
        client.set_model_version_tag(name, version, key, value)
    for key in found.tags.keys() & {key for key, value in wanted.items() if value is None}:
        client.delete_model_version_tag(name, version, key)
    if not found.description or found.description.startswith(AUDITED):
        client.update_model_version(name, version, _description(client.get_model_version(name, version).tags))


def _description(tags: dict[str, str]) -> str:
    """The verdicts of a model version, which its tags hold, in words; the version's page shows them first."""
    lines = []
    for key, verdict in sorted(tags.items()):
        if key == "tbd.verdict":
            lines.append(f"- **{verdict}**: it could not be audited; `tbd.reason` says why.")
        elif key.startswith("tbd.verdict."):
            benchmark = key.removeprefix("tbd.verdict.")
            rate = tags.get(f"tbd.contamination_rate.{benchmark}")
            found = verdict == "CONTAMINATED" and tags.get(f"tbd.stream_discovery.{benchmark}") == "true"
            line = f"- **{verdict}** on `{benchmark}`" + (f": contamination rate {rate}" if rate else "")
            lines.append(line + (", a discovery of the stream" if found else ""))
    return "\n".join([AUDITED, "", *lines, "", "The runs that the tags `tbd.run.*` name say more."])


def _history_run(client: Any, experiment: str, workspace: Path) -> Any:
    """The workspace's run, by an id that is made once and stays."""
    file = workspace / WORKSPACE_ID
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        fresh = file.with_name(f".{file.name}.{os.getpid()}")
        fresh.write_text(uuid.uuid4().hex)
        with suppress(FileExistsError):  # somebody was faster
            os.link(fresh, file)
        fresh.unlink()
    own = file.read_text().strip()
    found = client.search_runs(
        [experiment], f"tags.workspace = '{own}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    if found:
        return found[0]
    tags = {
        "workspace": own,
        "mlflow.source.name": "tbd",
        "mlflow.note.content": "The audits of one workspace; a step is a checkpoint, the oldest first. Read "
        "`history.html`.",
        "mlflow.loggedArtifacts": json.dumps([{"path": "history.json", "type": "table"}]),  # shown as a table
    }
    return client.create_run(experiment, tags=tags, run_name=workspace.resolve().name)


def _log_series(client: Any, run_id: str, series: dict[str, list[Outcome]]) -> None:
    """A metric a benchmark and kind; the step is the place in the benchmark's history, counted from 1."""
    from mlflow.entities import Metric

    new = []
    for benchmark, outcomes in series.items():
        for key, value_of in SERIES.items():
            key = f"{key}.{benchmark}"
            logged = {metric.step for metric in client.get_metric_history(run_id, key)}
            for step, outcome in enumerate(outcomes, start=1):
                value = value_of(outcome)
                if step not in logged and value is not None and math.isfinite(value):
                    new.append(Metric(key, value, int(outcome.time.timestamp() * 1000), step))
    for start in range(0, len(new), 1000):
        client.log_batch(run_id, metrics=new[start : start + 1000])


def _history_table(outcomes: Sequence[Outcome]) -> str:
    """Newest first, as MLflow's viewer of tables wants it."""
    import pandas as pd

    rows = [
        {
            "time": f"{o.time:%Y-%m-%d %H:%M}",
            "checkpoint": plain(o.checkpoint),
            "benchmark": o.benchmark.name if o.benchmark else None,
            "outcome": o.outcome,
            "contamination_rate": o.contamination_rate.estimate if o.contamination_rate else None,
            "low": o.contamination_rate.low if o.contamination_rate else None,
            "high": o.contamination_rate.high if o.contamination_rate else None,
            "p_value": o.p_value,
            "alpha_now": o.alpha_now,
            "tested": o.tested,
            "stream_discovery": o.stream_discovery,
            "lineage": plain(o.lineage or ""),
            **{key: getattr(o, key) for key in ("flagged", "audit", "same_as", "detector_version", "git_commit")},
            "reason": CREDENTIALS.sub("://", plain(o.reason)),
        }
        for o in reversed(outcomes)
    ]
    return str(pd.DataFrame(rows).to_json(orient="split", index=False))

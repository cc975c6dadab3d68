"""The history in MLflow: failures as runs, verdicts as tags of model versions, one growing run for each workspace.

As in `tbd.tracking.runs`, everything comes from finished files, and a state is recorded once.
"""

import json
import math
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tbd.foreign import secretless
from tbd.history import FAILED, Outcome, stream
from tbd.locks import locked
from tbd.mlflow_store import reaching, store
from tbd.records import atomic, sha256
from tbd.report.summary import escaped
from tbd.report.text import code, plain
from tbd.tracking import runs
from tbd.workspace import STATE

HISTORY = "tbd history"
VERSION = re.compile(r"models:/(?P<name>[^/@?:]+)/(?P<version>\d+)")
WORKSPACE_ID = STATE / "workspace-id"
SERIES = ("contamination_rate", "share_at_least", "flagged_share")
"""metrics of the history: of each there is one for every benchmark, `flagged_share.BENCHMARK`"""
AUDITED = "Audited by tbd: was a benchmark in the data it was distilled on?"
"""how a description begins that tbd wrote; one that begins otherwise is its owner's and stays"""
COLUMNS = (
    "contamination_rate",
    "share_at_least",
    "p_value",
    "alpha_now",
    "tested",
    "stream_discovery",
    "flagged",
    "audit",
    "same_as",
    "detector_version",
    "git_commit",
)
"""of the history's table, as the outcome names them"""


def record_failure(outcome: Outcome, workspace: Path = Path()) -> str:
    """Record a checkpoint that could not be audited, as a FAILED run; returns the run's id. Raises TrackingDown."""
    uri = store(workspace)
    with reaching(uri) as client:
        experiment = runs.open_experiment(client, runs.CHECKS, uri)
        found = client.search_runs([experiment], f"tags.state = '{outcome.id}'", max_results=1)
        name = secretless(f"{plain(outcome.checkpoint)[:200]}: {outcome.outcome}")
        run = found[0] if found else client.create_run(experiment, tags=_failure_tags(outcome), run_name=name)
        if run.info.status != "FAILED":  # of an old run too: a kill may have come before this
            client.set_terminated(run.info.run_id, "FAILED")
        return str(run.info.run_id)


def tag_version(origin: str, outcome: Outcome, run_id: str, workspace: Path = Path()) -> None:
    """Tag the model version that `origin` names, if it names one that still exists. Raises TrackingDown."""
    match = VERSION.fullmatch(origin)
    if match is None:
        return
    uri = os.environ.get("MLFLOW_REGISTRY_URI", "").strip() or store(workspace)
    with reaching(uri, uri) as client:
        from mlflow.exceptions import MlflowException

        try:
            _tag(client, match["name"], match["version"], outcome, run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def record_history(outcomes: Sequence[Outcome], workspace: Path = Path(), alpha: float = stream.ALPHA) -> str:
    """Bring the workspace's run up to date with the history: metrics, page and table. Returns the run's id.

    A metric's step is the checkpoint's place in the history of its benchmark, counted from 1; no step is logged twice.
    Raises TrackingDown.
    """
    uri = store(workspace)
    with reaching(uri) as client:
        run = _history_run(client, runs.open_experiment(client, HISTORY, uri), workspace)
        run_id, state = str(run.info.run_id), sha256(json.dumps([outcome.id for outcome in outcomes]))
        if run.data.tags.get("state") != state:
            from tbd.report import history_page  # only here: it draws, and matplotlib takes most of a second

            _log_series(client, run_id, history_page.series(outcomes))
            client.log_text(run_id, history_page.render(outcomes, alpha), "history.html")
            # not log_table(), which would add to the table that is there
            client.log_text(run_id, _history_table(outcomes), "history.json")
            client.set_tag(run_id, "state", state)
        if run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return run_id


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
    benchmark, failed = outcome.benchmark, outcome.outcome == FAILED
    known = {
        "verdict": outcome.outcome,
        "leaked": outcome.leaked or None,
        "audit": outcome.audit,
        "run": run_id,
        "reason": outcome.reason if failed else None,
    }
    if outcome.tested:  # what the stream said of this version stays when it is judged again
        known |= {"alpha_now": f"{outcome.alpha_now:.2g}", "stream_discovery": str(outcome.stream_discovery).lower()}
    wanted = {f"tbd.{key}" + (f".{benchmark.name}" if benchmark else ""): value for key, value in known.items()}
    if not failed:  # a failure before any benchmark is over: its tags go
        wanted = dict.fromkeys(("tbd.verdict", "tbd.run", "tbd.reason")) | wanted
    for key, value in runs.texts(wanted, 5000).items():
        client.set_model_version_tag(name, version, key, value)
    for key in found.tags.keys() & {key for key, value in wanted.items() if value is None}:
        client.delete_model_version_tag(name, version, key)
    if not found.description or found.description.startswith(AUDITED):
        client.update_model_version(name, version, _description(client.get_model_version(name, version).tags))


def _description(tags: dict[str, str]) -> str:
    """What the tags say, in words: the page of a model version shows its description first."""
    lines = []
    for key, verdict in sorted(tags.items()):
        if key == "tbd.verdict":
            lines.append(f"- **{escaped(verdict)}**: it could not be audited; `tbd.reason` says why.")
        elif key.startswith("tbd.verdict."):
            benchmark = key.removeprefix("tbd.verdict.")
            leaked = tags.get(f"tbd.leaked.{benchmark}")
            found = verdict == "CONTAMINATED" and tags.get(f"tbd.stream_discovery.{benchmark}") == "true"
            line = f"- **{escaped(verdict)}** on {code(benchmark)}" + (
                f": {escaped(leaked)} of it in the data" if leaked else ""
            )
            lines.append(line + (", a discovery of the stream" if found else ""))
    return "\n".join([AUDITED, "", *lines, "", "The runs that the tags `tbd.run.*` name say more."])


def _history_run(client: Any, experiment: str, workspace: Path) -> Any:
    """The run of the workspace, found by an id that is made once and kept in a file."""
    file = workspace / WORKSPACE_ID
    with locked(file.with_name(f"{file.name}.lock")):
        if not file.is_file():
            with atomic(file) as temporary:
                temporary.write_text(uuid.uuid4().hex)
    own = file.read_text().strip()
    found = client.search_runs(
        [experiment], f"tags.workspace = '{own}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    if found:
        return found[0]
    tags = {
        "workspace": own,
        "mlflow.source.name": "tbd",
        "mlflow.note.content": "The audits of one workspace, a step a checkpoint, oldest first. Read `history.html`.",
        "mlflow.loggedArtifacts": json.dumps([{"path": "history.json", "type": "table"}]),  # shown as a table
    }
    return client.create_run(experiment, tags=tags, run_name=workspace.resolve().name)


def _log_series(client: Any, run_id: str, series: dict[str, list[Outcome]]) -> None:
    from mlflow.entities import Metric

    new = []
    for benchmark, outcomes in series.items():
        logged = {
            (key, metric.step) for key in SERIES for metric in client.get_metric_history(run_id, f"{key}.{benchmark}")
        }
        for step, outcome in enumerate(outcomes, start=1):
            n = outcome.benchmark.n if outcome.benchmark else 0
            flagged = outcome.flagged / n if outcome.flagged is not None and n else None
            values = (outcome.contamination_rate, outcome.share_at_least, flagged)
            for key, value in zip(SERIES, values, strict=True):
                if value is not None and math.isfinite(value) and (key, step) not in logged:
                    new.append(Metric(f"{key}.{benchmark}", value, int(outcome.time.timestamp() * 1000), step))
    for start in range(0, len(new), 1000):
        client.log_batch(run_id, metrics=new[start : start + 1000])


def _history_table(outcomes: Sequence[Outcome]) -> str:
    """Newest first, in the form that MLflow shows as a table."""
    import pandas as pd

    rows = [
        {
            "time": f"{o.time:%Y-%m-%d %H:%M}",
            "checkpoint": plain(o.checkpoint),
            "benchmark": o.benchmark.name if o.benchmark else None,
            "outcome": o.outcome,
            **{key: getattr(o, key) for key in COLUMNS},
            "lineage": plain(o.lineage or ""),
            "reason": secretless(plain(o.reason)),
        }
        for o in reversed(outcomes)
    ]
    return str(pd.DataFrame(rows).to_json(orient="split", index=False))

"""`tbd serve`: the flows as deployments, with the schedules of params.yaml, on a Prefect server it finds or starts."""

import os
import shlex
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows import own_server
from tbd import audits, environment, params, scores, sources
from tbd.commands import checks
from tbd.errors import InputError
from tbd.history import webhook
from tbd.mlflow_store import store
from tbd.pipeline import workspace_lock

EVENT = "tbd.checkpoint.written"
"""the Prefect event that makes `watch` look at what its payload names as `source`"""


def check() -> params.Params:
    """Check everything that can be checked before anything starts. Raises InputError."""
    p = params.load()
    scores.expand(p.score.methods)
    store()
    webhook.check()
    environment.prefect()
    for address in p.watch.sources:
        sources.source(address)
    checks.ready_for(p.watch.policy)
    checks.ready(p.calibrate.references)
    audits.load()
    return p


def serve(name: str, port: int, pool: str | None) -> None:
    """Serve the deployments until interrupted; or, if a work pool is named, hand them to it and return.

    Raises InputError, or StageFailed if the server does not start.
    """
    p = check()
    if pool is not None and not os.environ.get("PREFECT_API_URL"):
        raise InputError(f"--pool {pool}: on which server? Set PREFECT_API_URL.")
    own = not os.environ.get("PREFECT_API_URL")
    with own_server.running(port):
        import prefect

        if pool is not None:
            _there(pool)
        made = _deployments(name, p, pool is not None)
        if pool is None:
            _tidy()
            how = f" (it asks for the text in {own_server.AUTH})" if own else ""
            print(f"Prefect UI: {os.environ['PREFECT_API_URL'].removesuffix('/api')}{how}")
            threading.Thread(target=_keep_time, daemon=True).start()
            print("Stop with Ctrl-C; what was under way goes on at the next start.", flush=True)
            prefect.serve(*made, print_starting_message=False)
        else:
            prefect.deploy(
                *made, work_pool_name=pool, build=False, print_next_steps_message=False, ignore_warnings=True
            )
            print(f"{len(made)} deployments in work pool {pool!r}. Run them on a machine that has this folder:")
            print(f"  prefect worker start --pool {pool}")


def _deployments(name: str, p: params.Params, in_pool: bool) -> list[Any]:
    """Every flow once, and `watch` once more for events.

    Without concurrency limits: a server that was killed has forgotten who holds them. The workspace's own lock sees to
    it that one audit runs at a time.
    """
    from prefect.events import DeploymentEventTrigger

    from flows.calibrate import calibrate
    from flows.check import check as check_flow
    from flows.watch import watch

    trigger = DeploymentEventTrigger(
        name=f"{name}: a checkpoint was written",
        expect={EVENT},
        parameters={"addresses": ["{{ event.payload.source }}"], "wait": True},
    )
    wanted: list[tuple[Any, str, dict[str, Any]]] = [
        (watch, name, _schedule(p.serve.watch)),
        (watch, f"{name}-on-event", {"triggers": [trigger]}),
        (check_flow, name, {}),
        (calibrate, name, _schedule(p.serve.calibrate)),
    ]
    return [
        (_from_here(flow) if in_pool else flow).to_deployment(
            title, tags=["tbd", _tag()], description=flow.description, **how
        )
        for flow, title, how in wanted
    ]


def _there(pool: str) -> None:
    """Raise InputError if the server has no such work pool."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            raise InputError(
                f"--pool {pool}: no such work pool at {os.environ['PREFECT_API_URL']}. "
                f"Make it: prefect work-pool create {shlex.quote(pool)} --type process"
            ) from None


def _from_here(flow: Any) -> Any:
    """The flow as a worker gets it: from this folder, which the worker's machine has at the same path."""
    module = flow.fn.__module__.replace(".", "/")
    return flow.from_source(source=str(Path.cwd()), entrypoint=f"{module}.py:{flow.fn.__name__}")


def _tag() -> str:
    """The tag of this workspace's runs, on a server that other workspaces may use too."""
    return f"tbd:{Path.cwd()}"


def _schedule(when: float | str | None) -> dict[str, Any]:
    return {"cron" if isinstance(when, str) else "interval": when}


def _tidy() -> None:
    """End the runs that a killed `tbd serve` left on the server: those that nobody works on, and those it missed.

    Missed looks are not made up for: the next one finds everything.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Cancelled, Crashed

    ours = FlowRunFilter.model_validate(
        {
            "tags": {"all_": [_tag()]},
            "state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}},
            "expected_start_time": {"before_": datetime.now(UTC)},
        }
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=ours, limit=200):
            if run.state and (run.state.is_running() or run.state.is_pending()):
                if workspace_lock.idle():
                    client.set_flow_run_state(
                        run.id, Crashed(message="tbd serve was killed during this run"), force=True
                    )
            elif run.auto_scheduled:
                client.set_flow_run_state(run.id, Cancelled(message="tbd serve was not running then"), force=True)


def _keep_time() -> None:
    """Where the clock is put back, the runs that are scheduled already lie too far ahead: have them scheduled anew."""
    ahead = time.time() - time.monotonic()
    while True:
        time.sleep(10)
        before, ahead = ahead, time.time() - time.monotonic()
        if ahead < before - 60:
            print("the clock was put back: scheduling anew", flush=True)
            try:
                _reschedule()
            except Exception as error:  # its server is away: tried again
                print(f"not scheduled anew yet ({type(error).__name__})", flush=True)
                ahead = before


def _reschedule() -> None:
    """Take this workspace's scheduled runs off the server, which then schedules others, from now on."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    scheduled = {"tags": {"all_": [_tag()]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(scheduled), limit=200):
            if run.auto_scheduled:
                client.delete_flow_run(run.id)

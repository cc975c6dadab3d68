"""A scheduled flow that fails or works again goes into the history and is told like any other outcome."""

from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from flows.deliver import add, deliver
from flows.stages import UNREACHABLE
from tbd.history import FAILED, History
from tbd.watch.outcomes import other


def failed(flow: Flow[Any, Any], run: FlowRun, state: State) -> None:
    """`on_failure`, of a deployment: who runs a command by hand sees how it ends.

    That Prefect's own server was away, or that the run was killed, says nothing of the flow: the next run goes on where
    it stopped.
    """
    if run.deployment_id is not None and not isinstance(state.result(raise_on_failure=False), UNREACHABLE):
        add(other("flow", _subject(flow, run), state.message or state.name or "failed"))
        deliver()


def works(flow: Flow[Any, Any], run: FlowRun, state: State) -> None:
    """`on_completion`, of a deployment."""
    name = _subject(flow, run)
    last = History().last(f"flow {name}", None)
    if run.deployment_id is not None and last is not None and last.outcome == FAILED:
        add(other("flow", name, None))
        deliver()


def _subject(flow: Flow[Any, Any], run: FlowRun) -> str:
    """What the run is a run of: of `check` each checkpoint and benchmark is one, of the others there is one."""
    return run.name if flow.name == "check" else flow.name


TOLD: dict[str, Any] = {"on_failure": [failed], "on_completion": [works]}

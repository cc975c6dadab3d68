"""Running a flow from a command: a temporary server starts audibly, and a refusal by Prefect is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tbd import environment
from tbd.errors import InputError, TransientFault
from tbd.progress import Progress


def run(flow: Any, *arguments: Any) -> None:
    """Run a flow in this process; its failure is raised as what it was."""
    with refusals():
        _start_server()
        state = flow(*arguments, return_state=True)
        if not state.is_completed():
            raise state.result(raise_on_failure=False)


def _start_server() -> None:
    """The temporary server that a flow would start for itself, in silence, where no other is named."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url is None and settings.server.ephemeral.enabled:
        from prefect.server.api.server import SubprocessASGIServer

        with Progress("Prefect's temporary server"):
            SubprocessASGIServer().start()  # the one that flows of this process then find


@contextmanager
def refusals() -> Iterator[None]:
    """What Prefect's server does not take, in a line. Raises InputError, TransientFault."""
    where = environment.prefect()
    try:
        yield
    except Exception as error:
        # not before: Prefect takes its settings from the environment when it is imported
        from httpx import TransportError
        from prefect.exceptions import PrefectHTTPStatusError

        if isinstance(error, PrefectHTTPStatusError):
            code = error.response.status_code
            said = f"Prefect at {where} answers {code}"
            if code >= 500 or code == 429:
                raise TransientFault(f"{said}.") from None
            raise InputError(f"{said}. Set PREFECT_API_AUTH_STRING, or mend PREFECT_API_URL.") from None
        lost = isinstance(error, RuntimeError) and "Failed to reach API" in str(error)
        if lost or isinstance(error, TransportError):
            raise TransientFault(f"Prefect at {where} does not answer.") from None
        raise

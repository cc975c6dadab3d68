"""Running a flow from a command: a temporary server starts audibly, and a refusal by Prefect is one line."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from flows import own_server
from tbd import ending, environment
from tbd.errors import InputError, TransientFault
from tbd.progress import Progress

LOST = re.compile("Failed to reach API|attempting to connect to ephemeral Prefect API")
"""what Prefect says of a server that does not answer or does not start"""
NOBODY = "https://nobody.invalid"
"""the origin whose pages may read what a temporary server says: it has no pages"""


def run(flow: Any, *arguments: Any) -> None:
    """Run a flow in this process; its failure is raised as what it was."""
    with refusals():
        _start_server()
        state = flow(*arguments, return_state=True)
        if not state.is_completed():
            raise state.result(raise_on_failure=False)


def _start_server() -> None:
    """The temporary server that a flow would start for itself, in silence, where no other is named."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url is None and settings.server.ephemeral.enabled:
        from prefect.server.api.server import SubprocessASGIServer

        if settings.api.auth_string is None and settings.server.api.auth_string is None:
            auth = own_server.password()
            os.environ |= own_server.closed(auth, NOBODY) | {"PREFECT_API_AUTH_STRING": auth}
            refresh_global_settings_context()
        with Progress("Prefect's temporary server"), ending.tied():
            server = SubprocessASGIServer()  # the one that flows of this process then find
            server.start()
        assert server.server_process is not None and server.port is not None
        if not own_server.listens(psutil.Process(server.server_process.pid), server.port):
            raise TransientFault(f"port {server.port} is taken by a server that was not started here.")


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
        lost = isinstance(error, RuntimeError) and LOST.search(str(error))
        if lost or isinstance(error, TransportError):
            raise TransientFault(f"Prefect at {where} does not answer.") from None
        raise

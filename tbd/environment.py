"""Settings of other tools in the environment: no analytics, no progress bars in logs, enough time to start."""

import os
from urllib.parse import urlsplit

from tbd.errors import InputError

DEFAULTS = {
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""say how the threads of a matrix product wait for each other. Unless the user sets one, they sleep: if they spin,
generation is nine times slower as soon as another process uses one of the cores"""


def prepare() -> None:
    """Set what the user has not set. To be called before the tools are imported: that is when they look."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def prefect() -> str:
    """Host and port of the Prefect server that PREFECT_API_URL names; empty if it is not set.

    Raises InputError if it is not the address of an API or has credentials in it.
    """
    said = os.environ.get("PREFECT_API_URL", "")
    try:
        address = urlsplit(said)
    except ValueError:
        address = urlsplit("")
    if said and not (address.scheme in ("http", "https") and address.netloc):
        raise InputError("PREFECT_API_URL: not the address of a Prefect API, as http://127.0.0.1:4200/api is. Mend it.")
    if address.username or address.password:
        raise InputError(
            "PREFECT_API_URL: holds credentials, which Prefect would log. Put them into PREFECT_API_AUTH_STRING."
        )
    return address.netloc

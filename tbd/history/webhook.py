"""Telling a webhook, as https://www.standardwebhooks.com describes: a JSON body, and a signature where a secret is set.

The address and the secret come from the environment alone (TBD_WEBHOOK_URL, TBD_WEBHOOK_SECRET); an address can itself
be a secret, so messages and errors name only its host.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

from tbd.errors import InputError, TransientFault
from tbd.foreign import chat
from tbd.history import Outcome, event, stream

TIMEOUT = 10.0
PREFIX = "whsec_"


def body(outcome: Outcome) -> dict[str, Any]:
    """What is sent: `type`, `timestamp`, `data`, and one line of `text`, which chat services show.

    `data` is the outcome's line in the history, without `version` and `time`; docs/checks.md describes it.
    """
    data = outcome.model_dump(mode="json", exclude_none=True, exclude={"version"})
    return {
        "type": f"tbd.{event(outcome)}",
        "timestamp": data.pop("time"),
        "text": text(outcome),
        "data": data,
    }


def text(outcome: Outcome) -> str:
    """One line for people.

    `CONTAMINATED: model-7 on aime: at least 21%, estimate 38%, p = 2.3e-08, a discovery of the stream (level 5.4e-04).`
    """
    what = f"{outcome.outcome}: {outcome.checkpoint}" + (f" on {outcome.benchmark.name}" if outcome.benchmark else "")
    if outcome.leaked and outcome.p_value is not None:
        what += f": {outcome.leaked}, p = {outcome.p_value:.2g}"
        what += f", {found}" if (found := stream.said(outcome)) else ""
    else:
        what += f": {outcome.reason.rstrip('.')}"
    recovered = ["It had failed before."] if outcome.recovered else []
    return chat(" ".join([f"{what}.", *recovered, *outcome.warnings]))


def sign(secret: str, message_id: str, timestamp: int, payload: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 of `id.timestamp.payload`.

    `secret` is text, or `whsec_` and base64 of the key.
    """
    try:
        coded = secret.startswith(PREFIX)
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True) if coded else secret.encode()
    except ValueError:
        raise InputError(
            f"TBD_WEBHOOK_SECRET: no text in UTF-8, or no base64 behind {PREFIX}. Correct it, or leave {PREFIX} out."
        ) from None
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + payload, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def check() -> None:
    """Raise InputError if TBD_WEBHOOK_URL or TBD_WEBHOOK_SECRET cannot be used as it is set."""
    address = os.environ.get("TBD_WEBHOOK_URL", "")
    try:
        parts = urlsplit(address)
        usable = not address or (parts.scheme in ("http", "https") and bool(parts.hostname))
        (parts.hostname or "").encode("idna")  # ValueError for what no host can be called
    except ValueError:
        usable = False
    if not usable:
        raise InputError("TBD_WEBHOOK_URL: not an http or https address.")
    sign(os.environ.get("TBD_WEBHOOK_SECRET", ""), "", 0, b"")


def send(outcome: Outcome) -> None:
    """POST the outcome. The same outcome has the same `webhook-id`, so that a receiver can drop one it was sent twice.

    Raises:
        TransientFault: no answer, 5xx, 408 or 429.
        InputError: any other answer than 2xx, or no usable address.
    """
    import requests

    check()
    address = os.environ.get("TBD_WEBHOOK_URL", "")
    host = urlsplit(address).hostname
    if not host:
        raise InputError("TBD_WEBHOOK_URL: not set.")
    payload = json.dumps(body(outcome), ensure_ascii=False).encode()
    stamp = int(time.time())
    headers = {"content-type": "application/json", "webhook-id": outcome.id, "webhook-timestamp": str(stamp)}
    if secret := os.environ.get("TBD_WEBHOOK_SECRET"):
        headers["webhook-signature"] = sign(secret, outcome.id, stamp, payload)
    try:
        # a stream: what stands in the answer is never read, however long it is
        with requests.post(
            address, data=payload, headers=headers, timeout=TIMEOUT, allow_redirects=False, stream=True
        ) as answer:
            code = answer.status_code
    except requests.RequestException as error:
        raise TransientFault(f"webhook at {host}: no answer ({type(error).__name__}).") from None
    if code >= 500 or code in (408, 429):
        raise TransientFault(f"webhook at {host}: answered {code}.")
    if not 200 <= code < 300:
        raise InputError(f"webhook at {host}: answered {code}. Correct TBD_WEBHOOK_URL.")

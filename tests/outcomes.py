"""Outcomes as a history has them, for those tests that read one."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tbd.history import FAILED, Outcome

START = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)


def verdict(number: int, said: str = "NO EVIDENCE", on: str = "maths", share: float = 0.0, **changes: Any) -> Outcome:
    """The verdict on `model-NUMBER`, as many hours after START."""
    name = f"model-{number}"
    about: dict[str, Any] = {
        "id": f"{number:032x}",
        "time": START + timedelta(hours=number),
        "outcome": said,
        "reason": f"Reason {number}.",
        "checkpoint": name,
        "place": f"incoming/{name}",
        "origin": f"incoming/{name}",
        "version": "v",
        "fingerprint": "c" * 64,
        "benchmark": {"name": on, "md5": "b" * 32, "n": 160},
        "unseen": {"name": "unseen", "md5": "d" * 32, "n": 120},
        "audit": f"{name}-{on}",
        "flagged": 8,
        "p_value": 0.25,
        "mde80": 0.16,
        "reference": "reference",
        "same_base": True,
        "fpr": 0.05,
        "confidence": 0.95,
        "contamination_rate": share,
        "members_at_least": round(160 * max(0.0, share - 0.1)),
        "share_at_least": max(0.0, share - 0.1),
        "detector_version": "0123456789ab",
        "tbd_version": "0.2.0",
        "git_commit": "e" * 40,
        "git_dirty": False,
    }
    return Outcome.model_validate(about | changes)


def failure(number: int, **changes: Any) -> Outcome:
    """`model-NUMBER` could not be read."""
    unknown = (
        "fingerprint", "benchmark", "unseen", "audit", "flagged", "contamination_rate", "p_value", "mde80",
        "members_at_least", "share_at_least", "reference", "same_base", "detector_version", "git_commit",
    )  # fmt: skip
    reason = "model.safetensors: cut off. Copy it again."
    return verdict(number, FAILED, **(dict.fromkeys(unknown) | {"reason": reason} | changes))


def again(number: int, of: Outcome, **changes: Any) -> Outcome:
    """`model-NUMBER` has the weights of an outcome before."""
    own = verdict(number)
    keys = ("id", "time", "checkpoint", "place", "origin")
    return of.model_copy(update={key: getattr(own, key) for key in keys} | {"same_as": of.audit} | changes)

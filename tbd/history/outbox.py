"""What is to be told to whom, and what has been: the same outcome goes to each place until it has arrived there.

Local to a workspace (`.tbd/outbox.jsonl`): a clone does not tell its past again. A delivery is due before its outcome is in the
history and done after it has arrived, so a kill at any moment repeats at most the delivery it interrupted.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tbd.history import Outcome, event
from tbd.jsonlines import JsonLines
from tbd.locks import locked
from tbd.params import Notify

FILE = Path(".tbd/outbox.jsonl")
LOCK = Path(".tbd/outbox.lock")
DELIVERING = Path(".tbd/delivering.lock")


def recipients(outcome: Outcome, notify: Notify) -> list[str]:
    """Who is to be told, as things are set up now: a webhook set up later does not get the past."""
    told = [*(["webhook"] if os.environ.get("TBD_WEBHOOK_URL") else []), *notify.blocks] if event(outcome) in notify.events else []
    return [*(["mlflow"] if outcome.what == "checkpoint" else []), "prefect", *told]


def due(outcome: str, to: Iterable[str]) -> None:
    """Note that the outcome of this id is to be told."""
    with _held() as lines:
        waiting = _pending(lines)
        for one in to:
            if (outcome, one) not in waiting:
                lines.append({"of": outcome, "to": one})


def done(outcome: str, to: str) -> None:
    """Note that it has arrived."""
    with _held() as lines:
        lines.append({"of": outcome, "to": to, "done": True})


def pending() -> list[tuple[str, str]]:
    """(id of the outcome, where to), oldest first."""
    with _held() as lines:
        return list(_pending(lines))


def _pending(lines: JsonLines) -> dict[tuple[str, str], None]:
    waiting: dict[tuple[str, str], None] = {}
    for line in lines.values:
        if line.get("done"):
            waiting.pop((line["of"], line["to"]), None)
        else:
            waiting[line["of"], line["to"]] = None
    return waiting


@contextmanager
def _held() -> Iterator[JsonLines]:
    with locked(LOCK):
        yield JsonLines(FILE)

"""Which outcomes still have to be delivered to whom. Each delivery is tried again until it has arrived.

Local to a workspace (`.tbd/outbox.jsonl`): a clone does not send old outcomes again. A delivery is noted as due before
its outcome is in the history and as done after it has arrived, so a kill at any moment repeats at most the delivery it
interrupted.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tbd.errors import InputError
from tbd.history import Outcome, event
from tbd.jsonlines import JsonLines
from tbd.locks import locked
from tbd.params import Notify
from tbd.workspace import STATE

FILE = STATE / "outbox.jsonl"
LOCK = STATE / "outbox.lock"
DELIVERING = STATE / "delivering.lock"


def recipients(outcome: Outcome, notify: Notify) -> list[str]:
    """Who gets an outcome, by the settings of now: a webhook that is set up later does not get old outcomes."""
    told = (
        [*(["webhook"] if os.environ.get("TBD_WEBHOOK_URL") else []), *notify.blocks]
        if event(outcome) in notify.events
        else []
    )
    return [*(["mlflow"] if outcome.what == "checkpoint" else []), "prefect", *told]


def due(outcome: str, to: Iterable[str]) -> None:
    """Note that the outcome with this id has to be delivered to these."""
    with _held() as lines:
        waiting = _pending(lines)
        for one in to:
            if (outcome, one) not in waiting:
                lines.append({"of": outcome, "to": one})


def done(outcome: str, to: str) -> None:
    """Note that the outcome with this id has arrived there."""
    with _held() as lines:
        lines.append({"of": outcome, "to": to, "done": True})


def pending() -> list[tuple[str, str]]:
    """What is not delivered yet: (id of the outcome, recipient), oldest first."""
    with _held() as lines:
        return list(_pending(lines))


def _pending(lines: JsonLines) -> dict[tuple[str, str], None]:
    waiting: dict[tuple[str, str], None] = {}
    for line in lines.values:
        if not {"of", "to"} <= line.keys():
            raise InputError(f"{FILE}: a line without `of` or `to`. Restore the file.")
        if line.get("done"):
            waiting.pop((line["of"], line["to"]), None)
        else:
            waiting[line["of"], line["to"]] = None
    return waiting


@contextmanager
def _held() -> Iterator[JsonLines]:
    with locked(LOCK):
        yield JsonLines(FILE)

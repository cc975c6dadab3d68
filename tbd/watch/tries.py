"""How often a transient fault has stopped the same version: tried after longer and longer pauses, at last no more."""

import json
import time

from tbd import records
from tbd.history import FAILED, Outcome
from tbd.params import Params
from tbd.progress import clock
from tbd.sources import Found
from tbd.workspace import STATE

FILE = STATE / "tries.json"
LONGEST = 3600.0
"""seconds between two looks that try"""

Tries = tuple[str, int, float]
"""version, how often, when last (seconds since 1970)"""


def pause(found: Found, benchmark: str | None, last: Outcome | None, p: Params, retry: bool) -> str | None:
    """Why this look does not try again what a transient fault stopped; None if it does.

    `last`: the last outcome there. `retry`: somebody asked.
    """
    if retry or last is None or last.outcome != FAILED or not last.transient:
        return None
    version, count, when = _known().get(_key(found, benchmark), ("", 0, 0.0))
    whole = min(LONGEST, p.watch.backoff * 2.0 ** min(p.watch.retries + count - 1, 60))
    left = when + whole - time.time()
    if version != found.version or not 0 < left <= whole:  # more is left only where the clock was put back
        return None
    return f"{last.reason} Tried again in {clock(left)}, or now with --retry."


def count(found: Found, benchmark: str | None, p: Params) -> int:
    """Note that a transient fault has stopped it at this look too; how often in all. Begins anew after the last."""
    known, key = _known(), _key(found, benchmark)
    version, before, _ = known.pop(key, ("", 0, 0.0))
    times = before + 1 if version == found.version else 1
    if times < p.watch.tries:
        known[key] = (found.version, times, time.time())
    records.write_json(FILE, known)
    return times


def _known() -> dict[str, Tries]:
    known: dict[str, Tries] = records.known(FILE, dict[str, Tries])
    return known


def _key(found: Found, benchmark: str | None) -> str:
    return json.dumps([found.place, benchmark])

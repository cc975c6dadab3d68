"""Says every few seconds how far long work is.

In a terminal it is one line that is rewritten, elsewhere (in a log, in Prefect) a new line each time. The time left is
the work left of each kind, at the speed of that kind so far: to read a token of a prompt takes less time than to write
one of an answer.
"""

import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tbd.errors import TRANSIENT
from tbd.foreign import CONTROL, Terminal

EVERY = 5.0
"""seconds between two lines of a log"""
STUCK = 6 * 3600
"""seconds without any progress after which work counts as stuck; to read a checkpoint of a terabyte takes less"""


@dataclass
class Work:
    """Work of one kind, in tokens."""

    planned: int = 0
    done: int = 0
    spared: int = 0
    """of `planned`, not needed after all"""
    seconds: float = 0.0
    """that `done` took"""

    def left(self) -> float:
        """Tokens still expected, if the share of the plan that is needed stays what it was so far."""
        over = self.done + self.spared
        return (self.planned - over) * (self.done / over if over else 1.0)


class Progress:
    """A context in which a line is printed every `every` seconds. What takes less prints none."""

    def __init__(self, name: str, every: float = EVERY) -> None:
        self.name, self.every = name, every
        self.patience: float | None = None
        """seconds without progress after which the process gives up; None: it waits for others, which may take long"""
        self.doing = "under way"
        """the present step, in words"""
        self.kinds: dict[str, Work] = {}
        """by what is done to the tokens: read, written, trained on"""
        self._start = self._mark = time.monotonic()
        self._over = threading.Event()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            # the line itself needs control characters, what is printed meanwhile still has none
            terminal = sys.stdout.stream if isinstance(sys.stdout, Terminal) else sys.stdout
            self._live = Live(
                get_renderable=lambda: Text(CONTROL.sub("\ufffd", self.line())),
                refresh_per_second=2,
                console=Console(file=terminal),
            )
            self._live.start()
            sys.stdout = Terminal(sys.stdout)
        threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._over.set()
        if self._live is not None:
            self._live.transient = self.left() is None  # how far it was says nothing once it is over
            self._live.stop()
        elif error is None and self.left() is not None:
            print(self.line(), flush=True)

    def _tell(self) -> None:
        while not self._over.wait(self.every):
            if self._live is None:
                print(self.line(), flush=True)
            if self.patience is not None and time.monotonic() - self._mark > self.patience:
                print(
                    f"error: {self.name}: {self.doing}: no progress for {clock(self.patience)}, given up. What is "
                    "finished is kept, and the same command goes on.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(TRANSIENT)  # nobody knows what it hangs in

    def plan(self, kind: str, tokens: int) -> None:
        """Add tokens of this kind to the plan, or take some away if `tokens` is below 0."""
        self.kinds.setdefault(kind, Work()).planned += tokens

    def advance(self, kind: str, tokens: int) -> None:
        """Tokens of this kind are done; they took the time since the last call."""
        now = time.monotonic()
        work = self.kinds.setdefault(kind, Work())
        work.done += tokens
        work.seconds += now - self._mark
        self._mark = now

    def spare(self, kind: str, tokens: int) -> None:
        """Tokens of the plan are not needed, because an answer has ended. The rest is expected to spare as many."""
        self.kinds.setdefault(kind, Work()).spared += tokens

    def begin(self, doing: str) -> None:
        """Name the step that begins. The time since the last call counts for no work: a model was loaded, say."""
        self.doing, self._mark = doing, time.monotonic()

    def left(self) -> float | None:
        """Seconds left; None before any work is done. A kind that has not begun counts with the speed of all others."""
        seconds, done = (sum(getattr(work, name) for work in self.kinds.values()) for name in ("seconds", "done"))
        if not done:
            return None
        return sum(
            work.left() * (work.seconds / work.done if work.done else seconds / done) for work in self.kinds.values()
        )

    def line(self) -> str:
        """How much of the time is over, the step, the tokens, the time left."""
        left = self.left()
        if left is None:
            return f"{self.name}: {self.doing}, {clock(time.monotonic() - self._start)} so far"
        spent = sum(work.seconds for work in self.kinds.values())
        parts = [_part(kind, work, spent) for kind, work in self.kinds.items() if work.done]
        return (
            f"{spent / max(spent + left, 1e-9):4.0%} {self.name}: {self.doing}; {'; '.join(parts)}; {clock(left)} left"
        )


def _part(kind: str, work: Work, spent: float) -> str:
    """Without a speed where an engine tells of this kind only when another is done, and nobody knows what it took."""
    speed = f" at {work.done / work.seconds:,.0f}/s" if work.seconds > spent / 1000 else ""
    return f"{work.done:,} of {work.planned - work.spared:,} tokens {kind}{speed}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(42.4), clock(723), clock(3765)
    ('0:42', '12:03', '1:02:45')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

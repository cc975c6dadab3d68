"""The ways tbd stops on purpose; anything else is a bug and keeps its traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

TRANSIENT = 75
"""exit code of a stage that a transient fault stopped (EX_TEMPFAIL of sysexits.h)"""


class InputError(Exception):
    """The user's input is wrong. One line: what, where, what to do. The command line exits with 2."""


class Incomplete(InputError):
    """A checkpoint that lacks a part, as one that is still being copied does."""


class TransientFault(Exception):
    """Something that heals by itself: the network, a server's 5xx, a busy device. Worth trying again. Exit code 3."""


class StageFailed(Exception):
    """A pipeline stage did not finish; the message names it and carries its last line.

    Exit code 3, or 2 for bad input.
    """

    def __init__(self, message: str, *, bad_input: bool = False, transient: bool = False) -> None:
        super().__init__(message)
        self.bad_input = bad_input
        self.transient = transient
        """a `TransientFault` of the stage: worth trying again"""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, at most 200 characters, or the error's name if it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> InputError:
    """An error for a name that is not one of `known`, with the nearest one suggested."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    place = f"{where}: " if where else ""
    return InputError(f"{place}unknown {kind} {name!r}.{hint} Available: {', '.join(known)}.")

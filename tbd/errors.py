"""The ways tbd stops on purpose; anything else is a bug and keeps its traceback."""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

TRANSIENT = 75
"""exit code of a stage that a transient fault stopped (EX_TEMPFAIL of sysexits.h)"""


FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EBUSY),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
    errno.EAGAIN,
)
"""errors of the operating system that are the machine's: its disks, its memory, its network"""
FAULT = re.compile(
    "|".join(
        [
            *(re.escape(os.strerror(code)) for code in FAULTS),
            r"\b(CUDA|HIP|MPS|NVML|NCCL|cuDNN|CUDNN|cuBLAS|CUBLAS)[\w ]* (error|out of memory)",
            r"No (CUDA|HIP) GPUs are available|Found no NVIDIA driver",
            "can't start new thread|can't allocate memory|unable to allocate|std::bad_alloc",
            "database or disk is full|disk I/O error|No possible cache link types",
        ]
    ),
    re.IGNORECASE,
)
"""how libraries write that the machine fails, which have exceptions of their own"""


NOWHERE = "No usable temporary directory"
"""how Python says that every disk for temporary files is full: as a file that is not there"""


class InputError(Exception):
    """The user's input is wrong. One line: what, where, what to do. The command line exits with 2."""


class Incomplete(InputError):
    """A checkpoint that lacks a part, as one that is still being copied does."""


class Lacking(InputError):
    """What is missing is this machine's: a package, a model that is named. Once it is there, all is well."""


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


def is_fault(error: BaseException) -> bool:
    """Whether a failing machine is behind an error (a full disk, I/O, memory, GPU): worth trying again.

    What the error was raised from counts as well, for a reader of files blames the file. What an InputError or a
    StageFailed says does not, nor what is beside the number of an OSError: names that others chose are in it.
    """
    return any(map(_is_fault, chain(error)))


def _is_fault(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FAULTS or (error.strerror or "").startswith(NOWHERE)
    if isinstance(error, InputError | StageFailed):
        return isinstance(error, StageFailed) and error.transient
    return isinstance(error, TransientFault | MemoryError) or FAULT.search(str(error)) is not None


def fault(error: BaseException) -> TransientFault:
    """The transient fault behind an error of which `is_fault` is true, in one line."""
    if isinstance(error, TransientFault):
        return error
    return TransientFault(f"this machine fails ({type(error).__name__}: {first_line(error)}). Nothing done is lost.")


def too_long(error: BaseException) -> InputError | None:
    """What to say of a name that is longer than a file's may be; None: that is not what went wrong."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return InputError(f"{error.filename}: longer than the name of any file. Correct or shorten it.")
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


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

"""Where an answer goes: files for a pull request and for CI, and standard output for it alone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from tbd.errors import InputError
from tbd.foreign import Terminal
from tbd.gates import Answer
from tbd.records import atomic
from tbd.report import answer as written
from tbd.report import summary


def ready(summary: str | None, junit: str | None) -> tuple[Path | None, Path | None]:
    """The files to write, without what an earlier run left there: that must not be read as this one's.

    Raises InputError, before hours of generation, if one cannot be written.
    """
    files = [Path(name).resolve() if name is not None else None for name in (summary, junit)]
    if summary is not None and files[0] == files[1]:
        raise InputError(f"--summary and --junit are both {summary}: name two files.")
    for option, file in zip(("--summary", "--junit"), files, strict=True):
        if file is None:
            continue
        if file.exists() and not file.is_file():  # a folder, or a device, which must not be replaced
            raise InputError(f"{option} {file}: is not a file. Name one.")
        try:
            with atomic(file) as empty:
                empty.touch()
            file.unlink()
        except OSError as error:
            raise InputError(f"{option} {file}: cannot be written ({error.strerror}). Name another.") from None
    return files[0], files[1]


def write(answer: Answer, files: tuple[Path | None, Path | None]) -> None:
    """Each file whole or not at all."""
    for file, make in zip(files, (_summary, written.junit), strict=True):
        if file is not None:
            with atomic(file) as temporary:
                temporary.write_bytes(make(answer))


def _summary(answer: Answer) -> bytes:
    return summary.answer(answer).encode()


@contextmanager
def aside(wanted: bool) -> Iterator[None]:
    """Whatever is printed meanwhile, by whichever process, goes to standard error: the answer has the other alone."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(Terminal(sys.stderr)):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)

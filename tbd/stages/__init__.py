"""One thin module a DVC stage: read its parameters and inputs, call the library, write the outputs whole."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tbd import ending, environment, locks, params
from tbd.errors import TRANSIENT, InputError, StageFailed, TransientFault
from tbd.pipeline.markers import marked
from tbd.progress import Progress


def run(main: Callable[..., Any], device: bool = False) -> None:
    """Call `main` with the command line's arguments; on a `device` when it is its turn, and with the progress to tell.

    Bad input: one line on stderr, exit code 2. A failure: 3. A transient fault: 75.
    """
    # Ctrl-C ends it also where a script ignores that for what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ending.with_dvc()
    environment.prepare()
    arguments = sys.argv[1:]
    with marked("@".join([Path(sys.argv[0]).stem, *arguments])):
        _run(main, arguments, device)


def _run(main: Callable[..., Any], arguments: list[str], device: bool) -> None:
    try:
        with Progress(" ".join([Path(sys.argv[0]).stem, *arguments])) as progress:
            if device:
                progress.begin("waiting for its turn on the device")
                with locks.device(params.load().serve.device_slots):
                    main(*arguments, progress)
            else:
                main(*arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except TransientFault as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(TRANSIENT)

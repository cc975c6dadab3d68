"""One thin module a DVC stage: read the section of params.yaml and the inputs, call the library, write the outputs whole."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tbd import ending, environment, locks, params
from tbd.errors import PASSING, InputError, PassingFault, StageFailed
from tbd.progress import Progress


def run(main: Callable[..., Any], device: bool = False) -> None:
    """Call `main` with the command line's arguments; on a `device` when it is its turn, and with the progress to tell.

    Bad input: one line on stderr, exit code 2. A failure: 3. A passing fault: 75.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends it also where a script ignores that for what it starts
    ending.with_dvc()
    environment.prepare()
    arguments = sys.argv[1:]
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
    except PassingFault as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(PASSING)

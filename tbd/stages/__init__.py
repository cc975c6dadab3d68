"""A thin module for each DVC stage: it reads parameters and inputs, calls the library and writes the outputs."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tbd import ending, environment, foreign, locks, params
from tbd.errors import TRANSIENT, InputError, StageFailed, fault, is_fault, too_long
from tbd.pipeline import inputs
from tbd.pipeline.markers import marked
from tbd.progress import STUCK, Progress


def run(main: Callable[..., Any], device: bool = False) -> None:
    """Call `main` with the arguments of the command line.

    A stage that uses a `device` waits until one is free, and `main` gets the progress to report to as well.

    Exits with 2 after bad input, 3 after a failure, 75 after a transient fault, and says which in one line on stderr.
    """
    # a script that starts it with `&` would have it ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ending.with_dvc()
    environment.prepare()
    foreign.guard()
    name, arguments = Path(sys.argv[0]).stem, sys.argv[1:]
    stage = "@".join([name, *arguments])
    with marked(stage):
        try:
            with Progress(" ".join([name, *arguments])) as progress:
                if device:
                    progress.begin("waiting for its turn on the device")
                    with locks.device(params.load().serve.device_slots):
                        progress.patience = STUCK
                        with inputs.unchanged(stage):
                            main(*arguments, progress)
                else:
                    with inputs.unchanged(stage):
                        main(*arguments)
        except Exception as error:
            if is_fault(error):
                code, error = TRANSIENT, fault(error)
            elif isinstance(error, InputError | StageFailed):
                code = 3 if isinstance(error, StageFailed) else 2
            elif wrong := too_long(error):
                code, error = 2, wrong
            else:
                raise
            print(f"error: {foreign.plain(str(error))}", file=sys.stderr)
            sys.exit(code)

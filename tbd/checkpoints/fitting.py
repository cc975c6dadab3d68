"""The process in which a checkpoint's weights are held against its configuration; see `tbd.checkpoints.prompting`.

Reads what is asked as JSON from standard input, writes what is wrong, if anything is, to standard output.
"""

import json
import resource
import sys
from contextlib import redirect_stdout
from pathlib import Path

import psutil

from tbd.checkpoints.rendering import limit, seconds
from tbd.errors import InputError, Lacking, first_line


def main() -> None:
    limit(resource.RLIMIT_CORE, 0)
    from tbd.checkpoints import loading

    asked = json.load(sys.stdin)
    processor, memory = asked["limits"]
    seconds(processor)
    limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + memory)  # torch has gigabytes of code
    found: dict[str, object] = {}
    with redirect_stdout(sys.stderr):  # where a library prints
        try:
            loading.fits(Path(asked["files"]), asked["here"])
        except InputError as error:
            found = {"error": str(error), "lacking": isinstance(error, Lacking)}
        except BaseException as error:
            found = {"error": f"{asked['files']}: transformers cannot load it ({first_line(error)})."}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

"""The lines with which a stage says that it begins and how it ends: by these a run of DVC is followed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

BEGIN = re.compile(r"\[tbd\] (\S+) begins")
END = re.compile(r"\[tbd\] (\S+) ends: exit (\d+)")


@contextmanager
def marked(stage: str) -> Iterator[None]:
    """Say on stdout that `stage` begins, and with which exit code it ends: a SystemExit's, or 1 for a bug."""
    print(f"[tbd] {stage} begins", flush=True)
    code = 1
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        print(f"[tbd] {stage} ends: exit {code}", flush=True)

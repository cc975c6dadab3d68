"""The lines with which a stage says that it begins and how it ends: how a run of DVC is followed, whatever DVC itself
says."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

BEGIN = re.compile(r"\[tbd\] (\S+) begins")
END = re.compile(r"\[tbd\] (\S+) ends: exit (\d+)")


@contextmanager
def marked(stage: str) -> Iterator[None]:
    """Say on stdout that `stage` begins, and at the end which exit code it ends with: 0, a SystemExit's, or 1 for other
    exceptions."""
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

"""Executors: who computes the units that are missing. The store and the table that comes out are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tbd.generation.engines import Engine
from tbd.generation.executors.local import Local
from tbd.generation.units import Executor
from tbd.params import Generate


@contextmanager
def opened(kind: type[Engine], checkpoint: Path, params: Generate) -> Iterator[Executor]:
    """The executor that `params` names, with engines that have loaded `checkpoint`; they end with the context."""
    if params.executor == "ray":
        from tbd.generation.executors.ray import cluster  # an extra

        with cluster(kind, checkpoint, params) as executor:
            yield executor
    else:
        yield Local(kind.open(checkpoint, params))

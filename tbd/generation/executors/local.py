"""The engine in this process: one unit after the other, or as many side by side as it takes."""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

import pyarrow as pa

from tbd.generation.engines import Engine
from tbd.generation.units import Unit, compute
from tbd.progress import Progress


class Local:
    """See `tbd.generation.units.Executor`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.identity, self.rescores = engine, engine.identity, engine.rescores

    def compute(self, units: Iterable[Unit], progress: Progress) -> Iterator[tuple[Unit, pa.Table]]:
        if self.engine.at_once == 1:  # in this thread: others have settings of their own in torch
            for unit in units:
                yield unit, compute(self.engine, unit, progress)
            return
        waiting, under_way = iter(units), dict[Future[pa.Table], Unit]()
        with ThreadPoolExecutor(self.engine.at_once) as pool:
            try:
                while True:
                    for unit in islice(waiting, self.engine.at_once - len(under_way)):
                        under_way[pool.submit(compute, self.engine, unit, progress)] = unit
                    if not under_way:
                        return
                    ended = wait(under_way, return_when=FIRST_COMPLETED).done
                    if any(future.exception() for future in ended):  # it loses none of those that still end well
                        ended = wait(under_way).done
                    for future in sorted(ended, key=lambda one: one.exception() is not None):
                        yield under_way.pop(future), future.result()
            finally:
                pool.shutdown(cancel_futures=True)

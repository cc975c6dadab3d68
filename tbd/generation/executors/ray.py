"""Actors on a Ray cluster, each with an engine of its own: what is missing is shared out among them unit by unit.

A unit is the same wherever it is computed, so the table is the same whatever the number of actors. An actor or machine
that is lost costs the units it was at; they go to another.
"""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tbd.errors import InputError, TransientFault
from tbd.generation.engines import Engine
from tbd.generation.units import Unit, compute
from tbd.params import Generate
from tbd.progress import Progress

try:
    import ray
except ImportError:
    raise InputError(
        "params.yaml: generate.executor: ray: the package ray is missing: pip install 'tbd[ray]'."
    ) from None

AHEAD = 2
"""units that an actor is given at a time, so that it never waits for the next"""
KNOCK = 5.0
"""seconds until an address at which nobody answers is given up"""
TRIES = 3
"""of a unit whose actor is lost"""


class Worker:
    """An actor: an engine, and the units that it is given one after the other."""

    def __init__(self, kind: type[Engine], checkpoint: Path, params: Generate) -> None:
        self.engine = kind.open(checkpoint, params)

    def about(self) -> tuple[dict[str, Any], bool]:
        return self.engine.identity, self.engine.rescores

    def compute(self, unit: Unit) -> pa.Table:
        return compute(self.engine, unit, Progress("actor"))


@dataclass
class Cluster:
    """See `tbd.generation.units.Executor`."""

    start: Callable[[], Any]
    """a new actor"""
    workers: list[Any]
    identity: dict[str, Any]
    rescores: bool

    def compute(self, units: Iterable[Unit], progress: Progress) -> Iterator[tuple[Unit, pa.Table]]:
        waiting, again, tries = iter(units), list[Unit](), Counter[str]()
        under_way: dict[Any, tuple[Unit, Any]] = {}
        starting: dict[Any, Any] = {}
        """actors in place of lost ones, by their first word: it may be long until a machine has room for one"""

        def give(unit: Unit) -> None:
            load = Counter(id(worker) for _, worker in under_way.values())
            worker = min(self.workers, key=lambda one: load[id(one)])
            under_way[worker.compute.remote(unit)] = unit, worker

        def failed(what: str, error: Exception, words: str) -> None:
            tries[what] += 1
            if tries[what] == TRIES:
                raise TransientFault(f"Ray lost {TRIES} actors {words} ({_said(error)}).") from None

        def start() -> None:
            worker = self.start()
            starting[worker.about.remote()] = worker

        try:
            while True:
                for unit in islice(chain(_taken(again), waiting), max(0, AHEAD * len(self.workers) - len(under_way))):
                    give(unit)
                if not (under_way or again):
                    return
                (ended, *_), _ = ray.wait([*under_way, *starting])
                if ended in starting:
                    worker = starting.pop(ended)
                    try:
                        _alike(self.identity, ray.get(ended)[0])
                        self.workers.append(worker)
                    except ray.exceptions.RayActorError as error:
                        failed("start", error, "as they started")
                        start()
                    continue
                unit, worker = under_way.pop(ended)
                try:
                    table = ray.get(ended)
                except ray.exceptions.RayActorError as error:
                    failed(unit.name, error, "at the same questions")
                    again.append(unit)
                    if worker in self.workers:
                        print(f"Ray lost an actor: its questions go to another ({_said(error)})", flush=True)
                        self.workers.remove(worker)
                        start()
                    continue
                if unit.answers is None:  # first, as most of the time went there
                    progress.advance("written", len(table["token_ids"].combine_chunks().flatten()))
                progress.advance("read", unit.read)
                yield unit, table
        finally:
            for worker in starting.values():
                ray.kill(worker)


def _taken(units: list[Unit]) -> Iterator[Unit]:
    """Each, and it is in the list no more."""
    while units:
        yield units.pop()


def _alike(identity: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise InputError for an actor that computes in another way."""
    for key in identity:
        if other.get(key) != identity[key]:
            raise InputError(
                f"the actors differ in {key}: {identity[key]} and {other.get(key)}. Make their machines alike, or name "
                "device and dtype in params.yaml."
            )


@contextmanager
def cluster(kind: type[Engine], checkpoint: Path, params: Generate) -> Iterator[Cluster]:
    """Actors that have loaded `checkpoint`, a path that every machine has. They end with the context.

    Raises:
        InputError: the cluster cannot be reached, none of its machines is large enough for an actor, or they compute
            in different ways.
        TransientFault: Ray failed.
    """
    wanted, workers = params.ray, list[Any]()
    if not ray.is_initialized():  # it ends with this process
        _reachable(wanted.address)
        local = {} if wanted.address else {"num_cpus": max(1, wanted.actors * wanted.cpus), "include_dashboard": False}
        try:
            ray.init(wanted.address or "local", log_to_driver=False, logging_level="warning", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if wanted.address:
                raise InputError(f"params.yaml: generate.ray.address: {wanted.address}: {_said(error)}.") from None
            raise TransientFault(f"Ray did not start: {_said(error)}.") from None
    _room(wanted.cpus, wanted.gpus, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    environment = {"OMP_NUM_THREADS": str(max(1, int(wanted.cpus))), "PYTHONPATH": os.getcwd()}
    actor = ray.remote(Worker).options(
        num_cpus=wanted.cpus, num_gpus=wanted.gpus, runtime_env={"env_vars": environment}
    )

    def start() -> Any:
        return actor.remote(kind, checkpoint.absolute(), params)

    try:
        workers += [start() for _ in range(wanted.actors)]
        abouts = ray.get([worker.about.remote() for worker in workers])
        identity, rescores = abouts[0]
        for other, _ in abouts:
            _alike(identity, other)
        yield Cluster(start, workers, identity, rescores)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise TransientFault(f"Ray: {_said(error)}") from None
    finally:
        for worker in workers:
            ray.kill(worker)


def _reachable(address: str | None) -> None:
    """Raise InputError where nobody listens at HOST:PORT; Ray would wait for minutes, or for ever."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isascii() and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), KNOCK).close()
        except (OSError, OverflowError, ValueError) as error:
            raise InputError(
                f"params.yaml: generate.ray.address: {address}: nobody answers there ({_said(error)}). "
                "Start the cluster, or correct the address."
            ) from None


def _room(cpus: float, gpus: float, machines: list[dict[str, float]]) -> None:
    """Raise InputError where no machine can ever hold one actor; Ray would wait for a larger one."""
    if not any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in machines):
        most = " or ".join(f"{one.get('CPU', 0):g} and {one.get('GPU', 0):g}" for one in machines[:3])
        raise InputError(
            f"params.yaml: generate.ray: an actor of {cpus:g} cpus and {gpus:g} gpus fits on no machine of the cluster "
            f"({most or 'it has none'}). Lower cpus or gpus, or add such a machine."
        )


def _said(error: BaseException) -> str:
    """In one line."""
    return " ".join(str(error).split())[:300]

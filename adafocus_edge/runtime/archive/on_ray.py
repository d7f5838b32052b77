"""Actors of a Ray cluster for an archive run; needs the extra ``[ray]``.

Plain actors, not Ray Data: its tasks are retried as a whole, and a file that kills its process ends the job; here the
same driver as on one machine finds that file, writes each row when it is there, and goes on after its own death.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adafocus_edge.errors import AdaFocusError, BackendError, MissingExtraError
from adafocus_edge.runtime.archive.dispatch import Died, Done, Event, Ready, Unfit
from adafocus_edge.runtime.archive.settings import AUTO, MAX_THREADS, ArchiveOptions
from adafocus_edge.runtime.archive.station import ArchiveJob, Station
from adafocus_edge.system.cpu import usable_cores
from adafocus_edge.system.files import reason
from adafocus_edge.system.interrupts import keep_handlers

if TYPE_CHECKING:
    from adafocus_edge.media.sources import Source

CONNECT_S = 10.0
OBJECT_STORE_BYTES = 100 << 20
"""Of a cluster that is started for the run: batches are names, and rows a few kilobytes."""


def check_ray() -> Any:
    """Return Ray's module. Raises ``MissingExtraError``."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise it warns that it hides GPUs from actors without one, which run on the CPU anyway.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--engine ray", "ray", error.name or "ray") from None
    return ray


class RayExecutor:
    """Connects to a cluster, or starts one on this machine, and starts actors.

    Args:
        options: the cluster's address, and what an actor occupies.
        job: makes the job of actors with this many threads.

    Raises ``BackendError`` if there is no cluster, ``MissingExtraError``.
    """

    def __init__(self, options: ArchiveOptions, job: Callable[[int], ArchiveJob]) -> None:
        self._ray = ray = check_ray()
        _check_reachable(options.address)
        started = {"num_cpus": usable_cores(), "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        try:
            with keep_handlers():
                ray.init(
                    address=options.address or "local", logging_level=logging.ERROR, log_to_driver=False,
                    **({} if options.address else started),
                )  # fmt: skip
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            where = f"--address {options.address}" if options.address else "--engine ray"
            fix = ": set RAY_AUTH_MODE as on its machines" if options.address else ""
            raise BackendError(f"{where}: no Ray cluster can be reached there ({first}){fix}") from None
        self._gpus = options.actor_gpus
        smallest = min(filter(None, (machine.get("CPU", 0.0) for machine in self._machines())), default=1.0)
        self._cores = options.actor_cores or min(MAX_THREADS, smallest)
        self.threads = max(1, math.floor(self._cores))
        self._job = job(self.threads)
        self._station = ray.remote(Station).options(
            num_cpus=self._cores, num_gpus=self._gpus, max_concurrency=self.threads, max_restarts=0,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        self._files = ray.put(self._job.bundle.files())
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, int | None]] = {}
        self._number = 0

    def _machines(self) -> list[dict[str, float]]:
        """Return what each machine of the cluster has."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def places(self) -> int:
        """Return how many actors the cluster has room for now, at least one."""
        count = 0
        for has in self._machines():
            rooms = [has.get("CPU", 0.0) / self._cores]
            rooms += [has.get("GPU", 0.0) / self._gpus] if self._gpus else []
            count += math.floor(min(rooms))
        return max(1, count)

    def start(self) -> int:
        """Start an actor, and return its number."""
        self._number += 1
        actor = self._actors[self._number] = self._station.remote(self._job)
        self._pending[actor.prepare.remote(self._files)] = (self._number, None)
        return self._number

    def submit(self, worker: int, batch: int, sources: Sequence[Source]) -> None:
        """Give an actor a batch; that of a dead one is reported by :meth:`events`."""
        self._pending[self._actors[worker].classify.remote(tuple(sources))] = (worker, batch)

    def events(self, wait_s: float) -> Iterator[Event]:
        """Return what has happened; wait for something at most so long."""
        ray = self._ray
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=wait_s)
        if done:  # and all others that are done, too
            done, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        for reference in done:
            worker, batch = self._pending.pop(reference)
            if worker not in self._actors:
                continue
            try:
                value = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                own = _own_error(error)
                if batch is None:
                    yield Unfit(worker, own)
                    continue
                ray.kill(self._actors.pop(worker))
                yield Died(worker, str(own), by_machine=True)
            except ray.exceptions.RayError as error:
                del self._actors[worker]
                yield Died(worker, (str(error).splitlines() or [type(error).__name__])[0])
            else:
                yield Ready(worker, value) if batch is None else Done(worker, batch, value)

    def close(self) -> None:
        """End the actors, and leave the cluster; one that was started for the run ends, too."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise ``BackendError`` if nothing listens at HOST:PORT, for which Ray would wait a minute or more."""
    if address is None or address == AUTO:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise BackendError(f"--address {address}: no Ray cluster can be reached there ({reason(error)})") from None


def _own_error(error: Any) -> AdaFocusError:
    if isinstance(error.cause, AdaFocusError):
        return BackendError(str(error.cause))
    return BackendError(f"a process of the cluster failed: {type(error.cause).__name__}: {error.cause}")

"""Processes of this machine for an archive run."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from adafocus_edge.errors import AdaFocusError, BackendError
from adafocus_edge.runtime.archive.dispatch import Died, Done, Event, Ready, Unfit
from adafocus_edge.runtime.archive.station import ArchiveJob, Station
from adafocus_edge.system.interrupts import leave_interrupts_to_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from adafocus_edge.media.sources import Source

LEAVE_S = 5.0
"""Wait for processes that end."""
BROKEN = "broken"
"""The last message of a process whose machine has failed it."""


class LocalExecutor:
    """Starts processes that end with this one, however that ends: their pipe closes."""

    def __init__(self, job: ArchiveJob) -> None:
        self.threads = job.threads
        self._job = job
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[int, tuple[BaseProcess, Connection]] = {}
        self._number = 0

    def start(self) -> int:
        """Start a process, and return its number."""
        self._number += 1
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._job), daemon=True, name="archive")
        process.start()
        theirs.close()
        self._running[self._number] = (process, ours)
        return self._number

    def submit(self, worker: int, batch: int, sources: Sequence[Source]) -> None:
        """Give a process a batch; that of a dead one is reported by :meth:`events`."""
        with suppress(OSError):
            self._running[worker][1].send((batch, tuple(sources)))

    def events(self, wait_s: float) -> Iterator[Event]:
        """Return what has happened; wait for something at most so long."""
        answered = set(map(id, wait([connection for _, connection in self._running.values()], wait_s)))
        for number, (process, connection) in list(self._running.items()):
            if id(connection) not in answered:
                continue
            try:
                kind, value = connection.recv()
            except (EOFError, OSError):
                kind = None
            if kind is not None and kind != BROKEN:
                yield _event(number, kind, value)
                continue
            del self._running[number]
            connection.close()
            process.join(LEAVE_S)
            yield Died(number, _why(process.exitcode)) if kind is None else Died(number, value, by_machine=True)

    def close(self) -> None:
        """End all processes."""
        for process, _ in self._running.values():
            process.kill()
        for process, connection in self._running.values():
            process.join(LEAVE_S)
            connection.close()
        self._running.clear()


def _event(number: int, kind: Any, value: Any) -> Event:
    if kind == "ready":
        return Ready(number, value)
    return Unfit(number, BackendError(value)) if kind == "unfit" else Done(number, kind, value)


def _why(status: int | None) -> str:
    return f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"


def _serve(connection: Connection, job: ArchiveJob) -> None:
    """Load the model, and classify what comes, until the driver is gone."""
    leave_interrupts_to_parent(reset_termination=True)
    station, lock = Station(job), threading.Lock()

    def send(kind: Any, value: Any) -> None:
        with lock, suppress(OSError):
            connection.send((kind, value))

    try:
        backend = station.prepare()
    except AdaFocusError as error:
        send("unfit", str(error))
        return
    send("ready", backend)
    batches: queue.SimpleQueue[tuple[int, Sequence[Source]]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            number, sources = batches.get()
            try:
                rows = station.classify(sources)
            except BaseException as error:  # as a thread that ended alone would leave the driver waiting
                send(BROKEN, str(error) if isinstance(error, AdaFocusError) else f"{type(error).__name__}: {error}")
                os._exit(1)
            send(number, rows)

    for _ in range(job.threads):
        threading.Thread(target=work, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            batches.put(connection.recv())
    os._exit(0)  # a thread may be in a decoder

"""The driver of an archive run: hands out batches, takes rows, and replaces processes that die. Knows no executor.

A process that dies fails its batches. Their sources are then tried one at a time on a process that has nothing else
to do, so that a file that kills its reader is found for certain: after :data:`MAX_DEATHS` deaths it becomes a row
with an error. A process that ends because its machine fails it (:func:`is_of_machine`) may have been given an intact
file: the row waits until another file has a result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from adafocus_edge.errors import AdaFocusError, BackendError
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.archive.station import Row, failed_row

BATCH = 4
"""Files per call of a process: few enough that the last ones of a run are shared out."""
MAX_DEATHS = 2
"""Deaths of a process that has a file alone, after which the file is given up."""
MAX_LOST = 20
"""Deaths in a row, without a row in between, after which a run is given up."""
MAX_GIVEN_UP = 50
"""Files in a row that are given up, without another row in between, after which a run is given up."""
WAIT_S = 0.5
"""Between two looks at the progress."""
GROW_S = 10.0
"""Between two looks for room for more processes."""
START_S = 300.0
"""Wait for the first process that is ready."""


@dataclass(frozen=True)
class Ready:
    """A process has loaded its model, on this backend."""

    worker: int
    backend: str


@dataclass(frozen=True)
class Done:
    """A batch has its rows."""

    worker: int
    batch: int
    rows: Sequence[Row]


@dataclass(frozen=True)
class Died:
    """A process has ended, with all its batches. Its successor, if the run needs one, has a number of its own.

    Attributes:
        worker: its number.
        why: it ended.
        by_machine: whether it said itself that its machine or device had failed it.
    """

    worker: int
    why: str
    by_machine: bool = False


@dataclass(frozen=True)
class Unfit:
    """A process could not load the model: the run cannot go on."""

    worker: int
    error: AdaFocusError


Event = Ready | Done | Died | Unfit


class Executor(Protocol):
    """Where processes run."""

    threads: int
    """Batches that a process works on at a time."""

    def start(self) -> int:
        """Start a process, and return its number."""

    def submit(self, worker: int, batch: int, sources: Sequence[Source]) -> None:
        """Give a process a batch."""

    def events(self, wait_s: float) -> Iterable[Event]:
        """Return what has happened; wait for something at most so long."""

    def close(self) -> None:
        """End all processes."""


@dataclass
class _Process:
    ready: bool = False
    batches: dict[int, tuple[Source, ...]] = field(default_factory=dict)
    alone: bool = False
    """Whether it tries one source that may have killed another process."""


class Dispatcher:
    """Classifies sources on an executor's processes.

    Args:
        executor: where they run.
        processes: returns how many there shall be, which may grow with a cluster.
        take: receives each row, once per source.
        tick: called at least every :data:`WAIT_S`.
    """

    def __init__(
        self, executor: Executor, processes: Callable[[], int], take: Callable[[Row], None], tick: Callable[[], None]
    ) -> None:
        self._executor = executor
        self._wanted = processes
        self._take = take
        self._tick = tick
        self._processes: dict[int, _Process] = {}
        self._suspects: deque[Source] = deque()
        self._deaths: dict[Source, int] = {}
        self._number = 0
        self._lost = self._given_up = 0
        self._doubtful: list[Row] = []
        """Rows of files that were given up because a machine failed, while no other file has a result since."""
        self.most = 0
        """Processes at a time, at most."""
        self._proven = False
        """Whether a process has classified anything."""
        self.backend = ""

    def run(self, sources: Iterable[Source]) -> None:
        """Classify all sources. Raises ``AdaFocusError`` if no process can run."""
        waiting = _batches(sources)
        following = next(waiting, None)
        began = time.monotonic()
        grown = -math.inf
        while True:
            if time.monotonic() - grown >= GROW_S:
                grown = time.monotonic()
                while len(self._processes) < self._wanted():
                    self._start()
            following = self._hand_out(following, waiting)
            if following is None and not self._suspects and not any(p.batches for p in self._processes.values()):
                self._settle()
                return
            for event in self._executor.events(WAIT_S):
                self._note(event)
            self._tick()
            if not self.backend and time.monotonic() - began > START_S:
                raise BackendError(
                    f"no process was ready within {START_S:.0f} s: the machine or the cluster lacks free cores, memory "
                    "or GPUs (see `ray status`)"
                )

    def _start(self) -> None:
        self._processes[self._executor.start()] = _Process()
        self.most = max(self.most, len(self._processes))

    def _hand_out(
        self, following: tuple[Source, ...] | None, waiting: Iterator[tuple[Source, ...]]
    ) -> tuple[Source, ...] | None:
        """Give work to all processes that have room: one batch per thread, and as many that wait there."""
        for number, process in self._processes.items():
            if not process.ready or process.alone:
                continue
            if self._suspects and not process.batches:
                process.alone = True
                self._submit(number, process, (self._suspects.popleft(),))
                continue
            # A process keeps nothing that waits while suspects need one without work.
            room = self._executor.threads * (1 if self._suspects else 2)
            while following is not None and len(process.batches) < room and not self._is_needed(number):
                self._submit(number, process, following)
                following = next(waiting, None)
        return following

    def _is_needed(self, number: int) -> bool:
        """Whether a process must run empty for suspects: the first one, while no other tries them."""
        return bool(self._suspects) and number == min(self._processes)

    def _submit(self, number: int, process: _Process, batch: tuple[Source, ...]) -> None:
        self._number += 1
        process.batches[self._number] = batch
        self._executor.submit(number, self._number, batch)

    def _note(self, event: Event) -> None:
        if isinstance(event, Unfit):
            raise event.error
        process = self._processes.get(event.worker)
        if process is None:
            return
        if isinstance(event, Ready):
            process.ready, self.backend = True, event.backend
        elif isinstance(event, Done):
            if process.batches.pop(event.batch, None) is not None:
                process.alone, self._lost, self._given_up = False, 0, 0
                for row in event.rows:
                    self._take(row)
                if any("error" not in row for row in event.rows):
                    self._proven = True
                    self._settle()
        else:
            self._bury(self._processes.pop(event.worker), event)

    def _settle(self) -> None:
        """Write the rows that waited. Raises ``BackendError`` if no file of this run was ever classified."""
        if self._doubtful and not self._proven:
            raise BackendError(self._doubtful[-1]["error"])
        while self._doubtful:
            self._take(self._doubtful.pop(0))

    def _bury(self, process: _Process, death: Died) -> None:
        self._lost += 1
        if self._lost > MAX_LOST or self._given_up > MAX_GIVEN_UP:
            count = max(self._lost, MAX_DEATHS * self._given_up)
            raise BackendError(f"{count} processes died one after the other; the last: {death.why}")
        for batch in process.batches.values():
            for source in batch:
                if process.alone:
                    self._deaths[source] = self._deaths.get(source, 0) + 1
                if self._deaths.get(source, 0) >= MAX_DEATHS:
                    self._give_up(source, death)
                elif process.alone:  # at once: many that wait for their second try would look like a broken machine
                    self._suspects.appendleft(source)
                else:
                    self._suspects.append(source)
        self._start()

    def _give_up(self, source: Source, death: Died) -> None:
        why = death.why.removeprefix(f"{source.name}: ")
        text = f"{source.name}: cannot be read: the process that read it died {MAX_DEATHS} times ({why})"
        row = failed_row(source, text)
        if death.by_machine:
            self._doubtful.append(row)
        else:
            self._lost, self._given_up = 0, self._given_up + 1
            self._take(row)


def _batches(sources: Iterable[Source]) -> Iterator[tuple[Source, ...]]:
    batch: list[Source] = []
    for source in sources:
        batch.append(source)
        if len(batch) == BATCH:
            yield tuple(batch)
            batch = []
    if batch:
        yield tuple(batch)

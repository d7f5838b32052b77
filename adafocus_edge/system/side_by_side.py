"""Runs a function over many items in several threads, and yields the outcomes in the order of the items.

Threads, not processes: decoding, resizing and the model release Python's lock, so that they share the cores, and all
threads share the weights of one model.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from adafocus_edge.system.cpu import limit_cores_of_thread, usable_cores

Item = TypeVar("Item")
Made = TypeVar("Made")
Outcomes: TypeAlias = Generator[tuple[Item, Callable[[], Made]], None, None]
"""Each item, and a callable that waits for what became of it."""

WORKER_THREAD = "side-by-side"
"""Prefix of the threads' names."""
LEAVE_S = 1.0
"""Wait of a run that ends early for the items under way."""


@dataclass(frozen=True)
class Shares:
    """How the cores are shared.

    Attributes:
        workers: items under way at a time.
        threads: of the CPU backend for the model that all workers share; None for all usable cores.
    """

    workers: int
    threads: int | None

    @classmethod
    def of(cls, items: int, workers: int | None = None, threads: int | None = None) -> Shares:
        """Return the shares for some items: one core each, and those left over for the model.

        Args:
            items: how many there are.
            workers: at most so many; None for one per usable core, or per thread if those are limited.
            threads: of the model, the workers' own ones included; None for all usable cores.
        """
        total = threads or usable_cores()
        count = max(1, min(workers or total, items))
        return cls(1, threads) if count == 1 else cls(count, max(1, total - count + 1))


def side_by_side(
    items: Iterable[Item], prepare: Callable[[], Callable[[Item], Made]], workers: int, ahead: int
) -> closing[Outcomes[Item, Made]]:
    """Run a function over items in threads.

    Args:
        items: they are taken from the iterator in the thread of the caller.
        prepare: called once in each thread; returns the function.
        workers: number of threads; with 1, the function runs in the caller's thread when its outcome is asked for.
        ahead: maximum number of items that are begun or finished before the caller asks for them.

    Returns:
        a context manager of an iterator over each item and a callable that waits for its outcome: what the function
        returned, or the exception that it raised. Call it once. Leaving the context early drops the items that wait.
    """
    return closing(_in_turn(items, prepare()) if workers == 1 else _in_threads(items, prepare, workers, ahead))


def _in_turn(items: Iterable[Item], function: Callable[[Item], Made]) -> Outcomes[Item, Made]:
    for item in items:
        yield item, partial(function, item)


def _in_threads(
    items: Iterable[Item], prepare: Callable[[], Callable[[Item], Made]], workers: int, ahead: int
) -> Outcomes[Item, Made]:
    tasks: queue.SimpleQueue[tuple[Item, Future[Made]] | None] = queue.SimpleQueue()
    stopped = threading.Event()
    cores = max(1, usable_cores() // workers)

    def work() -> None:
        limit_cores_of_thread(cores)
        function: Callable[[Item], Made] | None = None
        while (task := tasks.get()) is not None and not stopped.is_set():
            item, future = task
            try:
                function = function or prepare()
                future.set_result(function(item))
            except BaseException as error:  # raised again where the outcome is asked for
                future.set_exception(error)

    # Daemons: a decoder that hangs must not keep the process from ending.
    threads = [threading.Thread(target=work, name=f"{WORKER_THREAD}-{n}", daemon=True) for n in range(workers)]
    pending: deque[tuple[Item, Future[Made]]] = deque()
    try:
        for thread in threads:
            thread.start()
        for item in items:
            pending.append((item, Future()))
            tasks.put(pending[-1])
            if len(pending) == ahead:
                yield _first(pending)
        while pending:
            yield _first(pending)
    finally:
        stopped.set()
        for _ in threads:
            tasks.put(None)
        until = time.monotonic() + LEAVE_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))


def _first(pending: deque[tuple[Item, Future[Made]]]) -> tuple[Item, Callable[[], Made]]:
    item, future = pending.popleft()
    return item, future.result

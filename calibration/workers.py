"""Run several clips or batches at once, each with a share of the threads, instead of one with all of them.

The threads of a session wait for each other after every operator, and keep the CPU busy while they wait: on a busy
machine, a ResNet-50 with two threads takes up to 1.8 times the CPU time that it takes with one. Each run computes what
it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from adafocus_edge.backends.loaded import CPU_BATCH
from adafocus_edge.system.cpu import usable_cores
from adafocus_edge.system.side_by_side import side_by_side

MAX_AT_ONCE = CPU_BATCH
"""Max runs at once: each needs memory for a graph's activations, for at least one row."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Threads of Python that run sessions at once.

    Args:
        threads: CPU threads, or None for all cores.

    Attributes:
        at_once: number of runs at once.
        threads_each: CPU threads for each of them, to open its session with.
        batch: rows for each of them at a time, so that all of them need no more memory than one.
    """

    def __init__(self, threads: int | None) -> None:
        count = threads or usable_cores()
        self.at_once = min(count, MAX_AT_ONCE)
        self.threads_each = count // self.at_once
        self.batch = max(1, CPU_BATCH // self.at_once)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function's results in the order of the items.

        At most one item more than there are workers waits for one, so that an interrupted run ends soon.
        """
        with side_by_side(items, lambda: function, self.at_once, self.at_once + 1) as outcomes:
            for _, outcome in outcomes:
                yield outcome()


SERIAL = Workers(1)
"""Runs one after another."""

"""Progress of a run: bars on a terminal; lines with the time left where the output is a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

LINE_S = 30.0
"""Seconds between two lines of progress in a log."""


class Progress:
    """Progress of a run.

    Args:
        bars: shown on a terminal, and disabled anywhere else.
        log: logs a line; called where there are no bars.
        clock: monotonic seconds.
    """

    def __init__(self, bars: Bars, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._bars, self._log, self._clock = bars, log, clock
        self._epochs: list[float] = []

    @contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Task]:
        """Give a task, which is shown until it ends."""
        shown = self._bars.add_task(name, total=total)
        try:
            yield Task(self._bars, shown, name, total, self._log, self._clock)
        finally:
            self._bars.remove_task(shown)

    def count_epoch(self, seconds: float, left: int) -> str:
        """Note how long an epoch took; return the time left for the ``left`` remaining epochs, or an empty text."""
        self._epochs.append(seconds)
        return f", {in_words(left * sum(self._epochs) / len(self._epochs))} left" if left else ""


class Task:
    """A part of a run whose steps are counted: a bar on a terminal, else a line every :data:`LINE_S` seconds."""

    def __init__(
        self, bars: Bars, shown: TaskID, name: str, total: int | None, log: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._bars, self._shown, self._log, self._clock = bars, shown, log, clock
        self._name, self._total, self._done = name, total, 0
        self._started = self._last = clock()

    def advance(self, figures: str = "") -> None:
        """Count one step."""
        self.update(self._done + 1, self._total, figures)

    def update(self, done: int, total: int | None, figures: str = "") -> None:
        """Show how many steps are done, with figures such as the loss."""
        self._done, self._total = done, total
        self._bars.update(self._shown, completed=done, total=total, description=f"{self._name}  {figures}".rstrip())
        now = self._clock()
        if self._bars.disable and total and done < total and now - self._last >= LINE_S:
            self._last = now
            left = in_words((now - self._started) / done * (total - done))
            self._log(f"{self._name}: {done} of {total}" + (f", {figures}" if figures else "") + f", {left} left")


def in_words(seconds: float) -> str:
    """Return a duration as ``40 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"

"""Hands the windows of a live run to the caller's thread."""

from __future__ import annotations

import logging
import queue
from contextlib import suppress
from typing import TYPE_CHECKING

from adafocus_edge.live.listener import POLL_S
from adafocus_edge.live.messages import Notice, Window

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from adafocus_edge.live.messages import Message

LOG = logging.getLogger("adafocus_edge")
WINDOWS_WAITING = 64
"""Windows that may wait for the caller."""


class WindowQueue:
    """Receives the windows of a live run, and yields them to the caller's thread.

    Args:
        until: where windows wait for a slow caller: what ends that; None to drop the oldest instead.
    """

    name = "windows"

    def __init__(self, until: threading.Event | None) -> None:
        self.dropped = self.failed = self.handled = 0
        self._until = until
        self._queue: queue.Queue[Window | None] = queue.Queue()

    @property
    def waiting(self) -> int:
        """Windows that wait."""
        return self._queue.qsize()

    def enqueue(self, message: Message) -> None:
        """Take a window, and log notices of what goes wrong."""
        if isinstance(message, Notice) and message.kind in ("lost", "failed", "stalled"):
            LOG.warning(message.text)
        if not isinstance(message, Window):
            return
        while self._queue.qsize() >= WINDOWS_WAITING:
            if self._until is None:
                with suppress(queue.Empty):
                    self._queue.get_nowait()
                    self.dropped += 1
                if self.dropped == 1:
                    LOG.warning("the caller of stream is too slow: the oldest windows are dropped")
            elif self._until.wait(POLL_S):
                break
        self._queue.put(message)

    def end(self) -> None:
        """Let the iteration end once all windows are taken."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Window]:
        while (window := self._queue.get()) is not None:
            self.handled += 1
            yield window

"""The time in which the server of a live run's model is gone: pauses, attempts, and notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Literal

from adafocus_edge.errors import ServerLostError
from adafocus_edge.live.messages import Notice
from adafocus_edge.system.backoff import Backoff


class ServerOutage:
    """Waits for a server that is lost, as sources that are lost are waited for.

    Args:
        check: asks the server whether it serves the same model again; raises ``ServerLostError`` while it is gone.
        retries: how many attempts may fail in a row; None for no limit.
        report: is called with a notice ``stalled`` for each source when the server is lost, and with ``resumed`` when
            it is back.
    """

    def __init__(self, check: Callable[[], None], retries: int | None, report: Callable[[Notice], None]) -> None:
        self._check, self._retries, self._report = check, retries, report
        self._backoff = Backoff()
        self._failures = 0
        self._pause_s, self._next_s = 0.0, 0.0

    @property
    def lasts(self) -> bool:
        """Whether the server is gone."""
        return self._failures > 0

    def begin(self, error: ServerLostError, sources: Iterable[str]) -> None:
        """Note that a step has failed. Raises the error if no attempt is allowed."""
        self._backoff.reset()
        self._failed(error)
        self._notify("stalled", sources, f"{error}; retrying in {self._pause_s:g} s")

    def attempt(self, sources: Iterable[str], wait_s: float) -> None:
        """Ask the server again if it is time to, or wait for that, at most ``wait_s``.

        Raises:
            ServerLostError: that was the last attempt allowed.
            BackendError: the server is back with another model.
        """
        left_s = self._next_s - time.monotonic()
        if left_s > 0:
            time.sleep(max(0.0, min(left_s, wait_s)))
            return
        try:
            self._check()
        except ServerLostError as error:
            self._failed(error)
        else:
            self._failures = 0
            self._notify("resumed", sources, "the server of the model is back")

    def _failed(self, error: ServerLostError) -> None:
        self._failures += 1
        if self._retries is not None and self._failures > self._retries:
            raise error
        self._pause_s = self._backoff.pause_s
        self._next_s = time.monotonic() + self._pause_s
        self._backoff.failed()

    def _notify(self, kind: Literal["stalled", "resumed"], sources: Iterable[str], text: str) -> None:
        for name in sources:
            self._report(Notice(name, kind, f"{name}: {text}", time.time()))

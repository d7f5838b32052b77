"""Pauses between attempts to reach something that does not answer."""

from __future__ import annotations

from typing import ClassVar


class Backoff:
    """Pauses that double with each failed attempt: 1, 2, 4 ... 60 seconds.

    Cameras and streams that are lost, webhooks and MQTT brokers all wait like this.
    """

    FIRST_S: ClassVar[float] = 1.0
    """Pause before the first new attempt."""
    MAX_S: ClassVar[float] = 60.0
    """Longest pause."""

    def __init__(self) -> None:
        self._pause_s = self.FIRST_S

    @property
    def pause_s(self) -> float:
        """Seconds to wait before the next attempt."""
        return self._pause_s

    def failed(self) -> None:
        """Double the pause: the attempt after it has failed, too."""
        self._pause_s = min(2 * self._pause_s, self.MAX_S)

    def reset(self) -> None:
        """Return to the first pause: an attempt has succeeded."""
        self._pause_s = self.FIRST_S

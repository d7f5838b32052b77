"""The watchdog of a live run: reports a source that is not glimpsed for a while, and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from adafocus_edge.live.messages import Notice

SILENT_S = 10.0
"""A source without a glimpse for this long is reported."""
LOOK_S = 1.0
"""How often the watchdog looks."""
LONG_STEP_S = 2.0
"""A step that takes longer than this is the reason."""


class Silence(NamedTuple):
    """What is known of one source that should be glimpsed.

    Attributes:
        name: of the source.
        glimpses: so far.
        step_s: for how long the model has been computing the present step; 0 between two steps.
        frame_age_s: time since its newest frame, or None if none has come.
        damaged: pictures of it that could not be decoded or converted.
        limit_s: without a glimpse for this long it is reported.
    """

    name: str
    glimpses: int
    step_s: float
    frame_age_s: float | None
    damaged: int
    limit_s: float

    @property
    def reason(self) -> str:
        """Why it is not glimpsed, in words."""
        if self.step_s > LONG_STEP_S:
            return f"the model has been computing one step for {self.step_s:.0f} s"
        if self.frame_age_s is None:
            return "no frame has come yet"
        if self.frame_age_s > self.limit_s / 2:
            return f"no frame has come for {self.frame_age_s:.0f} s"
        if self.damaged:
            return f"frames come, but {self.damaged} of them could not be decoded"
        return "frames come, but none of them reaches the model"


class Watchdog:
    """Looks at a run from a thread of its own, so that a model that hangs is reported as well.

    Args:
        sources: what is known of each source that should be glimpsed, at the moment of the call.
        tell: is called with a notice ``stalled`` when a source is silent, and ``resumed`` when it is seen again.
    """

    def __init__(self, sources: Callable[[], Iterable[Silence]], tell: Callable[[Notice], None]) -> None:
        self._sources, self._tell = sources, tell
        self._seen: dict[str, tuple[int, float]] = {}  # glimpses, and since when there are so many
        self._silent: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """End; do not wait for a listener that hangs."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(LOOK_S)

    def look(self, now_s: float) -> None:
        """Look once, at a time of ``time.monotonic``."""
        sources = list(self._sources())
        names = {source.name for source in sources}
        # One that is lost or over has been reported; if it comes back, its time begins anew.
        self._silent &= names
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        for source in sources:
            glimpses, since_s = self._seen.get(source.name, (source.glimpses, now_s))
            if source.glimpses != glimpses:
                since_s = now_s
            self._seen[source.name] = (source.glimpses, since_s)
            quiet_s = now_s - since_s
            if quiet_s >= source.limit_s and source.name not in self._silent:
                self._silent.add(source.name)
                self._notice(source.name, "stalled", f"no glimpse for {quiet_s:.0f} s: {source.reason}")
            elif not quiet_s and source.name in self._silent:
                self._silent.discard(source.name)
                self._notice(source.name, "resumed", "glimpsed again")

    def _notice(self, name: str, kind: str, text: str) -> None:
        self._tell(Notice(name, kind, f"{name}: {text}", time.time()))  # type: ignore[arg-type]

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self.look(time.monotonic())

"""The watchdog of a live run: reports sources that are not glimpsed for a while, and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from adafocus_edge.live.messages import Notice

SILENT_S = 10.0
"""A source without a glimpse for this long is reported."""
CHECK_S = 1.0
"""How often the watchdog checks the sources."""
LONG_STEP_S = 2.0
"""A step of the model that takes longer than this is the reason."""


class Activity(NamedTuple):
    """The latest activity of one source that should be glimpsed.

    Attributes:
        name: of the source.
        glimpses: so far.
        step_s: time since the model began its present step; 0 between two steps.
        frame_age_s: time since the newest frame, or None before the first.
        damaged: pictures that could not be decoded or converted.
        limit_s: time without a glimpse after which the source is reported.
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
            return "no frame received yet"
        if self.frame_age_s > self.limit_s / 2:
            return f"no frame received for {self.frame_age_s:.0f} s"
        if self.damaged:
            return f"frames arrive, but {self.damaged} of them could not be decoded"
        return "frames arrive, but none of them reaches the model"


class Watchdog:
    """Watches a run from a thread of its own, so that a model that hangs is reported as well.

    Args:
        activities: returns the activity of each source that should be glimpsed, at the moment of the call.
        report: is called with a notice ``stalled`` when a source is silent, and ``resumed`` when it is glimpsed again.
    """

    def __init__(self, activities: Callable[[], Iterable[Activity]], report: Callable[[Notice], None]) -> None:
        self._activities, self._report = activities, report
        self._seen: dict[str, tuple[int, float]] = {}  # glimpses, and the time of the last one
        self._silent: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching, without waiting for a subscriber that hangs."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(CHECK_S)

    def check(self, now_s: float) -> None:
        """Check all sources once, at a time of ``time.monotonic``."""
        activities = list(self._activities())
        names = {activity.name for activity in activities}
        # One that is lost or over has been reported; its time starts again when it comes back.
        self._silent &= names
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        for activity in activities:
            name = activity.name
            glimpses, since_s = self._seen.get(name, (activity.glimpses, now_s))
            if activity.glimpses != glimpses:
                since_s = now_s
            self._seen[name] = (activity.glimpses, since_s)
            quiet_s = now_s - since_s
            if quiet_s >= activity.limit_s and name not in self._silent:
                self._silent.add(name)
                self._notify(name, "stalled", f"no glimpse for {quiet_s:.0f} s: {activity.reason}")
            elif not quiet_s and name in self._silent:
                self._silent.discard(name)
                self._notify(name, "resumed", "glimpsed again")

    def _notify(self, name: str, kind: Literal["stalled", "resumed"], text: str) -> None:
        self._report(Notice(name, kind, f"{name}: {text}", time.time()))

    def _watch(self) -> None:
        while not self._over.wait(CHECK_S):
            self.check(time.monotonic())

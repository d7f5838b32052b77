"""Meters of a live run, in constant memory: counters, rates over the last seconds, latencies of the last results."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

LATENCIES = 1000
"""Number of results whose latencies are kept."""
RATE_S = 10.0
"""Rates are measured over this time."""
RATE_STEPS = 40
"""Number of samples in that time."""
SETTLED_S = 10.0
"""Dropping counts as over once nothing has been dropped for this long."""
AGAIN_S = 60.0
"""While dropping continues, it is reported again after this time."""


@dataclass
class Counters:
    """Counts of one source since the run began.

    Attributes:
        frames: frames captured.
        picked: frames picked for a glimpse.
        dropped: picked frames that were dropped because the queue was full.
        damaged: pictures that could not be decoded.
        connections: how often the source was opened, and delivered a frame.
        openings: how often its packets were copied from its beginning; identifies each time, so it never restarts.
        width: of the newest frame, in pixels.
        height: of the newest frame, in pixels.
    """

    frames: int = 0
    picked: int = 0
    dropped: int = 0
    damaged: int = 0
    connections: int = 0
    openings: int = 0
    width: int = 0
    height: int = 0

    def carried_over(self) -> Counters:
        """Return the counters of another source that takes the name of this one: it has not connected yet."""
        return replace(self, connections=0, width=0, height=0)


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of the latency in milliseconds; None before the first result."""

    p50: float | None
    p95: float | None
    p99: float | None


class LatencyMeter:
    """Keeps the latest latencies. Safe from any thread."""

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=LATENCIES)
        self._lock = threading.Lock()

    def add(self, latency_ms: float) -> None:
        """Add the latency of one result."""
        with self._lock:
            self._kept.append(latency_ms)

    def percentiles(self) -> Percentiles:
        """Return the percentiles of the last :data:`LATENCIES`."""
        with self._lock:
            kept = list(self._kept)
        if not kept:
            return Percentiles(None, None, None)
        return Percentiles(*(round(float(value), 2) for value in np.percentile(kept, (50, 95, 99))))


class RateMeter:
    """Turns a counter into a rate, from samples taken at each call. Safe from any thread.

    Args:
        count: the counter, as it is now.
    """

    def __init__(self, count: int = 0) -> None:
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), count)])
        self._lock = threading.Lock()

    def rate(self, count: int) -> float:
        """Return the growth of ``count``, which never falls, per second over about the last :data:`RATE_S` seconds."""
        now = time.monotonic()
        with self._lock:
            samples = self._samples
            if now - samples[-1][0] >= RATE_S / RATE_STEPS:
                samples.append((now, count))
            while len(samples) > 2 and now - samples[1][0] >= RATE_S:
                samples.popleft()
            began, before = samples[0]
        return (count - before) / (now - began) if now > began else 0.0


@dataclass(frozen=True)
class DropReport:
    """The drops since dropping began.

    Attributes:
        lasts: whether dropping continues.
        dropped: number of drops.
        total: number of frames or messages, dropped or not.
        over_s: seconds since dropping began.
    """

    lasts: bool
    dropped: int
    total: int
    over_s: float

    def __str__(self) -> str:
        return f"{self.dropped} of {self.total} in {self.over_s:.0f} s"


class DropMeter:
    """Turns counters that never fall into reports: when dropping begins, while it continues, and when it is over.

    Args:
        min_drops: number of drops that is reported; fewer are ignored.
        dropped: the counter of drops, as it is now.
        total: and that of all.
    """

    def __init__(self, min_drops: int = 1, dropped: int = 0, total: int = 0) -> None:
        self.dropping = False
        self._min_drops = min_drops
        self._began = (time.monotonic(), dropped, total)
        self._dropped = dropped
        self._dropped_s = self._reported_s = float("-inf")

    def update(self, dropped: int, total: int, now_s: float) -> DropReport | None:
        """Take the counters at a time of ``time.monotonic``; return the report that is due now, if any."""
        grows, self._dropped = dropped > self._dropped, dropped
        if grows:
            self._dropped_s = now_s
        is_over = now_s - self._dropped_s >= SETTLED_S
        began_s, dropped_before, total_before = self._began
        report = DropReport(not is_over, dropped - dropped_before, total - total_before, now_s - began_s)
        if is_over:
            was, self.dropping = self.dropping, False
            self._began = (now_s, dropped, total)
            return report if was else None
        is_due = now_s - self._reported_s >= AGAIN_S if self.dropping else report.dropped >= self._min_drops
        if not (grows and is_due):
            return None
        self.dropping, self._reported_s = True, now_s
        return report

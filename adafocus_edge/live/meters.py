"""Measuring a live run in constant memory: rates over the last seconds, and percentiles over the last results."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

LATENCIES = 1000
"""Results whose latencies are kept."""
RATE_S = 10.0
"""Rates are taken over this time."""
RATE_STEPS = 40
"""How finely that time is divided."""
SETTLED_S = 10.0
"""Nothing must be dropped for so long until dropping counts as over."""
AGAIN_S = 60.0
"""While dropping goes on, it is reported again after this time."""


@dataclass(frozen=True)
class Percentiles:
    """In milliseconds; None before the first result."""

    p50: float | None
    p95: float | None
    p99: float | None


class LatencyMeter:
    """Keeps the latest latencies; used from several threads."""

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=LATENCIES)
        self._lock = threading.Lock()

    def add(self, latency_ms: float) -> None:
        """Add one."""
        with self._lock:
            self._kept.append(latency_ms)

    def percentiles(self) -> Percentiles:
        """Return those of the last :data:`LATENCIES`."""
        with self._lock:
            kept = list(self._kept)
        if not kept:
            return Percentiles(None, None, None)
        return Percentiles(*(round(float(value), 2) for value in np.percentile(kept, (50, 95, 99))))


class RateMeter:
    """Turns a counter into a rate, from samples that are taken when it is asked."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._lock = threading.Lock()

    def rate(self, count: int) -> float:
        """Return per second how fast ``count``, which only grows, grew over the last :data:`RATE_S` seconds or so."""
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
    """What was dropped since dropping began.

    Attributes:
        lasts: whether it goes on.
        dropped: how many.
        total: of how many.
        over_s: in how many seconds.
    """

    lasts: bool
    dropped: int
    total: int
    over_s: float

    def __str__(self) -> str:
        return f"{self.dropped} of {self.total} in {self.over_s:.0f} s"


class DropMeter:
    """Turns counters that only grow into reports: when dropping begins, while it goes on, and when it is over.

    Args:
        fewest: drops that are worth a report.
    """

    def __init__(self, fewest: int = 1) -> None:
        self.dropping = False
        self._fewest = fewest
        self._began = (time.monotonic(), 0, 0)
        self._dropped = 0
        self._dropped_s = self._reported_s = float("-inf")

    def update(self, dropped: int, total: int, now_s: float) -> DropReport | None:
        """Take the counters at a time of ``time.monotonic``; return what must be reported now."""
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
        is_due = now_s - self._reported_s >= AGAIN_S if self.dropping else report.dropped >= self._fewest
        if not (grows and is_due):
            return None
        self.dropping, self._reported_s = True, now_s
        return report

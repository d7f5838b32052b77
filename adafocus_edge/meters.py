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

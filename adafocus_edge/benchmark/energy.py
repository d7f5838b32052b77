"""Measure the joules that the device draws, from energy counters if it has any, else by integrating its power."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from adafocus_edge.system.sensors import EnergyCounters, SensorReader

PAUSE_S = 0.01
"""Pause between two readings of a power meter."""


class EnergyMeter:
    """Joules drawn since its construction: from counters (RAPL, NVML), or the power meter of a Jetson or a system.

    A context manager: leaving it stops the thread that integrates the power.

    Args:
        root: root of the file system.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._counters = EnergyCounters(root)
        self._reader = SensorReader(root)
        self._stop = threading.Event()
        self._joules = 0.0
        self._thread: threading.Thread | None = None
        self.of = self._counters.of
        """What is measured: ``cpu``, ``gpu``, ``cpu and gpu``, ``module``, ``system``, ``chips``; empty if nothing."""
        power_of = self._reader.read().power_of
        if power_of in ("module", "system") or (not self.of and power_of is not None):
            self.of = power_of
            self._thread = threading.Thread(target=self._add_up, name="energy", daemon=True)
            self._thread.start()

    def joules(self) -> float | None:
        """Return the joules so far, or None without a counter or meter."""
        if self._thread is not None:
            return self._joules
        return self._counters.joules() if self.of else None

    def close(self) -> None:
        """Stop integrating."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> EnergyMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_up(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(PAUSE_S):
            now = time.monotonic()
            self._joules += (self._reader.read().power_w or 0.0) * (now - before)
            before = now

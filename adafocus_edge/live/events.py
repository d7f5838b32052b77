"""What is made of many windows: smoothed confidences, and events with a start, an end and a cooldown."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from adafocus_edge.errors import UsageError
from adafocus_edge.model.spec import class_name

if TYPE_CHECKING:
    from numpy.typing import NDArray


RULE = r"(.*?)(?:=(\d*\.?\d+))?((?:,(?:for|cooldown)=\d*\.?\d+)*)"


@dataclass(frozen=True)
class EventRule:
    """When a label becomes an event.

    Attributes:
        label: of a class.
        threshold: confidence, 0..1, that it must reach.
        for_s: seconds that it must stay there before the event starts, and stay below before it ends.
        cooldown_s: seconds after an end in which no new one starts.
    """

    label: str
    threshold: float = 0.8
    for_s: float = 0.0
    cooldown_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UsageError(f"event {self.label}: the threshold must be above 0 and at most 1, not {self.threshold:g}")
        for name in ("for_s", "cooldown_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"event {self.label}: {name} must be 0 or more seconds, not {getattr(self, name):g}")

    @classmethod
    def parse(cls, text: str) -> EventRule:
        """Read ``LABEL[=THRESHOLD][,for=SECONDS][,cooldown=SECONDS]``. Raises ``UsageError``."""
        found = re.fullmatch(RULE, text)
        assert found is not None  # the label takes whatever is there
        label, threshold, more = found.groups()
        label = class_name(label)
        given = {f"{name}_s": float(value) for name, value in re.findall(r",(for|cooldown)=([\d.]+)", more)}
        if not label:
            raise UsageError(f"--event {text}: LABEL=THRESHOLD,for=SECONDS,cooldown=SECONDS, such as fight=0.8,for=2")
        return cls(label, **given) if threshold is None else cls(label, float(threshold), **given)


class Smoother:
    """The mean of the probabilities of a source's last windows; one without an answer leaves it as it is."""

    def __init__(self, windows: int) -> None:
        self._kept: deque[NDArray[np.float32]] = deque(maxlen=windows)

    def add(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add a window's probabilities [C]; return the mean [C]."""
        self._kept.append(probabilities)
        return np.asarray(np.mean(np.stack(self._kept), axis=0, dtype=np.float32))

    def clear(self) -> None:
        """Forget the windows: the source was away."""
        self._kept.clear()


class EventDetector:
    """Follows one rule in one source. Feed it rising times."""

    def __init__(self, rule: EventRule) -> None:
        self.rule = rule
        self.active = False
        self.start_s = 0.0
        self.last_s = 0.0
        self.peak = 0.0
        self._above_since: float | None = None
        self._quiet_until = float("-inf")

    def update(self, time_s: float, confidence: float) -> Literal["start", "end"] | None:
        """Take a confidence; return what it makes of the event. ``start_s``, ``last_s`` and ``peak`` describe it."""
        rule = self.rule
        if confidence >= rule.threshold:
            if self._above_since is None:
                self._above_since = time_s
                self.peak = 0.0 if not self.active else self.peak
            self.last_s = time_s
            self.peak = max(self.peak, confidence)
            since = max(self._above_since, self._quiet_until)
            if not self.active and time_s - since >= rule.for_s and time_s >= self._quiet_until:
                self.active, self.start_s = True, self._above_since
                return "start"
            return None
        self._above_since = None
        if self.active and time_s - self.last_s >= rule.for_s:
            return self.end()
        return None

    def end(self) -> Literal["end"] | None:
        """End the event that is under way, if there is one: the source is gone, or the run is over."""
        self._above_since = None
        if not self.active:
            return None
        self.active = False
        self._quiet_until = self.last_s + self.rule.cooldown_s
        return "end"

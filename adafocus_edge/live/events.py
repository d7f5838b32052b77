"""Smoothed confidences over several windows, and events with a start, an end and a cooldown."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import numpy as np

from adafocus_edge.errors import UsageError
from adafocus_edge.model.spec import class_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


MAX_NAMED_CLASSES = 8
"""Classes that an error lists at most."""
RULE = r"(.*?)(?:=(\d*\.?\d+))?((?:,(?:for|cooldown)=\d*\.?\d+)*)"


@dataclass(frozen=True)
class EventRule:
    """A rule that turns the confidence of a class into events.

    Attributes:
        label: of the class.
        threshold: confidence to reach, above 0 and at most 1.
        for_s: seconds at or above the threshold before an event starts, and below it before the event ends.
        cooldown_s: seconds after an event in which no new one starts.

    Raises:
        UsageError: a number is out of range.
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
                raise UsageError(f"event {self.label}: {name} must be 0 seconds or more, not {getattr(self, name):g}")

    @classmethod
    def parse(cls, text: str) -> EventRule:
        """Parse ``LABEL[=THRESHOLD][,for=SECONDS][,cooldown=SECONDS]``. Raises ``UsageError``."""
        found = re.fullmatch(RULE, text)
        assert found is not None  # the label matches any text
        label, threshold, more = found.groups()
        label = class_name(label)
        given = {f"{name}_s": float(value) for name, value in re.findall(r",(for|cooldown)=([\d.]+)", more)}
        if not label:
            raise UsageError(
                f"--event {text}: must be LABEL=THRESHOLD,for=SECONDS,cooldown=SECONDS, such as fight=0.8,for=2"
            )
        return cls(label, **given) if threshold is None else cls(label, float(threshold), **given)

    def text(self) -> str:
        """Return the rule as :meth:`parse` reads it."""
        threshold, for_s, cooldown_s = (_plain(value) for value in (self.threshold, self.for_s, self.cooldown_s))
        return f"{self.label}={threshold},for={for_s},cooldown={cooldown_s}"


def _plain(number: float) -> str:
    """Return a number without an exponent."""
    return format(Decimal(repr(float(number))), "f")


def check_rules(rules: Sequence[EventRule], classes: Sequence[str]) -> None:
    """Raise ``UsageError`` if a rule is for a class that the model does not have, or is there twice."""
    for number, rule in enumerate(rules):
        if rule in rules[:number]:
            raise UsageError(f"event {rule.label}: the same rule twice: one is enough")
        if rule.label not in classes:
            known = ", ".join(classes[:MAX_NAMED_CLASSES]) + " ..." * (len(classes) > MAX_NAMED_CLASSES)
            raise UsageError(f"event {rule.label}: unknown class; the classes of this model are {known}")


class Smoother:
    """Averages the probabilities of a source's last windows.

    Args:
        windows: number of windows to average.
    """

    def __init__(self, windows: int) -> None:
        self._kept: deque[NDArray[np.float32]] = deque(maxlen=windows)

    def add(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add a window's probabilities [C]; return the mean [C]."""
        self._kept.append(probabilities)
        return np.asarray(np.mean(np.stack(self._kept), axis=0, dtype=np.float32))

    def clear(self) -> None:
        """Forget all windows: the source was lost."""
        self._kept.clear()


class EventDetector:
    """Detects the events of one rule in one source, from confidences in the order of their times.

    Args:
        rule: the rule.

    Attributes:
        active: whether an event is under way.
        start_s: when it started, in the source's seconds.
        last_s: when the confidence was last at or above the threshold.
        peak: highest confidence of the event.
    """

    def __init__(self, rule: EventRule) -> None:
        self.rule = rule
        self.active = False
        self.start_s = 0.0
        self.last_s = 0.0
        self.peak = 0.0
        self._above_since: float | None = None
        self._quiet_until = float("-inf")

    def update(self, time_s: float, confidence: float) -> Literal["start", "end"] | None:
        """Take the confidence at a time; return whether an event starts or ends. The attributes describe the event."""
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
        """End the event under way, if there is one, because the source is lost or the run is over."""
        self._above_since = None
        if not self.active:
            return None
        self.active = False
        self._quiet_until = self.last_s + self.rule.cooldown_s
        return "end"

"""The state of one source in a live run: its capture, its recurrent states, and its meters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from adafocus_edge.live.events import EventDetector, EventRule, Smoother
from adafocus_edge.live.meters import DropMeter, LatencyMeter, RateMeter
from adafocus_edge.live.status import SourceStatus
from adafocus_edge.system.timestamps import iso

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adafocus_edge.live.capture import Capture
    from adafocus_edge.live.messages import LiveFrame, ProvisionalResult
    from adafocus_edge.runtime.classifier import Step

STALE_S = 5.0
STALE_GLIMPSES = 3
"""A result is stale after this time, or the time of this many glimpses, whichever is longer."""
MIN_DROPS = 3
"""Drops of frames that are reported; fewer, as in a model's first steps, are ignored."""


class WindowState:
    """One recurrent state: one window after another, T glimpses each.

    Args:
        lane: of the model.
        offset: glimpses after the source's first one at which its first window begins.
    """

    def __init__(self, lane: int, offset: int) -> None:
        self.lane = lane
        self.offset = offset
        self.seen = 0  # glimpses of this window, including those skipped after an early exit
        self.steps: list[Step] = []
        self.step_ms: list[float] = []
        self.sure = False  # it has exited early

    def clear(self) -> None:
        """Begin a new window."""
        self.seen, self.steps, self.step_ms, self.sure = 0, [], [], False


class SourceState:
    """One source of the run.

    Args:
        capture: reads it.
        smooth: windows to average.
        rules: events to detect.
        kept: whether it stays in the status after it has ended; guests do not.
    """

    def __init__(self, capture: Capture, smooth: int, rules: Sequence[EventRule], *, kept: bool) -> None:
        self.capture = capture
        self.states: list[WindowState] = []  # empty until the model's thread admits the source
        self.over = False
        self.kept = kept
        self.latency = LatencyMeter()
        counters = capture.counters  # may go on from another source's
        self.frames_rate, self.glimpses_rate = RateMeter(counters.frames), RateMeter()
        self.glimpses = 0
        self.windows = 0
        self.since_begun = 0  # glimpses since all its states began together
        self.connection = 0
        self.latest: ProvisionalResult | None = None
        self.seen_s: float | None = None  # of the newest frame that was glimpsed, or skipped after an early exit
        self.seen_wall_s = 0.0
        self.seen_connection = 0
        self.drops = DropMeter(MIN_DROPS, counters.dropped, counters.picked)
        self.smoother = Smoother(smooth)
        self.detectors = [EventDetector(rule) for rule in rules]
        self.events: dict[EventDetector, tuple[int, str]] = {}  # numbers and keys of those under way

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.capture.name

    @property
    def under_way(self) -> list[WindowState]:
        """Its states whose first window has begun."""
        return [state for state in self.states if self.since_begun >= state.offset]

    def note_seen(self, frame: LiveFrame, connection: int) -> None:
        """Note that a frame has been glimpsed, or skipped after an early exit."""
        self.since_begun += 1
        self.seen_s, self.seen_wall_s, self.seen_connection = frame.captured_s, frame.wall_s, connection

    def sample_rates(self) -> None:
        """Sample the rates, so that they cover the last seconds."""
        self.frames_rate.rate(self.capture.counters.frames)
        self.glimpses_rate.rate(self.glimpses)

    def is_stale(self, glimpse_fps: float) -> bool:
        """Return whether the last result is out of date.

        It is where the source is lost, or was lost since, or where no frame has been glimpsed for a while.
        """
        if self.seen_s is None:
            return False
        if self.capture.state != "running" or self.capture.counters.connections != self.seen_connection:
            return True
        return time.monotonic() - self.seen_s > max(STALE_S, STALE_GLIMPSES / glimpse_fps)

    def status(self, glimpse_fps: float, preparing: str) -> SourceStatus:
        """Return the status of the source.

        Args:
            glimpse_fps: glimpses per second.
            preparing: what the model is being prepared for, in words; empty when it is ready.
        """
        capture = self.capture
        counters, newest = capture.counters, capture.newest
        return SourceStatus(
            name=capture.name,
            kind=capture.kind,
            state=capture.state,
            text=capture.text or preparing,
            width=counters.width,
            height=counters.height,
            frames=counters.frames,
            picked=counters.picked,
            glimpses=self.glimpses,
            windows=self.windows,
            dropped=counters.dropped,
            damaged=counters.damaged,
            reconnects=max(0, counters.connections - 1),
            waiting=capture.waiting,
            fps_in=round(self.frames_rate.rate(counters.frames), 2),
            fps_glimpsed=round(self.glimpses_rate.rate(self.glimpses), 2),
            latency_ms=self.latency.percentiles(),
            stale=self.is_stale(glimpse_fps),
            last_seen_at=None if self.seen_s is None else iso(self.seen_wall_s),
            dropping=self.drops.dropping,
            last_frame_age_s=None if newest is None else round(time.monotonic() - newest.captured_s, 3),
        )

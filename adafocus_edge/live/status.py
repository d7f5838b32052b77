"""The status of a live run: the one description that ``--status``, the page, its API and the metrics show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from adafocus_edge.live.capture import CaptureState, SourceKind
from adafocus_edge.live.meters import Percentiles
from adafocus_edge.system.sensors import Sensors


@dataclass(frozen=True)
class ModelStatus:
    """The model of a run and how it is used.

    Attributes:
        backend: that runs it.
        variant: of the model.
        classes: names, in the order of the logits.
        segments: T, glimpses of a window.
        frame_size: S, side of a preprocessed frame in pixels.
        patch_size: side of a patch in pixels.
        fit: how a picture is fitted into a frame.
        glimpse_fps: glimpses of each source per second.
        overlap: K, windows of a source that are under way at a time.
    """

    backend: str
    variant: str
    classes: list[str]
    segments: int
    frame_size: int
    patch_size: int
    fit: str
    glimpse_fps: float
    overlap: int


@dataclass(frozen=True)
class SourceStatus:
    """The status of one source.

    Attributes:
        name: of the source.
        kind: ``camera``, ``stream`` or ``file``.
        state: of its capture.
        text: the last notice, or what the model is being prepared for.
        width: of the newest frame, in pixels.
        height: of the newest frame, in pixels.
        frames: frames captured.
        picked: frames picked for a glimpse.
        glimpses: frames glimpsed, including those skipped after an early exit.
        windows: windows that gave a result.
        dropped: picked frames that were dropped because the queue was full.
        damaged: pictures that could not be decoded.
        reconnects: how often it was opened again.
        waiting: picked frames that wait for the model.
        fps_in: frames captured per second.
        fps_glimpsed: frames glimpsed per second.
        latency_ms: from a frame's capture to its result.
        stale: whether the last result is out of date, because the source is lost or no frame of it has been glimpsed.
        last_seen_at: when the newest glimpsed frame was captured, as ISO 8601 in UTC; None before the first.
        dropping: whether the model is too slow for it.
        last_frame_age_s: time since the newest frame was captured; None before the first.
    """

    name: str
    kind: SourceKind
    state: CaptureState
    text: str
    width: int
    height: int
    frames: int
    picked: int
    glimpses: int
    windows: int
    dropped: int
    damaged: int
    reconnects: int
    waiting: int
    fps_in: float
    fps_glimpsed: float
    latency_ms: Percentiles
    stale: bool
    last_seen_at: str | None
    dropping: bool
    last_frame_age_s: float | None


@dataclass(frozen=True)
class ListenerStatus:
    """The status of one output or other subscriber.

    Attributes:
        name: shown to users.
        waiting: messages in its queue.
        handled: messages processed.
        dropped: messages dropped.
        failed: messages whose processing failed.
        dropping: whether it is too slow.
    """

    name: str
    waiting: int
    handled: int
    dropped: int
    failed: int
    dropping: bool


@dataclass(frozen=True)
class RunStatus:
    """The status of a live run.

    Attributes:
        uptime_s: time since the run was made.
        model: the model and how it is used.
        sources: in the order in which they were added.
        listeners: in the order in which they subscribed.
        sensors: temperature and power of this machine.
        alive: whether the run is running.
        stalled_s: time since the model's thread last moved; 0 if the run is not running.
    """

    uptime_s: float
    model: ModelStatus
    sources: list[SourceStatus]
    listeners: list[ListenerStatus]
    sensors: Sensors
    alive: bool
    stalled_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--status``, the page and ``GET /api/status`` show."""
        status: dict[str, Any] = msgspec.to_builtins(self)
        return status

"""Settings of a live run, as a command line or a program gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adafocus_edge.errors import UsageError

FOREVER = "forever"
DEFAULT_GLIMPSE_FPS = 2.0
DEFAULT_WAITING = 2
DEFAULT_ROTATE_MB = 100.0
DEFAULT_ROTATE_MINUTES = 60.0
DEFAULT_KEEP = 10


@dataclass(frozen=True)
class LiveArguments:
    """The options of a live run, as given; the help of each field describes it."""

    glimpse_fps: float | None = None
    duration: float | None = None
    overlap: int | None = None
    smooth: int | None = None
    event: list[str] | None = None
    drop: Drop | None = None
    waiting: int | None = None
    realtime: bool = False
    loop: bool = False
    retries: str | None = None
    camera_size: str | None = None
    camera_fps: float | None = None
    camera_format: str | None = None
    record: Path | None = None
    rotate_mb: float | None = None
    rotate_minutes: float | None = None
    keep: int | None = None
    snapshots: Path | None = None
    webhook: str | None = None
    webhook_header: list[str] | None = None
    mqtt: str | None = None
    status: float | None = None
    log: Path | None = None


Drop = Literal["oldest", "newest", "never"]
"""The frame to drop when the model is slower than its sources: the one that waits longest, the new one, or none."""


@dataclass(frozen=True)
class CameraOptions:
    """Settings to request from a camera; None keeps the camera's own.

    Attributes:
        width: of its frames, in pixels.
        height: of its frames, in pixels.
        fps: frames per second.
        fourcc: pixel format as four characters, such as MJPG or YUYV.

    Raises:
        UsageError: ``fourcc`` is invalid.
    """

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    fourcc: str | None = None

    def __post_init__(self) -> None:
        if self.fourcc is not None and not (len(self.fourcc) == 4 and self.fourcc.isascii()):
            raise UsageError(f"--camera-format {self.fourcc}: must be four ASCII characters, such as MJPG or YUYV")


@dataclass(frozen=True)
class CaptureOptions:
    """Options for reading sources.

    Attributes:
        glimpse_fps: glimpses per second, in the source's own time.
        drop: frame to drop when the model is slower; None drops the oldest of a live source, and none of a file that
            is read as fast as possible.
        waiting: maximum number of frames that wait for the model, at least 1.
        realtime: whether files are played at their own pace instead of as fast as possible.
        loop: whether files start again at their end.
        retries: how often in a row a lost source is retried; None for no limit.
        patient: whether a source that has never connected is retried like one that was lost.
        camera: settings to request from cameras.
    """

    glimpse_fps: float = DEFAULT_GLIMPSE_FPS
    drop: Drop | None = None
    waiting: int = DEFAULT_WAITING
    realtime: bool = False
    loop: bool = False
    retries: int | None = None
    patient: bool = False
    camera: CameraOptions = field(default_factory=CameraOptions)


@dataclass(frozen=True)
class Printing:
    """What a run prints.

    Attributes:
        as_json: JSON lines instead of tables.
        logits: the logits of every step in JSON.
        provisional: provisional results, too.
        quiet: only errors on stderr.
    """

    as_json: bool = False
    logits: bool = False
    provisional: bool = False
    quiet: bool = False

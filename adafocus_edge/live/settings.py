"""The settings of a live run, as a command line or a program gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adafocus_edge.errors import UsageError

FOREVER = "forever"
DEFAULT_GLIMPSE_FPS = 2.0


@dataclass(frozen=True)
class LiveArguments:
    """What was given for a live run; the help of each option says what it does."""

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
"""What is left out when the model is slower than its sources: the frame that waits longest, the new one, or none."""


@dataclass(frozen=True)
class CameraOptions:
    """What is asked of a camera; None leaves it as it is.

    Attributes:
        width: pixels.
        height: pixels.
        fps: frames per second.
        fourcc: four letters of the pixel format, such as MJPG or YUYV.
    """

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    fourcc: str | None = None

    def __post_init__(self) -> None:
        if self.fourcc is not None and not (len(self.fourcc) == 4 and self.fourcc.isascii()):
            raise UsageError(f"--camera-format {self.fourcc}: four letters, such as MJPG or YUYV")


@dataclass(frozen=True)
class CaptureOptions:
    """How sources are read.

    Attributes:
        glimpse_fps: frames per second that are looked at, in the source's own time.
        drop: what is left out when the model is slower; None: the oldest of a live source, none of a file that is read
            as fast as possible.
        waiting: frames that may wait for the model, at least 1.
        realtime: whether files are played at their own pace instead of as fast as possible.
        loop: whether files begin anew at their end.
        retries: how often in a row a lost source is tried again; None for ever.
        patient: whether a source that was never there is tried again like one that was lost.
        camera: what is asked of cameras.
    """

    glimpse_fps: float = 2.0
    drop: Drop | None = None
    waiting: int = 2
    realtime: bool = False
    loop: bool = False
    retries: int | None = None
    patient: bool = False
    camera: CameraOptions = field(default_factory=CameraOptions)

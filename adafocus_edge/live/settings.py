"""Settings of a live run, as a command line or a program gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from adafocus_edge.errors import UsageError
from adafocus_edge.model.defaults import DEFAULT_GLIMPSE_FPS
from adafocus_edge.system.log_lines import LogFormat
from adafocus_edge.system.options import CAMERAS, LIVE, SINKS, Option

FOREVER = "forever"

DEFAULT_WAITING = 2
DEFAULT_ROTATE_MB = 100.0
DEFAULT_ROTATE_MINUTES = 60.0
DEFAULT_ROLL_S = 5.0
DEFAULT_KEEP = 10


Drop = Literal["oldest", "newest", "never"]
"""The frame to drop when the model is slower than its sources: the one that waits longest, the new one, or none."""

RecordMode = Literal["overlay", "copy"]
"""What is recorded: frames with the patch drawn on them, or the packets of the source."""
ClipMode = Literal["encode", "copy"]
"""What clips of events are made of: small frames that are encoded all the time, or the packets of the source."""


@dataclass(frozen=True)
class LiveArguments:
    """The options of a live run, as given; the help of each field describes it."""

    glimpse_fps: Annotated[
        float | None,
        Option(
            "Glimpse this many frames per second of a live source.",
            LIVE,
            default=f"{DEFAULT_GLIMPSE_FPS:g}",
            minimum=0.01,
            maximum=1000.0,
            metavar="FPS",
        ),
    ] = None
    duration: Annotated[
        float | None,
        Option("Stop after this time.", LIVE, default="run until interrupted", minimum=0.0, metavar="SECONDS"),
    ] = None
    overlap: Annotated[
        int | None,
        Option(
            "Run K staggered windows per source: a result every T/K glimpses.",
            LIVE,
            default="1",
            minimum=1,
            metavar="K",
        ),
    ] = None
    smooth: Annotated[
        int | None,
        Option("Average results over this many windows.", LIVE, default="1", minimum=1, maximum=1_000_000),
    ] = None
    drop: Annotated[
        Drop | None,
        Option(
            "Drop these frames when the model is slower than its sources.",
            LIVE,
            default="oldest, but never for files read as fast as possible",
        ),
    ] = None
    waiting: Annotated[
        int | None,
        Option("Let at most this many frames of each source wait.", LIVE, default=f"{DEFAULT_WAITING}", minimum=1),
    ] = None
    realtime: Annotated[bool, Option("Play files at their own pace, as live sources.", LIVE)] = False
    loop: Annotated[bool, Option("Play files over and over.", LIVE)] = False
    retries: Annotated[
        str | None,
        Option(
            f"Try a lost source again this many times in a row: a number, or `{FOREVER}`.",
            LIVE,
            metavar="N",
            default=f"{FOREVER}, but a single source that never connected fails at once",
        ),
    ] = None
    status: Annotated[
        float | None,
        Option(
            "Print the status of the run every SECONDS, even if the output is not a terminal.",
            LIVE,
            minimum=0.1,
            metavar="SECONDS",
        ),
    ] = None
    camera_size: Annotated[
        str | None, Option("Ask cameras for this frame size, such as 1280x720.", CAMERAS, metavar="WxH")
    ] = None
    camera_fps: Annotated[
        float | None, Option("Ask cameras for this frame rate.", CAMERAS, minimum=0.1, metavar="FPS")
    ] = None
    camera_format: Annotated[
        str | None,
        Option("Ask cameras for this pixel format, such as MJPG.", CAMERAS, metavar="FOURCC"),
    ] = None
    region: Annotated[
        list[str] | None,
        Option(
            "Let the model see only what is inside this polygon: [NAME=]X,Y X,Y X,Y ..., from 0,0 (top left) to 1,1; "
            "NAME limits it to one source.",
            CAMERAS,
            metavar="POLYGON",
        ),
    ] = None
    mask: Annotated[
        list[str] | None,
        Option(
            "Black out this polygon, given as for --region, for the model, viewers and all that is stored.",
            CAMERAS,
            metavar="POLYGON",
        ),
    ] = None
    event: Annotated[
        list[str] | None,
        Option(
            "Report an event while a class is likely: LABEL=THRESHOLD, optionally with ,for=SECONDS and "
            ",cooldown=SECONDS.",
            SINKS,
            metavar="RULE",
        ),
    ] = None
    snapshots: Annotated[
        Path | None, Option("Write a picture of each event into this folder.", SINKS, metavar="DIR")
    ] = None
    events: Annotated[
        Path | None,
        Option(
            "Keep a clip and a picture of each event in this folder, with an index; `serve` shows them.",
            SINKS,
            metavar="DIR",
        ),
    ] = None
    pre_roll: Annotated[
        float | None,
        Option(
            "Begin the clip of an event this long before what raised it.",
            SINKS,
            default=f"{DEFAULT_ROLL_S:g}",
            minimum=0.0,
            maximum=30.0,
            metavar="SECONDS",
        ),
    ] = None
    post_roll: Annotated[
        float | None,
        Option(
            "End the clip of an event this long after it.",
            SINKS,
            default=f"{DEFAULT_ROLL_S:g}",
            minimum=0.0,
            maximum=30.0,
            metavar="SECONDS",
        ),
    ] = None
    events_days: Annotated[
        float | None,
        Option("Delete events after this many days.", SINKS, default="never", minimum=0.01, metavar="DAYS"),
    ] = None
    events_gb: Annotated[
        float | None,
        Option(
            "Delete the oldest events when all take more than this, marked ones last.",
            SINKS,
            default="no limit",
            minimum=0.001,
            metavar="GB",
        ),
    ] = None
    events_video: Annotated[
        ClipMode | None,
        Option(
            "Encode small clips of events, or copy the source's own video where browsers can play it.",
            SINKS,
            default="copy with --record-mode copy, else encode",
        ),
    ] = None
    public_url: Annotated[
        str | None,
        Option(
            "Begin the links to clips and pictures in events with this address of the page, as users reach it.",
            SINKS,
            default="none: links are relative",
            metavar="URL",
        ),
    ] = None
    webhook: Annotated[
        str | None,
        Option("POST each event, or each result without --event, to this address as JSON.", SINKS, metavar="URL"),
    ] = None
    webhook_header: Annotated[
        list[str] | None,
        Option(
            "Add this HTTP header to webhook requests, such as 'Authorization: Bearer ...'.", SINKS, metavar="HEADER"
        ),
    ] = None
    mqtt: Annotated[
        str | None,
        Option("Publish to a broker: mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC.", SINKS, metavar="URL"),
    ] = None
    mqtt_discovery: Annotated[
        str | None,
        Option(
            "Announce events to Home Assistant below this MQTT prefix, usually homeassistant.", SINKS, metavar="PREFIX"
        ),
    ] = None
    record: Annotated[
        Path | None,
        Option("Record live sources as MP4 files in this folder.", SINKS, metavar="DIR"),
    ] = None
    record_mode: Annotated[
        RecordMode | None,
        Option(
            "Record frames with the patch drawn on them, or copy the source's own video, with the results beside it.",
            SINKS,
            default="overlay",
        ),
    ] = None
    rotate_mb: Annotated[
        float | None,
        Option(
            "Start a new MP4, results or log file at this size in MB.",
            SINKS,
            default=f"{DEFAULT_ROTATE_MB:g}",
            minimum=0.1,
            metavar="MB",
        ),
    ] = None
    rotate_minutes: Annotated[
        float | None,
        Option(
            "Start a new MP4 file after this many minutes.",
            SINKS,
            default=f"{DEFAULT_ROTATE_MINUTES:g}",
            minimum=0.05,
            metavar="MINUTES",
        ),
    ] = None
    keep: Annotated[
        int | None,
        Option(
            "Keep this many rotated files of each kind.",
            SINKS,
            default=f"{DEFAULT_KEEP}; MP4 files are all kept",
            minimum=1,
        ),
    ] = None
    log: Annotated[
        Path | None,
        Option("Also write the lines of stderr to this file, with the time of each.", SINKS, metavar="FILE"),
    ] = None
    log_format: Annotated[
        LogFormat | None,
        Option("Write the lines of stderr and of --log as text, or as JSON objects.", SINKS, default="text"),
    ] = None


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
        copy: whether the packets of streams and files are published, too, as fragments of MP4.
    """

    glimpse_fps: float = DEFAULT_GLIMPSE_FPS
    drop: Drop | None = None
    waiting: int = DEFAULT_WAITING
    realtime: bool = False
    loop: bool = False
    retries: int | None = None
    patient: bool = False
    camera: CameraOptions = field(default_factory=CameraOptions)
    copy: bool = False


@dataclass(frozen=True)
class Printing:
    """What a run prints.

    Attributes:
        as_json: JSON lines instead of text.
        logits: the logits of every step in JSON.
        provisional: provisional results, too.
        quiet: only errors on stderr.
    """

    as_json: bool = False
    logits: bool = False
    provisional: bool = False
    quiet: bool = False

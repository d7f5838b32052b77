"""The JSON of the API: one type per object, from which responses are built and the OpenAPI components are generated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import JSONResponse, Response

from adafocus_edge.live.events import EventRule
from adafocus_edge.live.messages import DropKind, NoticeKind
from adafocus_edge.media.zones import MAX_POINTS, MAX_POLYGONS, MIN_POINTS

Count = Annotated[int, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]
DateTime = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Pixels = Count | Annotated[float, Meta(ge=0)]
Patch = Annotated[
    list[Pixels],
    Meta(
        min_length=3, max_length=3,
        description="y, x, size in pixels of the S x S frame; corners of AdaFocus V2 lie between pixels.",
    ),
]  # fmt: skip
Fractions = Annotated[list[float], Meta(min_length=4, max_length=4)]
State = Literal["connecting", "running", "lost", "ended", "failed"]


class Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON object with these fields and no others, in this order."""


class Refusal(Object, frozen=True):
    """The body of every response with a status of 400 or above."""

    error: Annotated[str, Meta(description="One line that describes the error.")]


class Guess(Object, frozen=True):
    """A class and its softmax probability."""

    label: str
    class_id: Count
    confidence: Probability


class Step(Object, frozen=True):
    """One glimpse, and the most likely class after it."""

    step: Annotated[Count, Meta(description="Number of the glimpse, from 0.")]
    frame_index: Annotated[Count, Meta(description="Number of the frame in the source, from 0.")]
    time_s: Annotated[float | None, Meta(description="Time of that frame in the source; null if it has no times.")]
    patch: Patch
    label: str
    class_id: Count
    confidence: Probability
    picture: Annotated[
        str | UnsetType, Meta(description="The frame as JPEG in base64; only of an upload with `frames=1`.")
    ] = UNSET
    box: Annotated[
        Fractions | UnsetType,
        Meta(description="The patch in the picture: left, top, right, bottom, as fractions; only with `frames=1`."),
    ] = UNSET


class Result(Object, frozen=True):
    """The result of one clip."""

    source: str
    start_s: Annotated[float | None, Meta(description="Start, in seconds of the source; null if it has no times.")]
    end_s: Annotated[float | None, Meta(description="End, in seconds of the source; null if it has no times.")]
    label: Annotated[str, Meta(description="The most likely class.")]
    class_id: Count
    confidence: Probability
    top: Annotated[list[Guess], Meta(description="The most likely classes, best first.")]
    steps: Annotated[list[Step], Meta(description="The glimpses, in the order in which they were taken.")]
    steps_used: Annotated[Count, Meta(description="Number of glimpses.")]
    exited_early: Annotated[bool, Meta(description="Whether the model stopped before the last glimpse.")]
    latency_ms: Annotated[float, Meta(description="From opening the clip, or capturing its last frame, to the result.")]
    model_ms: Annotated[float, Meta(description="Share of the latency that is spent in the model.")]
    backend: str
    variant: str


class Window(Result, frozen=True, kw_only=True):
    """The result of one window of a live source."""

    window_model_ms: Annotated[float, Meta(description="Model time of all glimpses of the window.")]
    at: Annotated[DateTime, Meta(description="When the last glimpse was captured.")]
    cut: Annotated[bool, Meta(description="Whether the window ended early: the run ended, or the source was lost.")]
    smoothed: Annotated[
        list[Guess] | UnsetType, Meta(description="Average over the last windows; only with --smooth.")
    ] = UNSET
    wall_s: Annotated[float, Meta(description="The same as `at`, in seconds since 1970.")]


class Event(Object, frozen=True):
    """The start or the end of an event: a label that stays above its threshold."""

    event: Literal["start", "end"]
    id: Annotated[Count, Meta(description="The same for start and end, unique within a run.")]
    source: str
    label: str
    start_s: Annotated[float, Meta(description="Start, in seconds of the source.")]
    end_s: Annotated[float | None, Meta(description="End, in seconds of the source; null at the start.")]
    peak: Annotated[Probability, Meta(description="Highest confidence so far.")]
    at: DateTime
    wall_s: Annotated[float, Meta(description="The same as `at`, in seconds since 1970.")]
    start_wall_s: Annotated[float, Meta(description="Start, in seconds since 1970.")]
    key: Annotated[str | UnsetType, Meta(description="Its name in the archive; only with --events.")] = UNSET
    page: Annotated[str | UnsetType, Meta(description="Address that shows it; only with --events.")] = UNSET
    clip: Annotated[str | UnsetType, Meta(description="Address of its clip; only with --events.")] = UNSET
    picture: Annotated[str | UnsetType, Meta(description="Address of its picture; only with --events.")] = UNSET


class ArchivedEvent(Object, frozen=True, kw_only=True):
    """An event in the archive."""

    key: Annotated[str, Meta(description="Its name, which addresses of its clip and its picture hold.")]
    source: str
    label: str
    started_at: DateTime
    ended_at: Annotated[DateTime | None, Meta(description="Null while the event lasts.")]
    peak: Annotated[Probability, Meta(description="Highest confidence.")]
    cut: Annotated[bool, Meta(description="Whether the run ended before the event did.")]
    clip_s: Annotated[float | None, Meta(description="Length of the clip in seconds; null if there is none.")]
    picture: Annotated[bool, Meta(description="Whether there is a picture.")]
    bytes: Annotated[Count, Meta(description="Size of both files.")]
    mark: Annotated[Literal["right", "wrong"] | None, Meta(description="What a person says of it.")]
    correct: Annotated[str | None, Meta(description="Of a wrong one: the class that it is, if that was given.")]


class Archive(Object, frozen=True):
    """A page of archived events."""

    events: Annotated[list[ArchivedEvent], Meta(description="Newest first.")]
    total: Annotated[Count, Meta(description="Number of events that match in all.")]
    sources: Annotated[list[str], Meta(description="Sources that occur in the archive.")]
    labels: Annotated[list[str], Meta(description="Labels that occur in the archive.")]
    classes: Annotated[list[str], Meta(description="Classes of the model.")]


class Judgement(Object, frozen=True):
    """What a person says of an event."""

    mark: Annotated[Literal["right", "wrong"] | None, Meta(description="Null removes the mark.")]
    correct: Annotated[str | None, Meta(description="With `wrong`: the class that it is.")] = None


class Notice(Object, frozen=True, kw_only=True):
    """A change of a source's state, or frames or messages that are dropped."""

    source: Annotated[str, Meta(description="Name of the source, or of the output that drops messages.")]
    notice: Literal[NoticeKind, DropKind]
    text: str
    at: DateTime
    error: Annotated[str | UnsetType, Meta(description="The text again; only if the source failed.")] = UNSET
    wall_s: Annotated[float, Meta(description="The same as `at`, in seconds since 1970.")]


class Latency(Object, frozen=True):
    """Percentiles of the latency from capture to provisional result, in ms; null before the first result."""

    p50: float | None
    p95: float | None
    p99: float | None


class Source(Object, frozen=True):
    """The state of a source and its counters."""

    name: str
    kind: str
    state: State
    text: Annotated[str, Meta(description="One line on the state; may be empty.")]
    width: Annotated[Count, Meta(description="Width of the newest frame in pixels; 0 before the first.")]
    height: Annotated[Count, Meta(description="Height of the newest frame in pixels; 0 before the first.")]
    frames: Annotated[Count, Meta(description="Frames captured.")]
    picked: Annotated[Count, Meta(description="Frames selected for the model.")]
    glimpses: Annotated[Count, Meta(description="Frames that the model processed.")]
    windows: Annotated[Count, Meta(description="Windows finished.")]
    dropped: Annotated[Count, Meta(description="Selected frames that were dropped because the model was busy.")]
    damaged: Annotated[Count, Meta(description="Frames that could not be decoded.")]
    reconnects: Annotated[Count, Meta(description="Times the source was reconnected.")]
    waiting: Annotated[Count, Meta(description="Frames waiting for the model.")]
    fps_in: Annotated[float, Meta(description="Frames captured per second.")]
    fps_glimpsed: Annotated[float, Meta(description="Frames processed per second.")]
    latency_ms: Latency
    stale: Annotated[
        bool, Meta(description="Whether the last result is out of date, for example because the source was lost.")
    ]
    last_seen_at: Annotated[DateTime | None, Meta(description="When the frame of the last result was captured.")]
    dropping: Annotated[bool, Meta(description="Whether frames are being dropped because the model is too slow.")]
    last_frame_age_s: Annotated[float | None, Meta(description="Time since the newest frame; null before the first.")]
    crop: Annotated[
        Fractions | None,
        Meta(description="Part of the picture that the model sees: left, top, right, bottom, as fractions."),
    ]


class Listener(Object, frozen=True):
    """An output of the run, and what it did with the messages it was sent."""

    name: str
    waiting: Annotated[Count, Meta(description="Messages in its queue.")]
    handled: Annotated[Count, Meta(description="Messages processed.")]
    dropped: Annotated[Count, Meta(description="Messages dropped because the queue was full.")]
    failed: Annotated[Count, Meta(description="Messages whose processing failed.")]
    dropping: Annotated[bool, Meta(description="Whether messages are being dropped because the output is too slow.")]


class Status(Object, frozen=True):
    """The state of the run."""

    uptime_s: float
    model: Annotated[dict[str, Any], Meta(description="Backend, variant, classes and shapes of the model.")]
    sources: list[Source]
    listeners: list[Listener]
    sensors: Annotated[dict[str, Any], Meta(description="Temperature and power of the device, where it reports them.")]
    alive: Annotated[bool, Meta(description="Whether the model's loop runs.")]
    stalled_s: Annotated[float, Meta(description="Time since the model's loop last moved.")]
    now_s: Annotated[float, Meta(description="The server's clock, in seconds since 1970.")]


class Results(Object, frozen=True):
    """Windows, newest first."""

    results: list[Window]


class Events(Object, frozen=True):
    """Events and notices, each newest first."""

    events: list[Event]
    notices: list[Notice]


Coordinate = Annotated[float, Meta(ge=0, le=1)]
Polygon = Annotated[
    list[Annotated[list[Coordinate], Meta(min_length=2, max_length=2)]],
    Meta(
        min_length=MIN_POINTS, max_length=MAX_POINTS,
        description="Corners as x, y: fractions of the picture's width and height, from its top left corner.",
    ),
]  # fmt: skip
Polygons = Annotated[list[Polygon], Meta(max_length=MAX_POLYGONS)]
Version = Annotated[str, Meta(description="The version that the change is based on.")]
Seconds = Annotated[float, Meta(ge=0)]
Threshold = Annotated[float, Meta(gt=0, le=1)]


class Invalid(Object, frozen=True):
    """The body of a refusal with status 422."""

    error: Annotated[str, Meta(description="One line that describes the error.")]
    fields: Annotated[dict[str, str], Meta(description="A line for each field that is wrong, by its name.")]


class ConfiguredSource(Object, frozen=True, kw_only=True):
    """A source of the configuration file."""

    name: Annotated[str | None, Meta(description="Null if the file names none: its address is its name.")]
    address: Annotated[str, Meta(description="With *** in place of passwords and tokens.")]
    paused: bool
    regions: Polygons
    masks: Polygons
    running: Annotated[list[str], Meta(description="Names of its sources in effect; several for a folder of files.")]


class ConfiguredRule(Object, frozen=True):
    """An event rule."""

    label: str
    threshold: Threshold
    for_s: Seconds
    cooldown_s: Seconds


class Configuration(Object, frozen=True, kw_only=True):
    """Sources and event rules."""

    file: Annotated[str | None, Meta(description="Name of the configuration file; null without one.")]
    version: Annotated[str, Meta(description="To be sent with changes.")]
    changed: Annotated[bool, Meta(description="Whether the file was changed since it was read: load it to use it.")]
    problem: Annotated[str | None, Meta(description="Why the file cannot be used as it is.")]
    sources: list[ConfiguredSource]
    rules: list[ConfiguredRule]
    sources_fixed: Annotated[str | None, Meta(description="Why sources cannot be changed; null if they can.")]
    rules_fixed: Annotated[str | None, Meta(description="Why rules cannot be changed; null if they can.")]
    classes: Annotated[list[str], Meta(description="Classes of the model.")]


class SourceChange(Object, frozen=True, kw_only=True):
    """A source, as it shall be."""

    version: Version
    name: str
    address: Annotated[
        str | None,
        Meta(description="Null keeps it. *** keeps user and password if scheme, host and port do not change."),
    ] = None
    paused: bool = False
    regions: Annotated[Polygons, Meta(description="The model sees only what is inside; none for all.")] = []
    masks: Annotated[Polygons, Meta(description="Blacked out for the model, viewers and all that is stored.")] = []


class EventChange(Object, frozen=True, kw_only=True):
    """An event rule, as it shall be."""

    version: Version
    label: Annotated[str, Meta(description="A class of the model.")]
    threshold: Threshold = EventRule.threshold
    for_s: Seconds = EventRule.for_s
    cooldown_s: Seconds = EventRule.cooldown_s


class SourceTest(Object, frozen=True, kw_only=True):
    """A source to open for one frame."""

    number: Annotated[Count | None, Meta(description="Of the source in the configuration; null for a new one.")] = None
    name: str = ""
    address: Annotated[str | None, Meta(description="As for a change of that source.")] = None


class OpenedCamera(Object, frozen=True):
    """A browser camera that was opened."""

    id: Annotated[str, Meta(description="Secret: whoever has it may send pictures.")]
    source: Annotated[str, Meta(description="Name of the camera's source.")]


class Health(Object, frozen=True):
    """Whether the model's loop makes progress."""

    status: Literal["ok", "failing"]


COMPONENTS: tuple[type[Object], ...] = (
    Refusal, Guess, Step, Result, Window, Event, Notice, Latency, Source, Listener, Status, Results, Events,
    OpenedCamera, Health, ArchivedEvent, Archive, Judgement, Invalid, ConfiguredSource, ConfiguredRule, Configuration,
    SourceChange, EventChange, SourceTest,
)  # fmt: skip
"""The types that the API's description names."""


def respond(answer: Object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with an object as JSON."""
    return JSONResponse(msgspec.to_builtins(answer), status, headers)

"""Messages of a live run: frames, copied video, provisional results, windows, events, notices and drops."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

from adafocus_edge.system.timestamps import iso

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from adafocus_edge.live.events import EventRule
    from adafocus_edge.model.spec import Patch
    from adafocus_edge.runtime.classifier import Guess, Result, Step

NoticeKind = Literal["connected", "lost", "reconnected", "changed", "stalled", "resumed", "ended", "failed"]
DropKind = Literal["dropping", "recovered"]
RETRYING = "; retrying in "
"""Stands between the reason and the pause in the text of a notice that a source is lost."""


@dataclass(frozen=True)
class CopiedVideo:
    """A source's own video, whose packets are stored as they are, while its codec and its size stay the same.

    Attributes:
        opening: how often the source had been opened.
        codec: name of the codec, such as ``h264``.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        head: what an MP4 file of it begins with.
    """

    opening: int
    codec: str
    width: int
    height: int
    head: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class LiveFragment:
    """Some seconds of a source's own video, as a piece of fragmented MP4. A file is a head and fragments, in order.

    Attributes:
        source: its name.
        video: that it continues. The first fragment of a video begins with a key frame.
        data: its boxes.
        is_key: whether it begins with a key frame, so that a file may begin with it.
        start: when its first packet is decoded, in ticks of :data:`~adafocus_edge.media.packet_clock.COPY_TICKS`.
        pts: of each packet, in the stream's ticks; None where the stream gives no time.
        shown: when the picture of each packet is shown, by the clock of ``start``.
        captured_s: when each packet arrived, by ``time.monotonic``.
        wall_s: when the first packet arrived, in seconds since 1970.
    """

    source: str
    video: CopiedVideo
    data: bytes
    is_key: bool
    start: int
    pts: tuple[int | None, ...]
    shown: tuple[int, ...]
    captured_s: tuple[float, ...]
    wall_s: float


class PacketOf(NamedTuple):
    """The packet that a frame was decoded from, in a source whose packets are stored.

    Attributes:
        opening: how often the source had been opened.
        pts: of the packet, in the stream's ticks; None where it is unknown.
        arrived_s: when it arrived, by ``time.monotonic``; None if unknown. The decoder may be seconds behind.
        playable: whether clips of events can be cut from this video: browsers play it, and it comes from a stream.
    """

    opening: int
    pts: int | None
    arrived_s: float | None
    playable: bool


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A captured frame.

    Attributes:
        source: name of its source.
        index: its number since the run began, from 0; continues after a reconnection.
        captured_s: time of capture, by ``time.monotonic``.
        time_s: time of capture in seconds since the source's first frame; for files, its presentation time.
        wall_s: time of capture in seconds since 1970 (for files: when it was decoded).
        to_rgb: returns the frame as RGB uint8 [H, W, 3]; converted only when called. Safe from any thread.
        sample_aspect: a pixel's width over its height; 1 for square pixels.
        packet: that it was decoded from, where packets are stored.
    """

    source: str
    index: int
    captured_s: float
    time_s: float
    wall_s: float
    to_rgb: Callable[[], NDArray[Any]]
    sample_aspect: Fraction = Fraction(1)
    packet: PacketOf | None = None


@dataclass(frozen=True)
class ProvisionalResult:
    """The state of recognition in a source after one more glimpse.

    Attributes:
        source: its name.
        frame: the frame that was glimpsed.
        step: the glimpse, in the recurrent state that has seen the most; its ``step`` counts within that state's
            window.
        top: the best classes so far, best first.
        settled: whether at least half a window has been seen, or the window has exited early.
        latency_ms: from the frame's capture to this result.
    """

    source: str
    frame: LiveFrame
    step: Step
    top: tuple[Guess, ...]
    settled: bool
    latency_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--provisional`` prints and the page's live data contain."""
        return {
            "source": self.source,
            "provisional": True,
            "time_s": round(self.frame.time_s, 4),
            "at": iso(self.frame.wall_s),
            "frame_index": self.frame.index,
            "step": self.step.step,
            "patch": list(self.step.patch),
            **guess_json(self.top[0]),
            "top": [guess_json(guess) for guess in self.top],
            "settled": self.settled,
            "latency_ms": round(self.latency_ms, 3),
        }


@dataclass(frozen=True)
class Window:
    """A finished window of a source.

    Attributes:
        source: its name.
        result: the result over its glimpses.
        smoothed: the best classes over the last windows, best first; None without ``--smooth``.
        wall_s: when its last glimpse was captured, in seconds since 1970.
        cut: whether it ended early, because the run ended or the source was lost.
    """

    source: str
    result: Result
    smoothed: tuple[Guess, ...] | None
    wall_s: float
    cut: bool

    def to_json(self, *, logits: bool = False) -> dict[str, Any]:
        """Return the object that ``--json`` prints: that of a clip, with the fields of live windows added."""
        entry = {
            **self.result.to_json(logits=logits),
            "window_model_ms": round(sum(self.result.step_ms), 3),
            "at": iso(self.wall_s),
            "cut": self.cut,
        }
        if self.smoothed is not None:
            entry["smoothed"] = [guess_json(guess) for guess in self.smoothed]
        return entry


@dataclass(frozen=True, eq=False)
class Event:
    """The start or the end of an event: a label that stayed above its threshold for long enough.

    Attributes:
        source: its name.
        kind: ``start`` or ``end``.
        number: the same for both, from 1 within a run.
        label: of the class.
        start_s: when the label first rose above the threshold, in the source's seconds.
        end_s: when it was last above the threshold; None at the start.
        peak: highest confidence so far.
        wall_s: when the event started or ended, in seconds since 1970.
        frame: the newest frame that was glimpsed.
        patch: (y, x, size) of the glimpse in that frame, in pixels of the preprocessed frame.
        key: its name in the archive of events, the same for both kinds.
        cut: whether it ended because its source was lost or the run was over.
        archive_url: address of the page that serves the archive, or empty for addresses relative to it; None without
            an archive.
    """

    source: str
    kind: Literal["start", "end"]
    number: int
    label: str
    start_s: float
    end_s: float | None
    peak: float
    wall_s: float
    frame: LiveFrame
    patch: Patch
    key: str = ""
    cut: bool = False
    archive_url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that outputs write and send; with an archive, it has links."""
        links: dict[str, Any] = {}
        if self.archive_url is not None:
            name = quote(self.key)
            at = f"{self.archive_url}/api/archive/{name}"
            links = {
                "key": self.key,
                "page": f"{self.archive_url}/events#{name}",
                "clip": f"{at}/clip.mp4",
                "picture": f"{at}/picture.jpg",
            }
        return {
            "event": self.kind,
            "id": self.number,
            "source": self.source,
            "label": self.label,
            "start_s": round(self.start_s, 4),
            "end_s": None if self.end_s is None else round(self.end_s, 4),
            "peak": round(self.peak, 6),
            "at": iso(self.wall_s),
            **links,
        }


@dataclass(frozen=True)
class Notice:
    """A change in the state of a source.

    Attributes:
        source: its name.
        kind: connected, lost (will be retried), reconnected, changed (its resolution or its decoder), stalled (no
            glimpse for a while), resumed (glimpsed again), ended, or failed (no more attempts).
        text: one line for people, without any password.
        wall_s: when, in seconds since 1970.
    """

    source: str
    kind: NoticeKind
    text: str
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the object that outputs write and send."""
        entry = {"source": self.source, "notice": self.kind, "text": self.text, "at": iso(self.wall_s)}
        return {**entry, "error": self.text} if self.kind == "failed" else entry


@dataclass(frozen=True)
class Drops:
    """A report of drops: frames, if the model is too slow, or messages, if an output is.

    Attributes:
        source: name of the source or of the output.
        kind: ``dropping`` when drops begin and while they last, ``recovered`` when they are over.
        text: one line for people, with the number of drops and the total.
        wall_s: when, in seconds since 1970.
    """

    source: str
    kind: DropKind
    text: str
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the object that the page and its API show among the notices."""
        return {"source": self.source, "notice": self.kind, "text": self.text, "at": iso(self.wall_s)}


@dataclass(frozen=True)
class Rules:
    """The rules of events that apply from now on. Outputs that depend on them follow; it is not printed or sent.

    Attributes:
        rules: all of them.
    """

    rules: tuple[EventRule, ...]


Message = LiveFrame | LiveFragment | ProvisionalResult | Window | Event | Notice | Drops | Rules


def without_pixels(message: Message) -> Message:
    """Return a message that holds no decoded frame, for those who let messages wait and do not look at pictures.

    Only results and events change: the ``to_rgb`` of their frame raises ``AssertionError``.
    """
    if isinstance(message, (ProvisionalResult, Event)):
        return replace(message, frame=replace(message.frame, to_rgb=_no_pixels))
    return message


def _no_pixels() -> NDArray[Any]:
    raise AssertionError("the pixels were let go when the message was queued: set needs_pixels")


def guess_json(guess: Guess) -> dict[str, Any]:
    """Return a class and its confidence as a JSON object."""
    return {"label": guess.label, "class_id": guess.class_id, "confidence": round(guess.confidence, 6)}

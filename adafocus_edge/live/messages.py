"""What a live run tells those who listen: frames, looks, windows, events and notices, and the listeners' base."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from adafocus_edge.system.timestamps import iso

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from adafocus_edge.runtime.classifier import Guess, Result, Step

NoticeKind = Literal["connected", "lost", "reconnected", "changed", "stalled", "resumed", "ended", "failed"]
MAX_REPORTED = 100
PATIENCE_S = 0.2
"""How often one that waits for a full queue looks whether it should still."""
CLOSE_S = 5.0
"""How long a listener gets at the end to finish what waits in its queue."""


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A captured frame.

    Attributes:
        source: name of its source.
        index: its number since the run began, from 0; reconnections do not start it anew.
        captured_s: when it was there, by ``time.monotonic``.
        time_s: when it was there, in seconds since the source's first frame; for files, when it is shown.
        wall_s: when it was there, in seconds since 1970 (for files: when it was decoded).
        to_rgb: makes RGB uint8 [H, W, 3] of it; only frames that are looked at pay for that. Safe from any thread.
        sample_aspect: a pixel's width over its height; 1 for square ones.
    """

    source: str
    index: int
    captured_s: float
    time_s: float
    wall_s: float
    to_rgb: Callable[[], NDArray[Any]]
    sample_aspect: Fraction = Fraction(1)


@dataclass(frozen=True)
class ProvisionalResult:
    """A provisional result: what is known of a source after one more glimpse.

    Attributes:
        source: its name.
        frame: that was glimpsed.
        step: the glimpse, of the state that has seen the most; its ``step`` counts within that state's window.
        top: the best classes so far, best first.
        settled: whether at least half a window stands behind this, or the window has exited early.
        latency_ms: from the frame's capture to this.
    """

    source: str
    frame: LiveFrame
    step: Step
    top: tuple[Guess, ...]
    settled: bool
    latency_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return what ``--provisional`` and the page's live data show."""
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
        result: what was found in it.
        smoothed: the best classes over the last windows, best first; None where that was not asked for.
        wall_s: when its last glimpse was captured, in seconds since 1970.
        cut: whether it ended before its time, by the end of the run or a source that was lost.
    """

    source: str
    result: Result
    smoothed: tuple[Guess, ...] | None
    wall_s: float
    cut: bool

    def to_json(self, *, logits: bool = False) -> dict[str, Any]:
        """Return design.md's object for ``--json`` with what live windows add."""
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
    """A label that stood above its threshold for long enough: told when it starts, and again when it has ended.

    Attributes:
        source: its name.
        kind: ``start`` or ``end``.
        number: the same for both, from 1 within a run.
        label: of the class.
        start_s: when it first stood above the threshold, in the source's seconds.
        end_s: when it last did; None at the start.
        peak: highest confidence so far.
        wall_s: when it started or ended, in seconds since 1970.
        frame: that was seen last.
        patch: (y, x, size) that was looked at in it, in pixels of the preprocessed frame.
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
    patch: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """Return the event as sinks tell it."""
        return {
            "event": self.kind,
            "id": self.number,
            "source": self.source,
            "label": self.label,
            "start_s": round(self.start_s, 4),
            "end_s": None if self.end_s is None else round(self.end_s, 4),
            "peak": round(self.peak, 6),
            "at": iso(self.wall_s),
        }


@dataclass(frozen=True)
class Notice:
    """Something that happened to a source.

    Attributes:
        source: its name.
        kind: connected, lost (to be tried again), reconnected, changed (its resolution), stalled (no glimpse for a
            while), resumed (glimpsed again), ended, or failed (given up).
        text: one line for people, without any password.
        wall_s: when, in seconds since 1970.
    """

    source: str
    kind: NoticeKind
    text: str
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the notice as sinks tell it."""
        entry = {"source": self.source, "notice": self.kind, "text": self.text, "at": iso(self.wall_s)}
        return {**entry, "error": self.text} if self.kind == "failed" else entry


DropKind = Literal["dropping", "recovered"]


@dataclass(frozen=True)
class Drops:
    """Frames that the model, or messages that an output, is too slow for: when that begins, goes on, and is over.

    Attributes:
        source: name of the source or of the output.
        kind: whether it goes on, or is over.
        text: one line for people, with how many of how many.
        wall_s: when, in seconds since 1970.
    """

    source: str
    kind: DropKind
    text: str
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """Return it as the page and its API show it, among the notices."""
        return {"source": self.source, "notice": self.kind, "text": self.text, "at": iso(self.wall_s)}


Message = LiveFrame | ProvisionalResult | Window | Event | Notice | Drops


class Subscriber(Protocol):
    """What a live run needs of those it tells, and shows of them in its status."""

    name: str
    dropped: int
    failed: int
    handled: int

    @property
    def waiting(self) -> int:
        """How many messages wait."""

    def enqueue(self, message: Message) -> None:
        """Take a message; must not block."""


class OnceReporter:
    """Tells each trouble of something the first time only, and no more than :data:`MAX_REPORTED` of them.

    Args:
        name: of what has the trouble.
        tell: takes one line.
    """

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self._name, self._tell = name, tell
        self._reported: set[str] = set()

    def __call__(self, error: Exception) -> None:
        """Tell an error, unless its text was told before."""
        text = f"{self._name}: {str(error) or type(error).__name__}"
        if text not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(text)
            self._tell(text)


class Sink:
    """Receives messages of a live run. A sub-class says which it wants, and does its work in a thread of its own.

    A listener never holds the run up: where its queue is full, the message is dropped and counted. What ``process``
    raises is told once for each kind of error, and counted; the listener goes on.

    Args:
        name: for people, such as the file or address it writes to, without any password.
        waiting: messages that may wait.
        tell: takes one line about something that went wrong.
    """

    wants: ClassVar[tuple[type, ...]] = ()
    """The types of message it is handed."""
    local: ClassVar[bool] = False
    """Whether it is only as slow as this machine, and not as a network."""
    unit: ClassVar[str] = "messages"
    """What it is handed, for people."""

    def __init__(self, name: str, waiting: int, tell: Callable[[str], None]) -> None:
        self.name = name
        self.offered = 0
        self.dropped = 0
        self.failed = 0
        self.handled = 0
        self.patient_until: threading.Event | None = None  # until then, a full queue is waited for
        self._tell_once = OnceReporter(name, tell)
        self._queue: queue.Queue[Message | None] = queue.Queue(waiting)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"listener {name}", daemon=True)
        self._thread.start()

    def enqueue(self, message: Message) -> None:
        """Take a message, or drop and count it, from any thread; never blocks, unless ``patient_until`` is given."""
        if not isinstance(message, self.wants) or self._stopping.is_set():
            return
        self.offered += 1
        while True:
            waits = self.patient_until is not None and not self.patient_until.is_set()
            try:
                self._queue.put(message, block=waits, timeout=PATIENCE_S)
                return
            except queue.Full:
                if not waits:
                    self.dropped += 1
                    return

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return self._queue.qsize()

    def process(self, message: Message) -> None:
        """Do the work for one message, in the listener's thread; may block and may raise."""
        raise NotImplementedError

    def idle(self) -> None:
        """Called in the listener's thread about every second while nothing comes; may do work that is due."""

    def finish(self) -> None:
        """Finish the output, in the listener's thread, once, at the end."""

    def close(self, within_s: float = CLOSE_S) -> None:
        """Handle what waits, finish, and end the thread; what is not done in time is dropped and counted."""
        if not self._stopping.is_set():
            self._stopping.set()
            deadline = time.monotonic() + within_s
            while True:
                try:
                    self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
                    break
                except queue.Full:  # make room for the end
                    try:
                        self._queue.get_nowait()
                        self.dropped += 1
                    except queue.Empty:
                        pass
            self._thread.join(max(0.1, deadline - time.monotonic()))
            if self._thread.is_alive():
                self._drop_waiting()

    def _drop_waiting(self) -> None:
        """Count what still waits, and let the thread end once it is done with the message in its hands."""
        with suppress(queue.Empty):
            while True:
                self.dropped += self._queue.get_nowait() is not None
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _run(self) -> None:
        while True:
            try:
                message = self._queue.get(timeout=1.0)
            except queue.Empty:
                self._guarded(self.idle)
                continue
            if message is None:
                break
            self._guarded(self.process, message)
            self.handled += 1
        self._guarded(self.finish)

    def _guarded(self, work: Callable[..., None], *arguments: Message) -> None:
        try:
            work(*arguments)
        except Exception as error:  # a sink's trouble is never the run's
            self.failed += 1
            self._tell_once(error)


def guess_json(guess: Guess) -> dict[str, Any]:
    """Return a class and its confidence as JSON has them."""
    return {"label": guess.label, "class_id": guess.class_id, "confidence": round(guess.confidence, 6)}


OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON lets stand and terminals or editors obey: further control codes, line breaks, changes of direction."""


def to_line(entry: dict[str, Any]) -> str:
    """Return one line of JSON."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(entry, ensure_ascii=False))

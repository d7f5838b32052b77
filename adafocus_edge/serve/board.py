"""The current state and the last results of a live run, kept for new clients and streamed to connected ones."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Drops, Event, Notice, ProvisionalResult, Window
from adafocus_edge.serve import schemas
from adafocus_edge.serve.pictures import box_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from adafocus_edge.live.messages import Message
    from adafocus_edge.serve.options import ServeOptions
    from adafocus_edge.serve.run import Run

WAITING = 512
"""Queue length: messages of the run that wait to be encoded as JSON."""
CLIENT_WAITING = 256
"""Queue length per client; when it is full, the oldest message is dropped."""
CURVE_S = 120.0
"""Time span of the page's confidence curve."""
BACK_S = 5.0
"""A source's clock that goes back by more was set: its curve begins again."""
CURVE_POINTS = 1200
"""Points kept per source."""
CURVE_CLASSES = 3
"""Classes per point."""
KEEP_ALIVE_S = 10.0
"""An idle connection gets a comment after this time, so that no proxy closes it."""
POLL_S = 0.5
"""How often an idle connection checks whether the server is shutting down."""
CAMERA_FPS = 8.0
"""Minimum rate of a browser camera for a model with motion input."""
MAX_CAMERA_FPS = 30.0

Fractions = list[float]
"""Left, top, right, bottom of a rectangle, as fractions of a picture's width and height."""
Row = TypeVar("Row", schemas.Window, schemas.Event, schemas.Notice)


class Watcher:
    """Queue of one client of the live stream, oldest message first. Used in the server's event loop only."""

    def __init__(self, since: int, waiting: int = CLIENT_WAITING) -> None:
        self.dropped = 0
        self._since = since
        self._waiting: deque[bytes] = deque(maxlen=waiting)
        self._filled = asyncio.Event()

    def enqueue(self, number: int, message: bytes) -> None:
        """Add a message; drop the oldest if the queue is full."""
        if number <= self._since:
            return
        self.dropped += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(message)
        self._filled.set()

    async def take(self, within_s: float) -> bytes:
        """Return all queued messages; wait for the first one, and return ``b""`` after ``within_s`` without any."""
        try:
            await asyncio.wait_for(self._filled.wait(), within_s)
        except asyncio.TimeoutError:
            return b""
        taken = b"".join(self._waiting)
        self._waiting.clear()
        self._filled.clear()
        return taken


class Board(Sink):
    """Keeps the newest results of a run and streams its messages to clients as server-sent events.

    Args:
        run: the run to watch; call :meth:`refresh` once before any other method.
        options: how many entries to keep and how many clients to serve.
        loop: the server's event loop.
    """

    wants: ClassVar[tuple[type, ...]] = (ProvisionalResult, Window, Event, Notice, Drops)

    def __init__(self, run: Run, options: ServeOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._run_watched = run
        self._options = options
        self._loop = loop
        self._lock = threading.Lock()
        self._number = 0
        self._watchers: set[Watcher] = set()
        self._status: schemas.Status | None = None
        self._sizes: dict[str, tuple[int, int]] = {}
        self._looks: dict[str, dict[str, Any]] = {}
        self._curves: dict[str, deque[dict[str, Any]]] = {}
        self.windows: deque[schemas.Window] = deque(maxlen=options.kept)
        self.events: deque[schemas.Event] = deque(maxlen=options.kept)
        self.notices: deque[schemas.Notice] = deque(maxlen=options.kept)
        self.closing = asyncio.Event()
        super().__init__("web page", WAITING, lambda _: None)

    # -- in any thread ------------------------------------------------------------------------------------------------

    def refresh(self) -> schemas.Status:
        """Read the run's status; return it with each source's crop and the time."""
        read = self._run_watched.status().to_json()
        sizes = {s["name"]: (s["width"], s["height"]) for s in read["sources"] if s["width"] and s["height"]}
        for source in read["sources"]:
            source["crop"] = self._crop(sizes.get(source["name"]))
        status = msgspec.convert({**read, "now_s": time.time()}, schemas.Status)
        names = {source.name for source in status.sources}
        with self._lock:
            self._status, self._sizes = status, sizes
            self._looks = {name: look for name, look in self._looks.items() if name in names}
            self._curves = {name: curve for name, curve in self._curves.items() if name in names}
        return status

    def knows(self, name: str) -> bool:
        """Return whether the run had a source of this name at the last :meth:`refresh`."""
        return self._status is not None and any(source.name == name for source in self._status.sources)

    def process(self, message: Message) -> None:
        """Keep a message and send it to all clients."""
        if isinstance(message, ProvisionalResult):
            self._look(message)
        elif isinstance(message, Window):
            entry = {**message.to_json(), "wall_s": message.wall_s}
            self._publish_row("window", msgspec.convert(entry, schemas.Window), self.windows)
        elif isinstance(message, Event):
            # The page's curve has a single time axis for all sources: the time of day.
            began_s = message.wall_s - max(0.0, message.frame.time_s - message.start_s)
            entry = {**message.to_json(), "wall_s": message.wall_s, "start_wall_s": began_s}
            self._publish_row("event", msgspec.convert(entry, schemas.Event), self.events)
        elif isinstance(message, (Notice, Drops)):
            if isinstance(message, Notice) and message.kind == "ended":  # another source may take its name
                with self._lock:
                    self._looks.pop(message.source, None)
                    self._curves.pop(message.source, None)
                    self._sizes.pop(message.source, None)
            entry = {**message.to_json(), "wall_s": message.wall_s}
            self._publish_row("notice", msgspec.convert(entry, schemas.Notice), self.notices)

    def recent(self, rows: Iterable[Row], source: str | None, limit: int) -> list[Row]:
        """Return the newest of :attr:`windows`, :attr:`events` or :attr:`notices`, newest first.

        Args:
            rows: one of these three.
            source: name of the source whose rows to return; None for all sources.
            limit: maximum number of rows.
        """
        with self._lock:
            kept = list(rows)
        return [row for row in reversed(kept) if source is None or row.source == source][:limit]

    # -- in the event loop --------------------------------------------------------------------------------------------

    @property
    def watchers(self) -> int:
        """Number of clients of the live stream."""
        return len(self._watchers)

    @property
    def full(self) -> bool:
        """Whether the maximum number of clients is connected."""
        return len(self._watchers) >= self._options.max_viewers

    async def live(self) -> AsyncIterator[bytes]:
        """Yield server-sent events to a new client: the current state, then each message, until the server closes."""
        with self._lock:
            watcher, hello = Watcher(self._number), to_event("hello", self._hello())
        self._watchers.add(watcher)
        try:
            yield b"retry: 2000\n\n" + hello
            quiet_s = 0.0
            while not self.closing.is_set():
                taken = await watcher.take(POLL_S)
                quiet_s = 0.0 if taken else quiet_s + POLL_S
                if taken:
                    yield taken
                elif quiet_s >= KEEP_ALIVE_S:
                    quiet_s = 0.0
                    yield b": still here\n\n"
        finally:
            self._watchers.discard(watcher)

    def beat(self, status: schemas.Status) -> None:
        """Send the status to all clients."""
        with self._lock:
            number = self._next_number()
        self._send(number, to_event("status", msgspec.to_builtins(status)))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _hello(self) -> dict[str, Any]:
        """Return everything that a page needs at first. The caller holds the lock."""
        run, options = self._run_watched, self._options
        gap_s = run.spec.motion_gap_s
        camera_fps = 2 * run.glimpse_fps
        if gap_s:
            camera_fps = max(camera_fps, CAMERA_FPS, 1 / gap_s)
        return {
            "status": {} if self._status is None else msgspec.to_builtins(self._status),
            "looks": list(self._looks.values()),
            "curves": {name: list(curve) for name, curve in self._curves.items()},
            "windows": msgspec.to_builtins(list(self.windows)),
            "events": msgspec.to_builtins(list(self.events)),
            "notices": msgspec.to_builtins(list(self.notices)),
            "curve_s": CURVE_S,
            "picture_fps": options.picture_fps,
            "camera_fps": round(min(camera_fps, MAX_CAMERA_FPS), 2),
            "most_cameras": options.max_cameras,
            "max_upload_mb": options.max_upload_mb,
            "sign_out": options.token is not None,
        }

    def _look(self, look: ProvisionalResult) -> None:
        if look.source not in self._sizes:
            self.refresh()
        entry = {
            **look.to_json(),
            "wall_s": look.frame.wall_s,
            "box": self._box(self._sizes.get(look.source), *look.step.patch),
        }
        point = {
            "t": round(look.frame.wall_s, 3),
            "top": [[guess.class_id, round(guess.confidence, 4)] for guess in look.top[:CURVE_CLASSES]],
        }
        with self._lock:
            self._looks[look.source] = entry
            curve = self._curves.setdefault(look.source, deque(maxlen=CURVE_POINTS))
            if curve and point["t"] < curve[-1]["t"] - BACK_S:  # the system's clock was set back
                curve.clear()
            curve.append(point)
            while curve[0]["t"] < look.frame.wall_s - CURVE_S:
                curve.popleft()
            number = self._next_number()
        self._publish(number, "look", entry)

    def _publish_row(self, kind: str, row: Row, kept: deque[Row]) -> None:
        with self._lock:
            kept.append(row)
            number = self._next_number()
        self._publish(number, kind, row)

    def _next_number(self) -> int:
        """Number a message. The caller holds the lock."""
        self._number += 1
        return self._number

    def _publish(self, number: int, kind: str, entry: dict[str, Any] | schemas.Object) -> None:
        if self._watchers:
            with suppress(RuntimeError):  # the loop was closed in the meantime
                self._loop.call_soon_threadsafe(self._send, number, to_event(kind, msgspec.to_builtins(entry)))

    def _send(self, number: int, message: bytes) -> None:
        for watcher in self._watchers:
            watcher.enqueue(number, message)

    def _box(self, size: tuple[int, int] | None, y: float, x: float, side: float) -> Fractions | None:
        """Map a square of the S x S frame to the source's picture; return None if the picture's size is unknown."""
        return None if size is None else box_of(self._run_watched.spec, *size, y, x, side)

    def _crop(self, size: tuple[int, int] | None) -> Fractions | None:
        return self._box(size, 0, 0, self._run_watched.spec.frame_size)


def to_event(kind: str, entry: dict[str, Any]) -> bytes:
    """Encode one server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(entry, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

"""What is known of a live run at this moment, kept for those who come later and sent on to those who watch."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Drops, Event, Notice, ProvisionalResult, Window
from adafocus_edge.media.preprocess import CropWindow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adafocus_edge.live.messages import Message
    from adafocus_edge.serve.options import ServeOptions
    from adafocus_edge.serve.run import Run

WAITING = 512
"""Messages of the run that may wait to be written as JSON."""
CLIENT_WAITING = 256
"""Messages that may wait for one watcher; beyond, its oldest are dropped."""
CURVE_S = 120.0
"""How far back the page's curve of confidence reaches."""
CURVE_POINTS = 1200
CURVE_CLASSES = 3
"""Points kept of each source, and classes in each."""
KEEP_ALIVE_S = 10.0
"""A connection on which nothing happens gets a comment after this time, so that nothing between cuts it."""
POLL_S = 0.5
"""How often a connection on which nothing happens looks whether the server closes."""
CAMERA_FPS = 8.0
"""The least that a camera must send to a model that sees motion."""
FASTEST_CAMERA_FPS = 30.0

Fractions = list[float]
"""Left, top, right, bottom of a rectangle, as fractions of a picture's width and height."""


class Watcher:
    """One who gets live data: what waits to be sent, oldest first. Used in the server's event loop only."""

    def __init__(self, since: int, waiting: int = CLIENT_WAITING) -> None:
        self.dropped = 0
        self._since = since
        self._waiting: deque[bytes] = deque(maxlen=waiting)
        self._there = asyncio.Event()

    def enqueue(self, number: int, message: bytes) -> None:
        """Let a message wait; drop the oldest where there is no room."""
        if number <= self._since:
            return
        self.dropped += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(message)
        self._there.set()

    async def take(self, within_s: float) -> bytes:
        """Return all that waits, or nothing when that stays so."""
        try:
            await asyncio.wait_for(self._there.wait(), within_s)
        except asyncio.TimeoutError:
            return b""
        taken = b"".join(self._waiting)
        self._waiting.clear()
        self._there.clear()
        return taken


class Board(Sink):
    """Keeps the newest results of a run and hands on what happens, as server-sent events.

    Args:
        run: that is watched; :meth:`refresh` it once before anything is asked for.
        options: how much is kept.
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
        self._status: dict[str, Any] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._looks: dict[str, dict[str, Any]] = {}
        self._curves: dict[str, deque[dict[str, Any]]] = {}
        self._windows: deque[dict[str, Any]] = deque(maxlen=options.kept)
        self._events: deque[dict[str, Any]] = deque(maxlen=options.kept)
        self._notices: deque[dict[str, Any]] = deque(maxlen=options.kept)
        self.closing = asyncio.Event()
        super().__init__("web page", WAITING, lambda _: None)

    # -- in any thread ------------------------------------------------------------------------------------------------

    def refresh(self) -> dict[str, Any]:
        """Ask the run how it is doing; return that with what a page needs on top."""
        status = self._run_watched.status().to_json()
        sizes = {s["name"]: (s["width"], s["height"]) for s in status["sources"] if s.get("width") and s.get("height")}
        for source in status["sources"]:
            source["crop"] = self._crop(sizes.get(source["name"]))
        status["now_s"] = time.time()
        with self._lock:
            self._status, self._sizes = status, sizes
            there = {source["name"] for source in status["sources"]}
            self._looks = {name: look for name, look in self._looks.items() if name in there}
            self._curves = {name: curve for name, curve in self._curves.items() if name in there}
        return status

    def knows(self, name: str) -> bool:
        """Whether there was a source of this name at the last :meth:`refresh`."""
        return any(source["name"] == name for source in self._status.get("sources", ()))

    def process(self, message: Message) -> None:
        """Keep and send on what happened."""
        if isinstance(message, ProvisionalResult):
            self._look(message)
        elif isinstance(message, Window):
            entry = {**message.to_json(), "wall_s": message.wall_s}
            self._publish("window", entry, self._windows)
        elif isinstance(message, Event):
            # The page's curve has one time for all sources: that of the day.
            began_s = message.wall_s - max(0.0, message.frame.time_s - message.start_s)
            entry = {**message.to_json(), "wall_s": message.wall_s, "start_wall_s": began_s}
            self._publish("event", entry, self._events)
        elif isinstance(message, (Notice, Drops)):
            self._publish("notice", {**message.to_json(), "wall_s": message.wall_s}, self._notices)

    def recent(self, kind: str, source: str | None, limit: int) -> list[dict[str, Any]]:
        """Return the newest windows, events or notices, newest first, of one source or all."""
        kept = {"windows": self._windows, "events": self._events, "notices": self._notices}[kind]
        with self._lock:
            entries = list(kept)
        return [entry for entry in reversed(entries) if source is None or entry["source"] == source][:limit]

    # -- in the event loop --------------------------------------------------------------------------------------------

    @property
    def watchers(self) -> int:
        """How many get live data."""
        return len(self._watchers)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more watcher."""
        return len(self._watchers) >= self._options.max_viewers

    async def live(self) -> AsyncIterator[bytes]:
        """Yield server-sent events to one more watcher: what is known, then what happens, until the server closes."""
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

    def beat(self, status: dict[str, Any]) -> None:
        """Send on how the run is doing."""
        with self._lock:
            self._number += 1
            number = self._number
        self._send(number, to_event("status", status))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _hello(self) -> dict[str, Any]:
        """All that a page needs to begin. The lock is held."""
        run, options = self._run_watched, self._options
        gap_s = run.spec.motion_gap_s
        camera_fps = 2 * run.glimpse_fps
        if gap_s:
            camera_fps = max(camera_fps, CAMERA_FPS, 1 / gap_s)
        return {
            "status": self._status,
            "looks": list(self._looks.values()),
            "curves": {name: list(curve) for name, curve in self._curves.items()},
            "windows": list(self._windows),
            "events": list(self._events),
            "notices": list(self._notices),
            "curve_s": CURVE_S,
            "picture_fps": options.picture_fps,
            "camera_fps": round(min(camera_fps, FASTEST_CAMERA_FPS), 2),
            "most_cameras": options.most_cameras,
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
            curve.append(point)
            while curve[0]["t"] < look.frame.wall_s - CURVE_S:
                curve.popleft()
        self._publish("look", entry, None)

    def _publish(self, kind: str, entry: dict[str, Any], kept: deque[dict[str, Any]] | None) -> None:
        with self._lock:
            if kept is not None:
                kept.append(entry)
            self._number += 1
            number = self._number
        if self._watchers:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._send, number, to_event(kind, entry))

    def _send(self, number: int, message: bytes) -> None:
        for watcher in self._watchers:
            watcher.enqueue(number, message)

    def _box(self, size: tuple[int, int] | None, y: float, x: float, side: float) -> Fractions | None:
        """Map a square of the S x S frame to where it lies in the source's picture."""
        if size is None:
            return None
        width, height = size
        window = CropWindow.of(height, width, self._run_watched.spec.frame_size, self._run_watched.spec.fit)
        top, left, bottom, right = window.source_box(y, x, side, side)
        return [round(value, 5) for value in (left / width, top / height, right / width, bottom / height)]

    def _crop(self, size: tuple[int, int] | None) -> Fractions | None:
        return self._box(size, 0, 0, self._run_watched.spec.frame_size)


def to_event(kind: str, entry: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(entry, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

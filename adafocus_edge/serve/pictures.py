"""JPEG pictures of the newest frames: encoded on demand, once for all viewers of a stream."""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from PIL import Image

from adafocus_edge.runtime.annotate import shown_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adafocus_edge.live.messages import LiveFrame
    from adafocus_edge.serve.options import ServeOptions
    from adafocus_edge.serve.run import Run

JPEG_QUALITY = 78
ENCODERS = 2
"""Pictures encoded at the same time; few, because the model needs the cores."""
BOUNDARY = "picture"
FORGET_S = 10.0
"""A picture without requests is discarded after this time."""


@dataclass(frozen=True)
class Picture:
    """An encoded frame.

    Attributes:
        index: number of the frame.
        jpeg: the encoded bytes.
        made_s: time of encoding, by ``time.monotonic``.
    """

    index: int
    jpeg: bytes
    made_s: float


class Pictures:
    """The newest picture of each stream. Used in the server's event loop.

    Args:
        run: the run whose frames are shown.
        options: maximum size, rate and number of viewers.
    """

    def __init__(self, run: Run, options: ServeOptions) -> None:
        self.viewers = 0
        self.closing = asyncio.Event()
        self._run, self._options = run, options
        self._newest: dict[str, Picture] = {}
        self._busy: dict[str, asyncio.Lock] = {}
        self._encoders = anyio.CapacityLimiter(ENCODERS)

    @property
    def full(self) -> bool:
        """Whether the maximum number of videos is being streamed."""
        return self.viewers >= self._options.max_viewers

    async def newest(self, name: str) -> Picture | None:
        """Return a picture of a stream's newest frame, or the last one while it is fresh; None before the first."""
        async with self._busy.setdefault(name, asyncio.Lock()):
            kept = self._newest.get(name)
            if kept is not None and time.monotonic() - kept.made_s < 1 / self._options.picture_fps:
                return kept
            frame = self._run.newest(name)
            if frame is None:
                return None
            if kept is not None and kept.index == frame.index:
                return kept
            jpeg = await anyio.to_thread.run_sync(encode, frame, self._options.picture_width, limiter=self._encoders)
            made = self._newest[name] = Picture(frame.index, jpeg, time.monotonic())
            return made

    async def video(self, name: str) -> AsyncIterator[bytes]:
        """Yield the parts of a multipart stream of JPEG pictures until the server closes."""
        self.viewers += 1
        shown = -1
        try:
            while not self.closing.is_set():
                begun_s = time.monotonic()
                picture = await self.newest(name)
                if picture is not None and picture.index != shown:
                    shown = picture.index
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture.jpeg)}\r\n\r\n"
                    yield head.encode() + picture.jpeg + b"\r\n"
                pause_s = begun_s + 1 / self._options.picture_fps - time.monotonic()
                await asyncio.sleep(max(0.01, min(pause_s, 0.5)))
        finally:
            self.viewers -= 1

    def forget(self) -> None:
        """Discard pictures that have no viewers."""
        before_s = time.monotonic() - FORGET_S - 1 / self._options.picture_fps
        for name, picture in list(self._newest.items()):
            if picture.made_s < before_s and not self._busy[name].locked():
                del self._newest[name], self._busy[name]


def encode(frame: LiveFrame, max_width: int) -> bytes:
    """Encode a frame as JPEG; scale it down if it is wider than ``max_width`` pixels."""
    image = Image.fromarray(frame.to_rgb())
    width, height = shown_size(image.width, image.height, frame.sample_aspect)
    if width > max_width:
        width, height = max_width, max(1, round(height * max_width / width))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=JPEG_QUALITY)
    return written.getvalue()

"""JPEG pictures: of the newest frames, encoded on demand and once for all viewers of a stream; of a clip's glimpses."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from PIL import Image

from adafocus_edge.errors import SourceError
from adafocus_edge.media.preprocess import CropWindow
from adafocus_edge.runtime.annotate import shown_size

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator
    from fractions import Fraction

    import numpy as np
    from numpy.typing import NDArray

    from adafocus_edge.live.messages import LiveFrame
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import ModelSpec
    from adafocus_edge.runtime.classifier import Result
    from adafocus_edge.serve.options import ServeOptions
    from adafocus_edge.serve.run import Run

JPEG_QUALITY = 78
ENCODERS = 2
"""Pictures encoded at the same time; few, because the model needs the cores."""
BOUNDARY = "picture"
MAX_HIGH = 8
"""Maximum height of a picture over its maximum width."""
GLIMPSE_WIDTH = 480
"""Maximum width of the picture of a clip's glimpse, in pixels."""
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
            kept, frame = self._newest.get(name), self._run.newest(name)
            if frame is None:  # the one that is kept may be of another source that had the name
                return None
            if kept is not None and time.monotonic() - kept.made_s < 1 / self._options.picture_fps:
                return kept
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
    return encode_pixels(frame.to_rgb(), frame.sample_aspect, max_width)


def encode_pixels(pixels: NDArray[np.uint8], sample_aspect: Fraction, max_width: int) -> bytes:
    """Encode RGB, uint8 [H, W, 3], as JPEG with square pixels.

    It is at most ``max_width`` pixels wide and :data:`MAX_HIGH` times that high: a file may claim any aspect.
    """
    image = Image.fromarray(pixels)
    width, height = shown_size(image.width, image.height, sample_aspect)
    scale = min(1.0, max_width / width, MAX_HIGH * max_width / height)
    if scale < 1:
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=JPEG_QUALITY)
    return written.getvalue()


def box_of(spec: ModelSpec, width: int, height: int, y: float, x: float, side: float) -> list[float]:
    """Map a square of the S x S frame to the picture it was made of.

    Args:
        spec: of the model.
        width: of the picture in pixels.
        height: of the picture in pixels.
        y: of the square's upper left corner, in pixels of the frame.
        x: of the square's upper left corner, in pixels of the frame.
        side: of the square, in pixels of the frame.

    Returns:
        left, top, right and bottom, as fractions of the picture's width and height.
    """
    top, left, bottom, right = CropWindow.of(height, width, spec.frame_size, spec.fit).source_box(y, x, side, side)
    return [round(value, 5) for value in (left / width, top / height, right / width, bottom / height)]


def glimpse_pictures(source: Source, result: Result, spec: ModelSpec, cancel: threading.Event) -> list[dict[str, Any]]:
    """Read a file's glimpsed frames again.

    Args:
        source: the file.
        result: of the file.
        spec: of the model.
        cancel: ends the reading when set.

    Returns:
        per glimpse, its frame as JPEG in base64 (``picture``) and its patch there (``box``, see :func:`box_of`).

    Raises:
        SourceError: the file cannot be read, or ``cancel`` was set.
    """
    clip = source.open_clip()

    def shown(pixels: NDArray[np.uint8]) -> tuple[str, int, int]:
        if cancel.is_set():
            raise SourceError(f"{source.name}: cancelled")
        jpeg = encode_pixels(pixels, clip.sample_aspect, GLIMPSE_WIDTH)
        return base64.b64encode(jpeg).decode(), pixels.shape[1], pixels.shape[0]

    seen = dict(clip.select(sorted({step.frame_index for step in result.steps}), shown))
    pictures = []
    for step in result.steps:
        picture, width, height = seen[step.frame_index]
        pictures.append({"picture": picture, "box": box_of(spec, width, height, *step.patch)})
    return pictures

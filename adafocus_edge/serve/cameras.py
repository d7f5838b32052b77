"""Browsers' cameras as live sources: their pictures come one by one, and what stays silent is closed."""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.media.images import has_too_many_scans
from adafocus_edge.serve.guard import refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from starlette.requests import Request

    from adafocus_edge.serve.options import ServeOptions
    from adafocus_edge.serve.run import Feed, Run

LARGEST_BYTES = 2_000_000
LARGEST_PIXELS = 1920 * 1440
SMALLEST_SIDE = 16
"""Of one picture; every one of them is kept for a moment where the model sees motion."""
FRAME_WITHIN_S = 10.0
"""A picture must be there within this time from when it began to come."""


@dataclass
class Camera:
    """One that is open."""

    source: str
    feed: Feed
    heard_s: float
    number: int = -1
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)


class Cameras:
    """The browsers' cameras that are open. Used in the server's event loop.

    Args:
        run: whose sources they become.
        options: how many there may be, and how long they may stay silent.
    """

    def __init__(self, run: Run, options: ServeOptions) -> None:
        self._run, self._options = run, options
        self._open: dict[str, Camera] = {}
        self._opening = 0
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, request: Request) -> Response:
        """Answer ``POST /api/cameras`` with the camera's secret id and the name of its source."""
        del request
        most = self._options.most_cameras
        if len(self._open) + self._opening >= most:
            text = f"{most} browser cameras are open already: stop one" if most else "no browser cameras here"
            return refusal(429, text, {"Retry-After": "10"})
        self._opening += 1
        self._numbers += 1
        source = f"browser camera {self._numbers}"
        try:
            feed = await run_in_threadpool(self._run.open_feed, source)
        except UsageError as error:
            return refusal(429, str(error), {"Retry-After": "10"})
        except AdaFocusError as error:
            return refusal(503, str(error))
        finally:
            self._opening -= 1
        camera_id = secrets.token_urlsafe(16)
        self._open[camera_id] = Camera(source, feed, time.monotonic())
        return JSONResponse({"id": camera_id, "source": source}, 201)

    async def frame(self, request: Request) -> Response:
        """Answer ``POST /api/cameras/{id}/frame``: the body is one JPEG; ``X-Frame-Number`` may put them in order."""
        camera = self._open.get(request.path_params["id"])
        if camera is None:
            return refusal(404, "no such camera: it was closed, or sent nothing for too long")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "image/jpeg":
            return refusal(415, "a camera's picture must be image/jpeg")
        try:
            jpeg = await asyncio.wait_for(_body(request), FRAME_WITHIN_S)
        except asyncio.TimeoutError:
            return refusal(408, "the picture took too long")
        except ClientDisconnect:
            return refusal(400, "the picture was cut short")
        if jpeg is None:
            return refusal(413, f"a picture of more than {LARGEST_BYTES // 1_000_000} MB: send a smaller one")
        async with camera.busy:
            told = request.headers.get("x-frame-number", "")
            number = int(told) if told.isascii() and told.isdigit() and len(told) < 12 else camera.number + 1
            if number <= camera.number:
                return Response(status_code=204)  # overtaken by a later one
            try:
                width, height = await run_in_threadpool(check_jpeg, jpeg)
            except ValueError as error:
                return refusal(422, str(error))
            if self._open.get(request.path_params["id"]) is not camera:
                return refusal(404, "no such camera: it was closed")
            camera.number, camera.heard_s = number, time.monotonic()
            await run_in_threadpool(camera.feed.push, partial(decode_jpeg, jpeg), width, height)
        return Response(status_code=204)

    async def delete(self, request: Request) -> Response:
        """Answer ``DELETE /api/cameras/{id}``."""
        camera = self._open.pop(request.path_params["id"], None)
        if camera is None:
            return refusal(404, "no such camera: it was closed already")
        await run_in_threadpool(camera.feed.close)
        return Response(status_code=204)

    async def close_idle(self) -> None:
        """Close those that have been silent for too long."""
        before_s = time.monotonic() - self._options.camera_idle_s
        await self._close([camera_id for camera_id, camera in self._open.items() if camera.heard_s < before_s])

    async def close(self) -> None:
        """Close all."""
        await self._close(list(self._open))

    async def _close(self, ids: list[str]) -> None:
        for camera_id in ids:
            camera = self._open.pop(camera_id, None)
            if camera is not None:
                await run_in_threadpool(camera.feed.close)


async def _body(request: Request) -> bytes | None:
    """Read a small body; None if it is too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > LARGEST_BYTES:
        return None
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > LARGEST_BYTES:
            return None
    return bytes(received)


def check_jpeg(jpeg: bytes) -> tuple[int, int]:
    """Return a JPEG's width and height as it is shown, in pixels. Raises ``ValueError`` with one line."""
    if has_too_many_scans(jpeg):
        raise ValueError("a JPEG picture of too many scans")
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            width, height = image.size
            if width * height > LARGEST_PIXELS or min(width, height) < SMALLEST_SIDE:
                raise ValueError(
                    f"a picture of {width} x {height}: {SMALLEST_SIDE} pixels a side to {LARGEST_PIXELS} in all"
                )
            image.load()
            turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("not a JPEG picture that can be read") from None
    return (height, width) if turned else (width, height)


def decode_jpeg(jpeg: bytes) -> NDArray[np.uint8]:
    """Return a JPEG that was checked as RGB, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))

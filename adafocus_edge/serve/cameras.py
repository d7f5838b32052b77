"""Browser cameras as live sources: clients send single pictures, and idle cameras are closed."""

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
from starlette.responses import Response

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.media.images import has_too_many_scans
from adafocus_edge.serve import schemas
from adafocus_edge.serve.guard import refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from starlette.requests import Request

    from adafocus_edge.serve.options import ServeOptions
    from adafocus_edge.serve.run import Feed, Run

MAX_BYTES = 2_000_000
"""Maximum size of a picture; a model with motion input keeps several of them in memory."""
MAX_PIXELS = 1920 * 1440
MIN_SIDE = 16
FRAME_WITHIN_S = 10.0
"""Time limit for receiving a picture."""


@dataclass
class Camera:
    """An open camera.

    Attributes:
        source: name of its source.
        feed: takes its frames.
        heard_s: when its last picture arrived, by ``time.monotonic``.
        number: sequence number of its last picture.
        busy: held while a picture is processed.
    """

    source: str
    feed: Feed
    heard_s: float
    number: int = -1
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)


class Cameras:
    """The open browser cameras. Used in the server's event loop.

    Args:
        run: the run that they are added to.
        options: maximum number of cameras, and how long they may be idle.
    """

    def __init__(self, run: Run, options: ServeOptions) -> None:
        self._run, self._options = run, options
        self._open: dict[str, Camera] = {}
        self._opening = 0
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, request: Request) -> Response:
        """Handle ``POST /api/cameras``: return the camera's secret id and the name of its source."""
        del request
        limit = self._options.max_cameras
        if len(self._open) + self._opening >= limit:
            text = (
                f"{limit} browser cameras are open already, the maximum: close one first"
                if limit
                else "browser cameras are disabled on this server"
            )
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
        return schemas.respond(schemas.OpenedCamera(camera_id, source), 201)

    async def frame(self, request: Request) -> Response:
        """Handle ``POST /api/cameras/{id}/frame``: the body is a JPEG, ``X-Frame-Number`` its sequence number."""
        camera = self._open.get(request.path_params["id"])
        if camera is None:
            return refusal(404, "no such camera: it was closed, or was idle for too long")
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != "image/jpeg":
            return refusal(415, "Content-Type must be image/jpeg")
        try:
            jpeg = await asyncio.wait_for(_body(request), FRAME_WITHIN_S)
        except asyncio.TimeoutError:
            return refusal(408, f"the picture was not received within {FRAME_WITHIN_S:.0f} s")
        except ClientDisconnect:
            return refusal(400, "the picture is incomplete")
        if jpeg is None:
            return refusal(413, f"the picture is larger than {MAX_BYTES // 1_000_000} MB")
        async with camera.busy:
            given = request.headers.get("x-frame-number", "")
            number = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else camera.number + 1
            if number <= camera.number:
                return Response(status_code=204)  # a later picture arrived first
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
        """Handle ``DELETE /api/cameras/{id}``."""
        camera = self._open.pop(request.path_params["id"], None)
        if camera is None:
            return refusal(404, "no such camera: it is already closed")
        await run_in_threadpool(camera.feed.close)
        return Response(status_code=204)

    async def close_idle(self) -> None:
        """Close the cameras that have been idle for too long."""
        before_s = time.monotonic() - self._options.camera_idle_s
        await self._close([camera_id for camera_id, camera in self._open.items() if camera.heard_s < before_s])

    async def close(self) -> None:
        """Close all cameras."""
        await self._close(list(self._open))

    async def _close(self, ids: list[str]) -> None:
        for camera_id in ids:
            camera = self._open.pop(camera_id, None)
            if camera is not None:
                await run_in_threadpool(camera.feed.close)


async def _body(request: Request) -> bytes | None:
    """Read a body of at most :data:`MAX_BYTES`; return None if it is larger."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BYTES:
        return None
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > MAX_BYTES:
            return None
    return bytes(received)


def check_jpeg(jpeg: bytes) -> tuple[int, int]:
    """Return a JPEG's width and height as displayed, in pixels. Raises ``ValueError`` with one line."""
    if has_too_many_scans(jpeg):
        raise ValueError("the JPEG has too many scans")
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE:
                raise ValueError(
                    f"the picture has {width} x {height} pixels: each side must have at least {MIN_SIDE}, and "
                    f"the whole picture at most {MAX_PIXELS}"
                )
            image.load()
            turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("the picture cannot be decoded as JPEG") from None
    return (height, width) if turned else (width, height)


def decode_jpeg(jpeg: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG that passed :func:`check_jpeg` to RGB, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))

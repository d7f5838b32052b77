"""Classification of uploads: a file is received within limits, classified while the live sources run, and deleted."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from adafocus_edge.errors import AdaFocusError, SourceError, UsageError
from adafocus_edge.media.sources import VIDEO_SUFFIXES, Source
from adafocus_edge.serve import schemas
from adafocus_edge.serve.forms import MAX_OTHER_BYTES, FormFile, is_form
from adafocus_edge.serve.guard import RefusedError, refusal
from adafocus_edge.serve.pictures import glimpse_pictures
from adafocus_edge.system.files import write_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from starlette.requests import Request

    from adafocus_edge.serve.options import ServeOptions
    from adafocus_edge.serve.run import Run

T = TypeVar("T")

MB = 1_000_000
CHUNK_BYTES = 1 << 20
"""Bytes written to disk at a time."""
SILENCE_S = 30.0
"""An upload fails if no data arrives for this time."""
DRAIN_BYTES = 32 * MB
"""Bytes still read of a body that is too large: a browser reads no response before it has sent everything."""
DRAIN_S = 10.0
MAX_NAME = 120
HEAD_BYTES = 64
TEXT_BYTES = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\r\n\x0c")
TEXT_VIDEO = b"YUV4MPEG2"
"""Signature of the only video format that begins with text."""


class Uploads:
    """Receives files and classifies them, a limited number at a time.

    Args:
        run: the run that classifies them.
        options: maximum size and number.
    """

    def __init__(self, run: Run, options: ServeOptions) -> None:
        self.under_way = 0
        self.done = 0
        self.closing = asyncio.Event()
        self._run, self._options = run, options

    async def classify(self, request: Request) -> Response:
        """Handle ``POST /api/classify``: return the result as ``classify --json`` prints it.

        The body is the file, with its name in ``X-File-Name`` (percent-encoded) or in the query parameter ``name``; or
        it is a form with one file. With ``frames=1`` in the query, each glimpse has its picture. Errors name the file
        as the client does.
        """
        given = request.query_params.get("name") or unquote(request.headers.get("x-file-name", ""))
        name = file_name(given)
        if self.under_way >= self._options.max_uploads:
            return refusal(
                429, f"{name or 'the file'}: {self.under_way} files are being classified already; try again later",
                {"Retry-After": "5"},
            )  # fmt: skip
        self.under_way += 1
        path: Path | None = None
        form: FormFile | None = None
        cancel = threading.Event()
        body = aiter(request.stream())
        try:
            content_type = request.headers.get("content-type", "")
            if is_form(content_type):
                await self._check_length(request, body, name, MAX_OTHER_BYTES)
                form = FormFile(content_type, body)
                own_name = file_name(await _in_time(form.name(), name))
                name, content = name or own_name, form.content()
                suffix = _checked_suffix(name)
            else:
                suffix, content = _checked_suffix(name), body
                await self._check_length(request, body, name, 0)
            handle, made = await run_in_threadpool(tempfile.mkstemp, suffix, "adafocus-upload-")
            path = Path(made)
            await self._receive(content, handle, name)
            source = Source(name, str(path))
            result = await self._until_gone(request, asyncio.wrap_future(self._run.submit_clip(source, cancel)), name)
            entry = {**result.to_json(), "source": name}
            if request.query_params.get("frames") == "1":
                reading = asyncio.get_running_loop().run_in_executor(
                    None, glimpse_pictures, source, result, self._run.spec, cancel
                )
                pictures = await self._until_gone(request, reading, name)
                entry["steps"] = [step | more for step, more in zip(entry["steps"], pictures, strict=True)]
            self.done += 1
            return schemas.respond(msgspec.convert(entry, schemas.Result))
        except RefusedError as error:
            if form is not None and error.status in (400, 415):  # browsers read no response before the form is sent
                await _drain(body)
            return refusal(error.status, str(error))
        except SourceError as error:
            return refusal(422, _shown(str(error), path, name))
        except UsageError as error:  # the run has no room for another clip
            return refusal(429, _shown(str(error), path, name), {"Retry-After": "5"})
        except AdaFocusError as error:
            return refusal(503, _shown(str(error), path, name))
        except ClientDisconnect:
            return refusal(400, f"{name or 'the file'}: the upload is incomplete")
        except OSError as error:
            return refusal(507, f"{name}: cannot be stored on the server ({error.strerror})")
        finally:
            cancel.set()
            self.under_way -= 1
            if path is not None:
                with suppress(OSError):
                    path.unlink()

    def _too_large(self, name: str) -> RefusedError:
        return RefusedError(
            413, f"{name or 'the file'}: larger than {self._options.max_upload_mb} MB, the maximum; send a shorter clip"
        )

    async def _check_length(self, request: Request, body: AsyncIterator[bytes], name: str, more_bytes: int) -> None:
        """Raise ``RefusedError`` if Content-Length exceeds the maximum by more than ``more_bytes``."""
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._options.max_upload_mb * MB + more_bytes:
            if request.headers.get("expect", "").lower() != "100-continue":  # else the client has not sent it yet
                await _drain(body)
            raise self._too_large(name)

    async def _receive(self, content: AsyncIterator[bytes], handle: int, name: str) -> None:
        """Write a file to an open file descriptor as it arrives, and close it. Raises ``RefusedError``."""
        limit_bytes = self._options.max_upload_mb * MB
        with open(handle, "wb", buffering=0) as file:
            received = 0
            chunk = bytearray()
            checked = False
            while True:
                part = await _in_time(anext(content, None), name)
                if part is None:
                    break
                received += len(part)
                if received > limit_bytes:
                    await _drain(content)
                    raise self._too_large(name)
                chunk += part
                if not checked and len(chunk) >= HEAD_BYTES:
                    _check_head(chunk[:HEAD_BYTES], name)
                    checked = True
                if len(chunk) >= CHUNK_BYTES:
                    await run_in_threadpool(write_all, file, bytes(chunk))
                    chunk.clear()
            if not received:
                raise RefusedError(400, f"{name}: the file is empty")
            if not checked:
                _check_head(chunk, name)
            await run_in_threadpool(write_all, file, bytes(chunk))

    async def _until_gone(self, request: Request, future: asyncio.Future[T], name: str) -> T:
        """Wait for a result; give up when the client disconnects or the server closes."""
        gone = asyncio.ensure_future(request.receive())  # the body was read, so the next message is the disconnect
        closing = asyncio.ensure_future(self.closing.wait())
        try:
            await asyncio.wait((future, gone, closing), return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            raise RefusedError(503, f"{name}: the server is shutting down")
        finally:
            for waiting in (gone, closing, future):
                waiting.cancel()


def file_name(given: str) -> str:
    """Return the last component of a file name as sent, shortened and without unprintable characters."""
    last = re.split(r"[/\\]", given)[-1]
    shown = "".join(letter for letter in last if letter.isprintable()).strip()
    if len(shown) <= MAX_NAME:
        return shown
    stem, dot, suffix = shown.rpartition(".")
    return f"{stem[: MAX_NAME - 20]}...{dot}{suffix[:16]}"


def _checked_suffix(name: str) -> str:
    """Return the suffix of a video's file name. Raises ``RefusedError`` if it is not one."""
    if not name:
        raise RefusedError(400, "the file has no name: set the header X-File-Name or the query parameter name")
    suffix = Path(name).suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        known = ", ".join(sorted(kind[1:] for kind in VIDEO_SUFFIXES))
        raise RefusedError(415, f"{name}: not a video file name; it must end in one of {known}")
    return suffix


def _check_head(head: bytes | bytearray, name: str) -> None:
    """Raise ``RefusedError`` for text: decoders accept some of it as playlists of other files on this machine."""
    text = head.startswith((b"\xef\xbb\xbf", b"#EXTM3U")) or all(byte in TEXT_BYTES for byte in head)
    if text and not head.startswith(TEXT_VIDEO):
        raise RefusedError(422, f"{name}: the file holds text, not a video")


async def _drain(body: AsyncIterator[bytes]) -> None:
    async def read() -> None:
        left = DRAIN_BYTES
        async for part in body:
            left -= len(part)
            if left <= 0:
                return

    with suppress(asyncio.TimeoutError, ClientDisconnect):
        await asyncio.wait_for(read(), DRAIN_S)


async def _in_time(coming: Awaitable[T], name: str) -> T:
    """Wait for data of an upload. Raises ``RefusedError`` if none arrives for :data:`SILENCE_S`."""
    try:
        return await asyncio.wait_for(coming, SILENCE_S)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"{name or 'the file'}: no data received for {SILENCE_S:.0f} s") from None


def _shown(text: str, path: Path | None, name: str) -> str:
    """Replace the temporary file's path in a message with the file name as sent."""
    if path is not None:
        text = text.replace(str(path), name).replace(path.name, name)
    return " ".join(text.replace(tempfile.gettempdir() + os.sep, "").split())

"""A file in a form, as browsers and ``curl -F`` send it: streams the single file of a multipart/form-data body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import multipart

from adafocus_edge.serve.guard import RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FORM = "multipart/form-data"
HOW = "send it as `curl -F file=@clip.mp4`"
MAX_OTHER_BYTES = 1_000_000
"""Maximum size of a form without its file: other fields, headers, preamble and epilogue."""
MAX_PARTS = 32
MAX_BOUNDARY = 256
PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


def is_form(content_type: str) -> bool:
    """Return whether a request's body is a form."""
    return content_type.partition(";")[0].strip().lower() == FORM


class FormFile:
    """Reads a form up to its file, and then the file.

    Args:
        content_type: the request's Content-Type, which holds the boundary.
        body: the request's body in chunks.

    Raises:
        RefusedError: the form is malformed, too large, or does not hold exactly one file.
    """

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        boundary = multipart.parse_options_header(content_type)[1].get("boundary", "")
        if not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii() or not boundary.isprintable():
            raise RefusedError(400, f"the form's Content-Type has no valid boundary: {HOW}")
        self._body = body
        self._parser = multipart.PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
        self._file: Any = None
        self._in_file = False
        self._waiting: list[bytes] = []  # pieces of the file
        self._received = 0
        self._taken = 0

    async def name(self) -> str:
        """Read up to the file; return its name as sent, which may be empty."""
        while self._file is None:
            if not await self._feed():
                raise RefusedError(400, f"the form has no file: {HOW}")
        return str(self._file.filename)

    async def content(self) -> AsyncIterator[bytes]:
        """Yield the file piece by piece, and read the rest of the form."""
        while True:
            yield b"".join(self._waiting)  # empty while other fields are read, which shows that data arrives
            self._waiting.clear()
            if not await self._feed():
                return

    async def _feed(self) -> bool:
        """Parse the next chunk of the body; return whether there was one."""
        chunk = await anext(self._body, b"")
        self._received += len(chunk)
        try:
            if not self._parser.closed:
                for event in self._parser.parse(chunk):
                    self._take(event)
        except multipart.ParserLimitReached as error:
            raise RefusedError(400, f"the form has too many parts, or too long ones ({error}): {HOW}") from None
        except multipart.MultipartError as error:
            if not chunk:
                raise RefusedError(400, "the form is incomplete: its last boundary is missing") from None
            raise RefusedError(400, f"the form cannot be parsed ({error}): {HOW}") from None
        if self._received - self._taken > MAX_OTHER_BYTES:
            raise RefusedError(
                413, f"the form has more than {MAX_OTHER_BYTES // 1_000_000} MB in addition to its file: {HOW}"
            )
        return bool(chunk)

    def _take(self, event: Any) -> None:
        """Process a part's header, a piece of its content, or its end."""
        if event is None:
            self._in_file = False
        elif isinstance(event, multipart.MultipartSegment):
            self._in_file = event.filename is not None
            if not self._in_file:
                return
            if self._file is not None:
                raise RefusedError(400, "the form has more than one file: send one at a time")
            if str(event.header("Content-Transfer-Encoding", "")).lower() not in PLAIN_ENCODINGS:
                raise RefusedError(400, "the file has a Content-Transfer-Encoding: send it in binary")
            self._file = event
        elif self._in_file:
            self._taken += len(event)
            self._waiting.append(bytes(event))

"""A file in a form, as browsers and ``curl -F`` send it: the one file of a multipart/form-data body, as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import multipart

from adafocus_edge.serve.guard import RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FORM = "multipart/form-data"
HOW = "send it as `curl -F file=@clip.mp4`"
MAX_OTHER_BYTES = 1_000_000
"""Of a form, beside its file: other fields, headers, and what stands before the first and behind the last boundary."""
MAX_PARTS = 32
LONGEST_BOUNDARY = 256
PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


def is_form(content_type: str) -> bool:
    """Whether a request's body is a form."""
    return content_type.partition(";")[0].strip().lower() == FORM


class FormFile:
    """Reads a form up to its file, and then the file.

    Args:
        content_type: of the request, with the boundary.
        body: as it comes.

    Raises:
        RefusedError: the form, or what is in it, cannot be taken.
    """

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        boundary = multipart.parse_options_header(content_type)[1].get("boundary", "")
        if not 0 < len(boundary) <= LONGEST_BOUNDARY or not boundary.isascii() or not boundary.isprintable():
            raise RefusedError(400, f"a form without a boundary in its Content-Type: {HOW}")
        self._body = body
        self._parser = multipart.PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
        self._file: Any = None
        self._in_file = False
        self._waiting: list[bytes] = []  # of the file
        self._received = 0
        self._taken = 0

    async def name(self) -> str:
        """Read up to the file; return its name as its sender knows it, perhaps empty."""
        while self._file is None:
            if not await self._feed():
                raise RefusedError(400, f"no file in the form: {HOW}")
        return str(self._file.filename)

    async def content(self) -> AsyncIterator[bytes]:
        """Yield the file piece by piece, and read the rest of the form."""
        while True:
            yield b"".join(self._waiting)  # empty where fields are read, so that nobody takes it for silence
            self._waiting.clear()
            if not await self._feed():
                return

    async def _feed(self) -> bool:
        """Parse what comes next; return whether there was anything."""
        chunk = await anext(self._body, b"")
        self._received += len(chunk)
        try:
            if not self._parser.closed:
                for event in self._parser.parse(chunk):
                    self._take(event)
        except multipart.ParserLimitReached as error:
            raise RefusedError(400, f"the form has too many or too long parts ({error}): {HOW}") from None
        except multipart.MultipartError as error:
            if not chunk:
                raise RefusedError(400, "the form was cut short: its last boundary is missing") from None
            raise RefusedError(400, f"the form cannot be read ({error}): {HOW}") from None
        if self._received - self._taken > MAX_OTHER_BYTES:
            raise RefusedError(413, f"the form holds too much beside its file: {HOW}")
        return bool(chunk)

    def _take(self, event: Any) -> None:
        """Take a part's head, a piece of its content, or its end."""
        if event is None:
            self._in_file = False
        elif isinstance(event, multipart.MultipartSegment):
            self._in_file = event.filename is not None
            if not self._in_file:
                return
            if self._file is not None:
                raise RefusedError(400, "more than one file in the form: send one at a time")
            if str(event.header("Content-Transfer-Encoding", "")).lower() not in PLAIN_ENCODINGS:
                raise RefusedError(400, "a file in an encoding of its own: send it as it is, in binary")
            self._file = event
        elif self._in_file:
            self._taken += len(event)
            self._waiting.append(bytes(event))

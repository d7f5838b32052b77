"""Bodies of requests: read within limits of size and time, and checked against their type."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, TypeVar

import msgspec
from starlette.requests import ClientDisconnect

from adafocus_edge.serve.guard import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

WITHIN_S = 10.0
"""Time limit for receiving a body."""
COMPARED = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
T = TypeVar("T")


async def read_json(request: Request, kind: type[T], what: str, max_bytes: int) -> T:
    """Return the body of a request.

    Args:
        request: the request.
        kind: type of the body, from :mod:`.schemas`.
        what: the body in words, for errors.
        max_bytes: maximum size.

    Raises:
        RefusedError: it is too large, too slow, or not JSON.
        ValidationError: it is JSON of another type, see :func:`wrong_field`.
    """
    try:
        received = await asyncio.wait_for(_received(request, max_bytes), WITHIN_S)
    except asyncio.TimeoutError:
        raise RefusedError(408, "the request took too long") from None
    try:
        return msgspec.json.decode(received, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"the body is not {what}: {error}") from None


def wrong_field(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return which field of a body is wrong, or nothing, and what is wrong with it."""
    text, _, place = str(error).partition(" - at ")
    field = re.match(r"`\$\.(\w+)", place)
    limit = re.fullmatch(r"Expected `\w+` (<=|>=|<|>) (\S+)", text)
    if limit is not None:
        text = f"must be {COMPARED[limit[1]]} {float(limit[2]):g}"
    return "" if field is None else field[1], text


async def _received(request: Request, max_bytes: int) -> bytes:
    received = bytearray()
    try:
        async for part in request.stream():
            received += part
            if len(received) > max_bytes:
                raise RefusedError(413, f"the body is larger than {max_bytes} bytes")
    except ClientDisconnect:
        raise RefusedError(400, "the body is incomplete") from None
    return bytes(received)

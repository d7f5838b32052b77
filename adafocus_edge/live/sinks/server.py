"""Addresses of the servers that sinks talk to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from adafocus_edge.errors import UsageError
from adafocus_edge.system.addresses import encoding_hint

if TYPE_CHECKING:
    from collections.abc import Sequence


BAD_ADDRESS = re.compile(r"[\s\x00-\x1f\x7f]")


def split_server(address: str, what: str, schemes: Sequence[str]) -> tuple[Any, str, int | None]:
    """Split and check an address; return its parts, host and port. Raises ``UsageError`` that does not repeat it."""
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:  # no message of these: it may hold the password
        hint = encoding_hint(address) or f": it must look like {wanted}HOST:PORT/PATH"
        raise UsageError(f"{what} cannot be read{hint}") from None
    if parts.scheme not in schemes:
        raise UsageError(f"{what} must begin with {wanted}")
    if not host or BAD_ADDRESS.search(address):
        raise UsageError(f"{what} lacks a host or has spaces: it must look like {wanted}HOST:PORT/PATH")
    return parts, host, port

"""Addresses of the servers that sinks send to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from adafocus_edge.errors import UsageError
from adafocus_edge.system.addresses import encoding_hint

if TYPE_CHECKING:
    from collections.abc import Sequence


INVALID = re.compile(r"[\s\x00-\x1f\x7f]")
"""Characters that an address must not contain."""


def split_server(address: str, what: str, schemes: Sequence[str]) -> tuple[Any, str, int | None]:
    """Split and check an address.

    Args:
        address: as given.
        what: the kind of address, in words; begins each error.
        schemes: allowed ones.

    Returns:
        its parts as ``urlsplit`` returns them, the host in ASCII, and the port, or None.

    Raises:
        UsageError: the address is invalid; the error does not repeat it, since it may hold a password.
    """
    expected = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:  # its message may hold the password
        hint = encoding_hint(address) or f": it must look like {expected}HOST:PORT/PATH"
        raise UsageError(f"{what} cannot be parsed{hint}") from None
    if parts.scheme not in schemes:
        raise UsageError(f"{what} must begin with {expected}")
    if not host or INVALID.search(address):
        raise UsageError(f"{what} has no host or contains spaces: it must look like {expected}HOST:PORT/PATH")
    return parts, host, port

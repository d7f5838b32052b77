"""Addresses of served models: ``triton://HOST:PORT/NAME?version=N&timeout=S``; nothing here imports NumPy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from adafocus_edge.errors import UsageError

SCHEME = "triton://"
PORT = 8001
"""Triton's usual port for gRPC."""
NAME = "adafocus"
"""Default of the name with which the names of a repository's models begin."""
TIMEOUT_S = 30.0
"""How long a request may take by default."""
EXAMPLE = "triton://host:8001"


@dataclass(frozen=True)
class Address:
    """Where a model is served.

    Attributes:
        host: of the server.
        port: of its gRPC service.
        name: with which the names of the models begin.
        version: of the models; None for the newest that is served.
        timeout_s: how long a request may take, in seconds.
    """

    host: str
    port: int = PORT
    name: str = NAME
    version: int | None = None
    timeout_s: float = TIMEOUT_S

    def __str__(self) -> str:
        """Return the address in messages: server and name."""
        return f"{SCHEME}{self.target}" + ("" if self.name == NAME else f"/{self.name}")

    @property
    def target(self) -> str:
        """Host and port, as gRPC takes them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def slug(self) -> str:
        """The address as the name of a file."""
        return re.sub(r"[^A-Za-z0-9.-]+", "-", str(self))


def check_name(option: str, name: str) -> str:
    """Return a name of models that can be part of an address and of a path. Raises ``UsageError``."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UsageError(f"{option} {name}: must be 1 to 64 letters, digits, - and _, beginning with a letter or digit")
    return name


def is_address(text: object) -> bool:
    """Return whether a text is meant as the address of a served model."""
    return isinstance(text, str) and text.startswith(SCHEME)


def parse_address(text: str) -> Address:
    """Parse an address. Raises ``UsageError`` that says what is wrong with it."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or PORT
        query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    except ValueError as error:
        raise UsageError(f"{text}: not an address of a Triton server ({error}): give {EXAMPLE}") from None
    name = parts.path.strip("/") or NAME
    unknown = set(query) - {"version", "timeout"}
    if not is_address(text) or not host or parts.username is not None or parts.fragment or "/" in name or unknown:
        wrong = f" ({sorted(unknown)[0]} is unknown)" if unknown else ""
        raise UsageError(f"{text}: not an address of a Triton server{wrong}: give {EXAMPLE}/NAME?version=N&timeout=S")
    version = query.get("version", [""])[-1]
    if version and not (version.isdecimal() and int(version)):
        raise UsageError(f"{text}: version {version}: must be a whole number from 1")
    try:
        timeout_s = float(query.get("timeout", [str(TIMEOUT_S)])[-1])
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s <= 3600:
        raise UsageError(f"{text}: timeout: must be a number of seconds from 0 to 3600")
    return Address(host, port, check_name(text, name), int(version) if version else None, timeout_s)

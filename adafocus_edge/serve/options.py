"""Options of the server, and the rule that other machines need a token."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from adafocus_edge.errors import UsageError
from adafocus_edge.system.options import SERVER, Option

MIN_TOKEN = 16
"""Minimum length of a token, in characters, if other machines can reach the server."""
MAX_TOKEN = 512
MAX_PORT = 65535


@dataclass(frozen=True)
class ServeOptions:
    """Address, access and limits of the server. Raises ``UsageError`` if a value is out of range.

    Attributes:
        host: name or address of the interface to listen on.
        port: port to listen on; 0 for any free one.
        edit: whether clients may change sources and event rules.
        spare_sources: number of sources that may be added while the server runs.
        token: access token; None allows everyone who can reach the port.
        max_upload_mb: maximum size of a file to classify, in millions of bytes.
        max_uploads: maximum number of files that are uploaded or classified at the same time.
        max_cameras: maximum number of browser cameras at the same time; 0 for none.
        camera_idle_s: time after which a browser camera that sends nothing is closed, in seconds.
        picture_fps: maximum pictures per second and stream, shared by all viewers.
        picture_width: maximum width of a picture, in pixels; wider ones are scaled down.
        max_viewers: maximum number of live data connections, and of video connections.
        kept: number of windows, of events and of notices that are kept for new clients.
        session_s: how long a login lasts, in seconds.
        stalled_s: time without progress after which ``/healthz`` reports the run as failing, in seconds.
    """

    host: Annotated[
        str,
        Option(
            "Listen on this address or host name; any that other machines can reach needs --token.",
            SERVER,
            metavar="HOST",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, Option("Listen on this port; 0 picks a free one.", SERVER, minimum=0, maximum=MAX_PORT, metavar="PORT")
    ] = 8765
    token: Annotated[
        str | None,
        Option(
            f"Require this access token, at least {MIN_TOKEN} characters where other machines can connect.",
            SERVER,
            variable="ADAFOCUS_EDGE_TOKEN",
            metavar="TOKEN",
        ),
    ] = None
    edit: Annotated[
        bool,
        Option(
            "Let the page, and everyone with the token, change the sources and event rules of --config FILE.",
            SERVER,
        ),
    ] = False
    max_upload_mb: Annotated[int, Option("Refuse uploads larger than this.", SERVER, minimum=1, metavar="MB")] = 256
    spare_sources: int = 8
    max_uploads: int = 2
    max_cameras: Annotated[
        int,
        Option(
            "Accept at most this many browser cameras at the same time; 0 for none.",
            SERVER,
            minimum=0,
        ),
    ] = 4
    camera_idle_s: float = 10.0
    picture_fps: float = 8.0
    picture_width: int = 960
    max_viewers: int = 32
    kept: int = 200
    session_s: float = 12 * 3600.0
    stalled_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.host.strip():
            raise UsageError("host is empty: give an address or a name, such as 127.0.0.1")
        if not 0 <= self.port <= MAX_PORT:
            raise UsageError(f"port {self.port}: must be 1 to {MAX_PORT}, or 0 for any free port")
        if not 0.1 <= self.picture_fps <= 60:
            raise UsageError(f"picture_fps {self.picture_fps:g}: must be 0.1 to 60")
        if not 16 <= self.picture_width <= 8192:
            raise UsageError(f"picture_width {self.picture_width}: must be 16 to 8192 pixels")
        for name in ("max_upload_mb", "max_uploads", "max_viewers", "kept", "spare_sources"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.max_cameras < 0:
            raise UsageError(f"max_cameras {self.max_cameras}: must be at least 0")


def is_local(host: str) -> bool:
    """Return whether only this machine can reach a host (given without a port, and IPv6 without brackets)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # any other name may resolve to any address
        return False


def check_exposure(options: ServeOptions) -> None:
    """Raise ``UsageError`` if the token is malformed, or if other machines can connect without a strong one."""
    token = options.token
    if token is not None and not (0 < len(token) <= MAX_TOKEN and token.isascii() and token.isprintable()):
        raise UsageError(f"the token must be 1 to {MAX_TOKEN} printable ASCII characters")
    if token is not None and token != token.strip():
        raise UsageError("the token must not begin or end with a space")
    if is_local(options.host):
        return
    if token is None:
        raise UsageError(
            f"{options.host} can be reached from other machines: add --token, or use --host 127.0.0.1 to serve this "
            "machine only"
        )
    if len(token) < MIN_TOKEN:
        raise UsageError(
            f"the token has {len(token)} characters, but {options.host} can be reached from other machines and needs "
            f"at least {MIN_TOKEN}: generate one with python -c 'import secrets; print(secrets.token_urlsafe())'"
        )

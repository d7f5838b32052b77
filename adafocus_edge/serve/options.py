"""How the page is served, and what of it may be reached from where."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from adafocus_edge.errors import UsageError
from adafocus_edge.system.options import SERVER, Option

SHORTEST_TOKEN = 16
"""Characters of a token that other machines may try."""
LONGEST_TOKEN = 512
HIGHEST_PORT = 65535


@dataclass(frozen=True)
class ServeOptions:
    """What the server offers, to whom, and how much of it. Checked when made; raises ``UsageError``.

    Attributes:
        host: name or address of the interface to listen on.
        port: 0 for any that is free.
        token: what a visitor must know; None lets in everybody who can reach the port.
        max_upload_mb: largest file that is taken for classifying, in millions of bytes.
        max_uploads: files that are uploaded or classified at the same time.
        most_cameras: browsers' cameras at the same time.
        camera_idle_s: a browser's camera that sends nothing for so long is closed.
        picture_fps: pictures of one stream per second, however many people watch it.
        picture_width: widest picture, in pixels; wider ones are made smaller.
        max_viewers: connections that get live data, and as many that get video, at the same time.
        kept: windows, events and notices that are kept for those who come later, of each.
        session_s: how long a login lasts.
        stalled_s: a run that has not moved for so long is told to be unhealthy.
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
        int, Option("Listen on this port; 0 picks a free one.", SERVER, minimum=0, maximum=HIGHEST_PORT, metavar="PORT")
    ] = 8765
    token: Annotated[
        str | None,
        Option(
            f"Require this access token, at least {SHORTEST_TOKEN} characters where other machines can connect.",
            SERVER,
            variable="ADAFOCUS_EDGE_TOKEN",
            metavar="TOKEN",
        ),
    ] = None
    max_upload_mb: Annotated[int, Option("Refuse uploads larger than this.", SERVER, minimum=1, metavar="MB")] = 256
    max_uploads: int = 2
    most_cameras: Annotated[
        int,
        Option(
            "Accept at most this many browser cameras at the same time; 0 for none.",
            SERVER,
            ("--max-cameras",),
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
            raise UsageError("an empty host: give an address or a name, such as 127.0.0.1")
        if not 0 <= self.port <= HIGHEST_PORT:
            raise UsageError(f"port {self.port}: must be 1 to {HIGHEST_PORT}, or 0 for one that is free")
        if not 0.1 <= self.picture_fps <= 60:
            raise UsageError(f"{self.picture_fps:g} pictures per second: must be 0.1 to 60")
        if not 16 <= self.picture_width <= 8192:
            raise UsageError(f"a picture width of {self.picture_width}: must be 16 to 8192 pixels")
        for name, what in (
            ("max_upload_mb", "megabytes of an upload"),
            ("max_uploads", "uploads at a time"),
            ("max_viewers", "viewers"),
            ("kept", "results kept"),
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"{getattr(self, name)} {what}: must be at least 1")
        if self.most_cameras < 0:
            raise UsageError(f"{self.most_cameras} browser cameras: must be at least 0, for none")


def is_local(host: str) -> bool:
    """Whether only this machine can reach a host (without a port; IPv6 without brackets)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, which may mean anything
        return False


def check_exposure(options: ServeOptions) -> None:
    """Refuse to let other machines in without a token that cannot be guessed. Raises ``UsageError``."""
    token = options.token
    if token is not None and not (0 < len(token) <= LONGEST_TOKEN and token.isascii() and token.isprintable()):
        raise UsageError(f"the token must be 1 to {LONGEST_TOKEN} printable ASCII characters")
    if token is not None and token != token.strip():
        raise UsageError("the token must not begin or end with a space")
    if is_local(options.host):
        return
    if token is None:
        raise UsageError(
            f"{options.host} can be reached from other machines: give --token, or --host 127.0.0.1 for this one only"
        )
    if len(token) < SHORTEST_TOKEN:
        raise UsageError(
            f"a token of {len(token)} characters can be guessed: {options.host} needs at least {SHORTEST_TOKEN} (try: "
            "python -c 'import secrets; print(secrets.token_urlsafe())')"
        )

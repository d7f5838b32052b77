"""Access control: host names, origins, the token and logins; and the security headers of every response."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response

from adafocus_edge.serve import schemas
from adafocus_edge.serve.options import is_local

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from adafocus_edge.serve.options import ServeOptions

COOKIE = "adafocus_session"
SECURE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # no-referrer would make browsers send the login form with "Origin: null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
NO_STORE = "no-store"
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
OPEN_PATHS = frozenset(("/healthz", "/login", "/page/style.css", "/page/theme.js", "/page/icon.svg"))
"""Paths that need no token: the health check, and the login page with its files."""
PAGE_PATHS = frozenset(("/", "/docs", "/events", "/login", "/sources"))
"""Paths that other sites may link to."""
ARCHIVE = "/api/archive/"
"""Beginning of the addresses that events carry as links: other sites may link to them, but not load them."""
MAX_SESSIONS = 1000
TRIES = 5
"""Wrong tokens allowed per address within :data:`TRIES_S`."""
TRIES_OF_ALL = 50
"""Wrong tokens allowed from all addresses together within :data:`TRIES_S`."""
TRIES_S = 60.0
MAX_ADDRESSES = 10_000


class Tries:
    """Counts wrong tokens, per address and in total."""

    def __init__(self) -> None:
        self._of_all: deque[float] = deque(maxlen=TRIES_OF_ALL)
        self._of: dict[str, deque[float]] = {}

    def wait_s(self, address: str) -> float:
        """Return how long an address must wait before its next try, in seconds; 0 if it may try now."""
        now_s = time.monotonic()
        waits = [0.0]
        for failed, maximum in ((self._of_all, TRIES_OF_ALL), (self._of.get(address, deque[float]()), TRIES)):
            if len(failed) >= maximum:
                waits.append(failed[0] + TRIES_S - now_s)
        return max(waits)

    def failed(self, address: str) -> None:
        """Count a wrong token of an address."""
        if address not in self._of and len(self._of) >= MAX_ADDRESSES:
            del self._of[next(iter(self._of))]
        now_s = time.monotonic()
        self._of.setdefault(address, deque(maxlen=TRIES)).append(now_s)
        self._of_all.append(now_s)


class Sessions:
    """Open logins: random names in cookies. Only their digests are stored."""

    def __init__(self, lasts_s: float) -> None:
        self._lasts_s = lasts_s
        self._until: dict[bytes, float] = {}

    def open(self) -> str:
        """Open a session; return its name."""
        now_s = time.monotonic()
        self._until = {digest: until_s for digest, until_s in self._until.items() if until_s > now_s}
        if len(self._until) >= MAX_SESSIONS:
            del self._until[next(iter(self._until))]
        name = secrets.token_urlsafe(32)
        self._until[_digest(name)] = now_s + self._lasts_s
        return name

    def holds(self, name: str) -> bool:
        """Return whether a session of this name is open."""
        # The lookup is by digest, so its timing reveals nothing about the names.
        return self._until.get(_digest(name), 0.0) > time.monotonic()

    def close(self, name: str) -> None:
        """Close a session."""
        self._until.pop(_digest(name), None)


class Guard:
    """ASGI middleware that refuses requests that are not allowed, and adds the security headers.

    Args:
        app: the application to protect.
        options: the host and the token.
        sessions: open logins.
        tries: failed logins.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, sessions: Sessions, tries: Tries) -> None:
        self._app, self._options, self._sessions, self._tries = app, options, sessions, tries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURE_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", NO_STORE)
            await send(message)

        refused = self._refuse(scope)
        await (refused or self._app)(scope, receive, send_guarded)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        method, path = scope["method"], scope["path"]
        host = headers.get("host", "")
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy may use the other header, and mistake the rest of this request for the next one (smuggling).
            return refusal(400, "Content-Length and Transfer-Encoding are both set", {"Connection": "close"})
        if path != "/healthz":
            if not host:
                return refusal(400, "the Host header is missing")
            # Another site can make its own name resolve to this machine (DNS rebinding). Without a token, the name is
            # the only protection.
            if self._options.token is None and not is_local(host_name(host)):
                return refusal(
                    403, "open http://localhost or http://127.0.0.1; other host names need a token (--token)"
                )
        if not _same_origin(headers, host, method, path):
            return refusal(403, "requests from pages of other sites are not allowed")
        if self._options.token is None or path in OPEN_PATHS:
            return None
        return self._without_token(scope, headers, path)

    def _without_token(self, scope: Scope, headers: Headers, path: str) -> Response | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            wait_s = self._tries.wait_s(address_of(scope))
            if wait_s > 0:
                return refusal(429, "too many wrong tokens: wait a minute", {"Retry-After": str(int(wait_s) + 1)})
            if same(given.strip(), self._options.token or ""):
                return None
            self._tries.failed(address_of(scope))
            return refusal(401, "wrong token", {"WWW-Authenticate": "Bearer"})
        name = session_name(headers)
        if name and self._sessions.holds(name):
            return None
        if path in PAGE_PATHS:
            return RedirectResponse("/login", 303)
        return refusal(
            401, "no token: sign in, or send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        )


class RefusedError(Exception):
    """The body of a request cannot be accepted; carries the status and the text of the response."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def refusal(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error response: JSON with one line of text."""
    return schemas.respond(schemas.Refusal(text), status, headers)


def same(given: str, token: str) -> bool:
    """Compare two tokens in constant time."""
    return hmac.compare_digest(_digest(given), _digest(token))


def address_of(scope: Scope) -> str:
    """Return the client's address, or nothing if it is unknown."""
    client = scope.get("client")
    return client[0] if client else ""


def session_name(headers: Headers) -> str:
    """Return the value of the login cookie, or nothing."""
    # Parsed here because http.cookies rejects the whole header for one malformed cookie, as other services on this
    # host may set.
    for cookie in headers.get("cookie", "").split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def host_name(netloc: str) -> str:
    """Return the name of ``name:port``, without the brackets of an IPv6 address; nothing if it is malformed."""
    if set(netloc) & set("@/\\?#"):
        return ""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _same_origin(headers: Headers, host: str, method: str, path: str) -> bool:
    """Return whether a request comes from this server's own page, or not from a page at all."""
    site = headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none"):
        followed = headers.get("sec-fetch-mode") == "navigate" and path.startswith(ARCHIVE)
        if method not in SAFE_METHODS or not (path in PAGE_PATHS or followed):
            return False
    origin = headers.get("origin")
    if origin is None or method in SAFE_METHODS:
        return True
    # Behind a proxy that terminates TLS, the scheme differs but the host does not.
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

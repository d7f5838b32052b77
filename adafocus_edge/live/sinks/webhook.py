"""The webhook sink: posts events to an address."""

from __future__ import annotations

import base64
import re
import ssl
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from adafocus_edge import __version__
from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Event, Message, Rules, Window
from adafocus_edge.live.sinks.server import split_server
from adafocus_edge.system.addresses import encoding_hint, shown_server
from adafocus_edge.system.backoff import Backoff
from adafocus_edge.system.json_lines import to_line
from adafocus_edge.system.retention import FailureReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: that would turn the POST into a GET, and send secret headers to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Webhook(Sink):
    """Posts each event as JSON to an address, and retries until the server accepts it.

    Permanent refusals (4xx except 408 and 429, and redirects, which are not followed) count as failed. Reports name
    only the host of the address, since user, path and query may be secret.

    Args:
        url: of the hook, http or https; a user and password in it are sent as basic authorization.
        report: is called with one line for each new error.
        windows: whether windows are posted too.
        headers: additional ones, such as ``Authorization: Bearer ...``.
        timeout_s: for connecting, and for each wait for an answer, in seconds.
        waiting: maximum number of messages in the queue.

    Raises:
        UsageError: the address or a header is invalid.
    """

    wants = (Event, Window, Rules)

    def __init__(
        self,
        url: str,
        report: Callable[[str], None],
        *,
        windows: bool = False,
        headers: Sequence[str] = (),
        timeout_s: float = 5.0,
        waiting: int = 1000,
    ) -> None:
        parts, host, port = split_server(url, "a webhook's address", ("http", "https"))
        place = f"[{host}]" if ":" in host else host
        netloc = place if port is None else f"{place}:{port}"
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~") if parts.query else ""
        self._url = f"{parts.scheme}://{netloc}{path}{query}"
        self._headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": f"adafocus-edge/{__version__}",
        }
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        self._headers.update(_parse_header(number, header) for number, header in enumerate(headers, 1))
        self._windows = windows
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirects)
        secret = bool(parts.path.strip("/") or parts.query)
        name = f"{shown_server(url)}{'/...' if secret else ''}"
        self._hint = encoding_hint(url)
        self._outage = FailureReporter(name, report)
        super().__init__(name, waiting, report)

    def enqueue(self, message: Message) -> None:
        """Take an event, or a window if these are posted too; see :meth:`Sink.enqueue`."""
        if self._windows or not isinstance(message, Window):
            super().enqueue(message)

    def process(self, message: Message) -> None:
        """Post one message; retry with growing pauses until it is accepted or the run ends.

        Raises:
            AdaFocusError: the server refuses it permanently.
        """
        if isinstance(message, Rules):
            self._windows = not message.rules
        if not isinstance(message, (Event, Window)):
            return
        if self._stopping.is_set() and self._outage.lasts:
            self.dropped += 1  # no time is left for a server that does not answer
            return
        body = to_line(message.to_json()).encode(errors="backslashreplace")
        backoff = Backoff()
        while True:
            failure = self._post(body)
            if failure is None:
                self._outage.worked()
                return
            self._outage.failed(f"{failure}{self._hint}: retried until it is accepted")
            if self._stopping.wait(backoff.pause_s):
                self.dropped += 1
                return
            backoff.failed()

    def _post(self, body: bytes) -> str | None:
        """Post once; return None, or why to retry. Raises ``AdaFocusError`` if the server refuses it permanently."""
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_s):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                hint = ": use the address that it redirects to" if error.code < 400 else ""
                raise AdaFocusError(f"refused with HTTP {error.code}{hint}") from None
            return f"answers HTTP {error.code}"
        except urllib.error.URLError as error:
            return _reason(error.reason)
        except (OSError, HTTPException, ValueError) as error:
            return _reason(error)


def _parse_header(number: int, header: str) -> tuple[str, str]:
    """Return the name and the value of a header. Raises ``UsageError`` that does not repeat the value."""
    field, colon, value = header.partition(":")
    value = value.strip()
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", field, re.ASCII) or not value.isprintable():
        raise UsageError(f"header {number} of the webhook must look like 'Name: value'")
    if not value.isascii():
        raise UsageError(f"header {number} of the webhook, {field}: must be ASCII")
    return field, value


def _reason(error: object) -> str:
    """Return why there was no answer, in words that cannot contain the address."""
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted ({error.verify_message})"
    known = error.strerror if isinstance(error, OSError) else None
    return f"cannot be reached ({known or type(error).__name__})"

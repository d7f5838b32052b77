"""Where a live run's results go: a growing file, pictures of events, a webhook, an MQTT broker."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import numpy as np

from adafocus_edge import __version__
from adafocus_edge.cli.tables import CSV_COLUMNS
from adafocus_edge.errors import AdaFocusError, MissingExtraError, UsageError
from adafocus_edge.live.messages import Event, Listener, Look, Message, Notice, Window, iso, to_line
from adafocus_edge.system.addresses import encoding_hint, shown_server
from adafocus_edge.system.files import append_whole, is_stream, open_stream, whole_file, write_all
from adafocus_edge.system.retention import Newest, Outage, SafeNames, check_folder, safe_name, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from paho.mqtt.client import MQTTMessageInfo

    from adafocus_edge.model.spec import ModelSpec

LIVE_CSV_COLUMNS = (*CSV_COLUMNS, "at", "event", "cut", "text")
"""Of live results: ``event`` is empty for windows, ``start`` or ``end`` for events, ``provisional`` for looks, and for
notices what happened to the source; ``text`` says it in words."""
RETRY_S = 5.0
"""Pause before a file that could not be written is tried again."""
LONGEST_PAUSE_S = 60.0
"""Pauses between attempts at a webhook grow from 1 s, doubling, up to this."""
BAD_ADDRESS = re.compile(r"[\s\x00-\x1f\x7f]")


class ResultsFile(Listener):
    """Appends results to a file as they come: JSON lines, or CSV where its name ends in ``.csv``; each line is flushed.

    Where the disk is full, lines wait until there is room again. A line is written whole or not at all. A file that
    was moved away or deleted meanwhile (logrotate) is begun anew; a device or a pipe is written to as it is.

    Args:
        path: of the file.
        tell: takes one line about something that went wrong.
        provisional: whether looks are written too.
        logits: whether JSON lines hold the logits of every step.
        rotate_mb: size in megabytes before which the file becomes ``NAME.1``, ``NAME.1`` becomes ``NAME.2``, and so on.
        keep: how many of these stay.
        waiting: messages that may wait.

    Raises:
        UsageError: a number makes no sense, or ``path`` is a folder or a CSV with other columns.
        AdaFocusError: ``path`` cannot be written.
    """

    wants = (Window, Event, Notice, Look)
    local = True

    def __init__(
        self,
        path: Path,
        tell: Callable[[str], None],
        *,
        provisional: bool = False,
        logits: bool = False,
        rotate_mb: float | None = None,
        keep: int = 5,
        waiting: int = 1000,
    ) -> None:
        if rotate_mb is not None and not rotate_mb > 0:
            raise UsageError(f"a file of {rotate_mb:g} megabytes cannot be: give more than 0")
        if keep < 1:
            raise UsageError(f"keeping {keep} older files cannot be: give at least 1")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, not a file to write")
        self._is_regular = not is_stream(path)
        self._path = path.resolve() if self._is_regular else path  # a link stays, and what it leads to is rotated
        self._is_csv = path.suffix.lower() == ".csv"
        self._provisional = provisional
        self._logits = logits
        self._rotate_bytes = None if rotate_mb is None else rotate_mb * 1e6
        self._keep = keep
        self._file: IO[bytes] | None = None
        self._outage = Outage(str(path), tell)
        try:
            if self._is_regular:  # opening a pipe waits for its reader: that is left to the thread
                self._open()
        except OSError as error:
            self._close_file()
            raise AdaFocusError(f"{path}: cannot be written ({error.strerror})") from None
        super().__init__(str(path), waiting, tell)

    def offer(self, message: Message) -> None:
        """Take a message; see :meth:`Listener.offer`. Looks only if provisional results are asked for."""
        if self._provisional or not isinstance(message, Look):
            super().offer(message)

    def handle(self, message: Message) -> None:
        """Write one line; waits and tries again where that fails, until the run ends."""
        line = self._line(message)
        while True:
            try:
                self._write(line)
            except OSError as error:
                self._outage.failed(f"cannot be written ({error.strerror}): tried again every {RETRY_S:g} s")
                self._close_file()
                if self._stopping.wait(RETRY_S):
                    self.dropped += 1
                    return
            else:
                self._outage.worked()
                return

    def finish(self) -> None:
        """Close the file."""
        self._close_file()

    def _line(self, message: Message) -> bytes:
        if isinstance(message, Window):
            entry = message.to_json(logits=self._logits)
        else:
            assert isinstance(message, (Event, Notice, Look))
            entry = message.to_json()
        text = _csv_line(_csv_row(entry)) if self._is_csv else to_line(entry) + "\n"
        # What no UTF-8 can hold (odd bytes of a file's name) becomes an escape that JSON reads back.
        return text.encode(errors="backslashreplace")

    def _write(self, line: bytes) -> None:
        if not self._is_regular:
            write_all(self._file or self._open(), line)
            return
        if self._file is not None and not self._is_same(self._file):
            self._close_file()
        file = self._file or self._open()
        size = _size_bytes(file)
        header_bytes = len(CSV_HEADER) if self._is_csv else 0
        if self._rotate_bytes is not None and size > header_bytes and size + len(line) > self._rotate_bytes:
            try:
                self._rotate()
            except OSError as error:  # a file that is too large is better than none
                self._outage.failed(f"cannot be renamed ({error.strerror}): it grows on")
            file = self._open()
            size = _size_bytes(file)
        append_whole(file, line, size)

    def _is_same(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> IO[bytes]:
        if not self._is_regular:
            self._file = open_stream(self._path)
            return self._file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._file = self._path.open("ab", buffering=0)
        size = _size_bytes(file)
        with self._path.open("rb") as before:
            first = before.readline(10_000)
            before.seek(max(0, size - 1))
            torn = before.read(1) not in (b"", b"\n")  # by a crash in the middle of a line
        if self._is_csv and first and first != CSV_HEADER:
            self._close_file()
            raise UsageError(f"{self._path}: is a CSV with other columns: give another name, or move it away")
        if self._is_csv and not size:
            append_whole(file, CSV_HEADER, 0)
        elif torn:
            append_whole(file, b"\n", size)
        return file

    def _rotate(self) -> None:
        self._close_file()

        def older(number: int) -> Path:
            return self._path.with_name(f"{self._path.name}.{number}")

        for number in range(self._keep, 1, -1):
            with suppress(FileNotFoundError):
                older(number - 1).replace(older(number))
        self._path.replace(older(1))

    def _close_file(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def _csv_row(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a message's JSON object under the columns of the CSV."""
    if "notice" in entry:
        return {**entry, "event": entry["notice"]}
    if "event" in entry:
        return {**entry, "confidence": entry["peak"]}
    if "provisional" in entry:
        return {**entry, "event": "provisional", "start_s": entry["time_s"]}
    return entry


def _csv_line(row: dict[str, Any]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, LIVE_CSV_COLUMNS, extrasaction="ignore").writerow(row)
    return text.getvalue()


CSV_HEADER = _csv_line(dict(zip(LIVE_CSV_COLUMNS, LIVE_CSV_COLUMNS, strict=True))).encode()


def _size_bytes(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


class Snapshots(Listener):
    """Saves a picture when an event starts: ``SOURCE-YYYYmmdd-HHMMSS-LABEL.jpg``, UTC, whole or not at all.

    Args:
        folder: to write into; made if need be.
        spec: of the model, for where the patch lies in the frame.
        tell: takes one line about something that went wrong.
        keep: how many pictures of the folder stay, the newest; None for all.
        quality: of the JPEG, 1 to 95.
        waiting: events that may wait.

    Raises:
        UsageError: a number makes no sense, or ``folder`` is a file.
        AdaFocusError: ``folder`` cannot be written.
    """

    wants = (Event,)
    _OWN = re.compile(r".+-\d{8}-\d{6}-.+\.jpg")

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        tell: Callable[[str], None],
        *,
        keep: int | None = 1000,
        quality: int = 90,
        waiting: int = 32,
    ) -> None:
        if keep is not None and keep < 1:
            raise UsageError(f"keeping {keep} snapshots cannot be: give at least 1")
        if not 1 <= quality <= 95:
            raise UsageError(f"a JPEG's quality is 1 to 95, not {quality}")
        check_folder(folder, "snapshots")
        self._folder = folder
        self._spec = spec
        self._newest = None if keep is None else Newest(keep)
        self._quality = quality
        self._names = SafeNames()
        self._outage = Outage(str(folder), tell)
        super().__init__(str(folder), waiting, tell)

    def offer(self, message: Message) -> None:
        """Take an event's start; see :meth:`Listener.offer`."""
        if isinstance(message, Event) and message.kind == "start":
            super().offer(message)

    def handle(self, message: Message) -> None:
        """Save one picture; where that fails it is dropped and counted."""
        if not isinstance(message, Event):
            return
        from PIL import Image

        from adafocus_edge.runtime.annotate import Overlay, draw, in_square_pixels

        clock = iso(message.wall_s)[:19].replace("T", " ") + " UTC"
        headline = f"{message.label}  {message.peak:.0%}"
        overlay = Overlay(message.patch, headline, f"{message.source}   |   {clock}", message.peak)
        drawn = Image.fromarray(np.asarray(draw(message.frame.to_rgb(), overlay, self._spec)))
        picture = in_square_pixels(drawn, message.frame.sample_aspect)
        base = f"{self._names.of(message.source)}-{stamp(message.wall_s)}-{safe_name(message.label)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{base}.jpg"
            if path.exists():  # the same label twice within a second
                path = self._folder / f"{base}-{message.number}.jpg"
            with whole_file(path) as file:
                picture.save(file, "JPEG", quality=self._quality)
            if self._newest is not None:
                self._newest.wrote(path)
                self._newest.delete_older(self._saved())
        except OSError as error:
            self.failed += 1
            self.dropped += 1
            self._outage.failed(f"snapshots cannot be written ({error.strerror or error})")
        else:
            self._outage.worked()

    def _saved(self) -> list[Path]:
        """Return the snapshots in the folder, oldest first."""
        found = []
        for path in self._folder.iterdir():
            if self._OWN.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET, and take secret headers to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Webhook(Listener):
    """Posts each event as JSON to an address, again and again until it is taken.

    What is refused for good (4xx but 408 and 429, and redirects, which are not followed) is counted as failed.
    Nothing of the address but its host is ever told: user, path and query may be secret.

    Args:
        url: of the hook, http or https; a user and password in it are sent as basic authorization.
        tell: takes one line about something that went wrong.
        windows: whether windows are posted too.
        headers: more of them, such as ``Authorization: Bearer ...``.
        timeout_s: for connecting, and for each wait for an answer.
        waiting: messages that may wait.

    Raises:
        UsageError: the address or a header cannot be used.
    """

    wants = (Event, Window)

    def __init__(
        self,
        url: str,
        tell: Callable[[str], None],
        *,
        windows: bool = False,
        headers: Sequence[str] = (),
        timeout_s: float = 5.0,
        waiting: int = 1000,
    ) -> None:
        parts, host, port = _split(url, "a webhook's address", ("http", "https"))
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
        for number, header in enumerate(headers, 1):
            field, colon, value = header.partition(":")
            value = value.strip()
            if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", field, re.ASCII) or not value.isprintable():
                raise UsageError(f"header {number} of the webhook must look like 'Name: value'")
            if not value.isascii():
                raise UsageError(f"header {number} of the webhook, {field}: only ASCII can be sent")
            self._headers[field] = value
        self._windows = windows
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirects)
        secret = bool(parts.path.strip("/") or parts.query)
        name = f"{shown_server(url)}{'/...' if secret else ''}"
        self._hint = encoding_hint(url)
        self._outage = Outage(name, tell)
        super().__init__(name, waiting, tell)

    def offer(self, message: Message) -> None:
        """Take an event, or a window where these are asked for; see :meth:`Listener.offer`."""
        if self._windows or not isinstance(message, Window):
            super().offer(message)

    def handle(self, message: Message) -> None:
        """Post one message, with growing pauses until it is taken or the run ends. Raises where it is refused."""
        if not isinstance(message, (Event, Window)):
            return
        if self._stopping.is_set() and self._outage.lasts:
            self.dropped += 1  # there is no time left for an address that does not answer
            return
        body = to_line(message.to_json()).encode(errors="backslashreplace")
        pause_s = 1.0
        while True:
            why = self._post(body)
            if why is None:
                self._outage.worked()
                return
            self._outage.failed(f"{why}{self._hint}: tried again until it is taken")
            if self._stopping.wait(pause_s):
                self.dropped += 1
                return
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def _post(self, body: bytes) -> str | None:
        """Post once. Returns why it must be tried again, or None. Raises ``AdaFocusError`` where it is refused."""
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_s):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                hint = ": give the address that it leads to" if error.code < 400 else ""
                raise AdaFocusError(f"refused with HTTP {error.code}{hint}") from None
            return f"answers HTTP {error.code}"
        except urllib.error.URLError as error:
            return _reason(error.reason)
        except (OSError, HTTPException, ValueError) as error:
            return _reason(error)


def _reason(error: object) -> str:
    """Say why there was no answer, in words that cannot hold the address."""
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted ({error.verify_message})"
    known = error.strerror if isinstance(error, OSError) else None
    return f"cannot be reached ({known or type(error).__name__})"


def _split(address: str, what: str, schemes: Sequence[str]) -> tuple[Any, str, int | None]:
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


class Mqtt(Listener):
    """Publishes to an MQTT broker, as JSON, below a prefix: ``SOURCE/window``, ``SOURCE/event``, ``SOURCE/status``.

    Events and states arrive at least once (QoS 1), if need be after the broker is back; windows arrive at most once.
    States are retained, and so is ``online``: 1, and 0 once the run has ended or was cut off.

    Args:
        address: ``mqtt://user:password@host:port/topic/prefix``, or ``mqtts://`` for TLS; user, port and prefix may
            be left out.
        tell: takes one line about something that went wrong.
        ca_file: certificates to trust with ``mqtts://`` instead of the system's.
        waiting: messages that may wait, here and again in the client while the broker is away.

    Raises:
        UsageError: the address cannot be used.
        AdaFocusError: ``ca_file`` cannot be read.
        MissingExtraError: paho-mqtt is not installed.
    """

    wants = (Window, Event, Notice)
    KEEPALIVE_S = 20
    CONNECT_S = 5.0
    LONGEST_PAUSE_S = 60
    FAREWELL_S = 2.0
    """How long the end waits for the broker to have taken everything."""

    def __init__(
        self, address: str, tell: Callable[[str], None], *, ca_file: Path | None = None, waiting: int = 1000
    ) -> None:
        parts, host, port = _split(address, "a broker's address", ("mqtt", "mqtts"))
        tls = parts.scheme == "mqtts"
        if ca_file is not None and not tls:
            raise UsageError("certificates are for mqtts:// only: begin the broker's address so, or leave them out")
        self._prefix = unquote(parts.path).strip("/") or "adafocus"
        if re.search("[?#]", address) and (hint := encoding_hint(address)):
            raise UsageError(f"a broker's address cannot be read{hint}")
        if re.search(r"[+#\0]", self._prefix) or re.search("[?#]", address) or self._prefix.startswith("$"):
            raise UsageError("an MQTT topic cannot hold + # ?, nor begin with $: change the path of the address")
        if len(self._prefix.encode(errors="replace")) > 1000:
            raise UsageError("an MQTT topic of more than 1000 bytes: shorten the path of the address")
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise MissingExtraError("publishing to an MQTT broker", "mqtt", "paho-mqtt") from None
        client = self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"adafocus-{uuid4().hex[:12]}")
        if parts.username is not None:
            client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if tls:
            try:
                client.tls_set(None if ca_file is None else str(ca_file))
            except OSError as error:
                raise AdaFocusError(f"{ca_file}: no certificates to trust ({error.strerror or error})") from None
        self._names = SafeNames()
        self._status: dict[str, bytes] = {}
        self._was_connected = False
        name = shown_server(address)
        self._outage = Outage(name, tell)
        client.will_set(f"{self._prefix}/online", "0", qos=1, retain=True)
        client.max_queued_messages_set(waiting)
        client.reconnect_delay_set(1, self.LONGEST_PAUSE_S)
        client.connect_timeout = self.CONNECT_S
        client.suppress_exceptions = True  # of ``tell``, which would end the client's thread
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.connect_async(host, port or (8883 if tls else 1883), self.KEEPALIVE_S)
        client.loop_start()
        super().__init__(name, waiting, tell)

    def handle(self, message: Message) -> None:
        """Hand one message to the client; drops and counts a window that the broker is not there for."""
        if not isinstance(message, (Window, Event, Notice)):
            return
        body = to_line(message.to_json()).encode(errors="backslashreplace")
        topic = f"{self._prefix}/{self._names.of(message.source)}"
        if isinstance(message, Event):
            self._publish(f"{topic}/event", body, qos=1)
        elif isinstance(message, Notice):
            self._status[f"{topic}/status"] = body  # first: whoever connects now publishes it
            if self._client.is_connected():
                self._publish(f"{topic}/status", body, qos=1, retain=True)
        elif self._client.is_connected():
            self._publish(f"{topic}/window", body, qos=0)
        else:
            self.dropped += 1
        self.idle()

    def idle(self) -> None:
        """Note that the broker is there."""
        if self._client.is_connected():
            self._outage.worked()

    def _publish(self, topic: str, body: bytes, *, qos: int, retain: bool = False) -> MQTTMessageInfo:
        from paho.mqtt.enums import MQTTErrorCode

        told = self._client.publish(topic, body, qos, retain)
        if told.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE and retain:  # states must not wait behind events
            told = self._client.publish(topic, body, 0, retain)
        kept = told.rc == MQTTErrorCode.MQTT_ERR_NO_CONN and qos > 0  # waits in the client
        if told.rc != MQTTErrorCode.MQTT_ERR_SUCCESS and not kept:
            self.dropped += 1
        return told

    def finish(self) -> None:
        """Say good-bye to the broker, and end the client."""
        if self._client.is_connected():
            # Queued behind all that waits: once it has arrived, so has everything.
            last = self._publish(f"{self._prefix}/online", b"0", qos=1, retain=True)
            with suppress(ValueError, RuntimeError):
                last.wait_for_publish(self.FAREWELL_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        if reason.is_failure:
            self._outage.failed(f"the broker refuses ({str(reason).lower()}): tried again")
            return
        self._was_connected = True
        self._publish(f"{self._prefix}/online", b"1", qos=1, retain=True)
        for topic, body in list(self._status.items()):  # a broker that was restarted may have forgotten them
            self._publish(topic, body, qos=1, retain=True)

    def _on_connect_fail(self, *_: Any) -> None:
        self._outage.failed("the broker cannot be reached: tried again")

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        lost, self._was_connected = self._was_connected, False
        if lost and reason.is_failure:
            self._outage.failed("the broker is gone: tried again")

"""The web server in a thread of its own: it begins when its port is there, and ends in bounded time."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.serve.app import create_app
from adafocus_edge.serve.options import ServeOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from adafocus_edge.serve.run import Run

START_S = 15.0
GRACE_S = 2
"""Answers that are under way get this long at the end; then their connections are cut."""
CLOSE_S = 5.0
MAX_CONNECTIONS = 256
HEAD_WITHIN_S = 10.0
"""A connection on which no request is under way must bring the head of one within this time."""
BACKLOG = 128


class Server:
    """Serves a live run's page and API. A context manager; it installs no signal handlers and prints nothing.

    Args:
        run: that is served.
        options: how.
        tell: takes one line about something that went wrong; None for silence.

    Raises:
        UsageError: on entering, where the host or the port cannot be had, or would be open to other machines.
        AdaFocusError: on entering, where the server does not start.
    """

    def __init__(
        self, run: Run, options: ServeOptions | None = None, tell: Callable[[str], None] | None = None
    ) -> None:
        self.options = options or ServeOptions()
        self._app = create_app(run, self.options)
        self._log = _Log(tell)
        self._port = self.options.port
        self._server: _Uvicorn | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._port

    @property
    def url(self) -> str:
        """Where the page is, as one opens it on this machine, or for all interfaces by this machine's name."""
        host = self.options.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://[{host}]:{self._port}/" if ":" in host else f"http://{host}:{self._port}/"

    def __enter__(self) -> Self:
        listening = _listen(self.options.host, self.options.port)
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Uvicorn(config)
        self._log.attach()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="web server", daemon=True)
        self._thread.start()
        there = self._server.there.wait(START_S)
        if self._error is not None or not there:
            self.close()
            reason = self._log.reason or self._error or f"not within {START_S:.0f} s"
            raise AdaFocusError(f"the web server did not start ({reason})")
        self._log.started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, within_s: float = CLOSE_S) -> None:
        """End the server and its connections; what is under way gets :data:`GRACE_S`. May be called again."""
        thread, server, loop = self._thread, self._server, self._loop
        if thread is None or server is None:
            return
        self._log.closing = True
        if loop is not None and not loop.is_closed():
            with suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(self._begin_closing)
        server.should_exit = True
        thread.join(within_s)
        if thread.is_alive():
            server.force_exit = True
            thread.join(1.0)
        self._log.detach()
        self._thread = None

    def _begin_closing(self) -> None:
        service = getattr(self._app.state, "service", None)
        if service is not None:
            service.begin_closing()

    # -- the server's thread ------------------------------------------------------------------------------------------

    def _run(self, listening: socket.socket) -> None:
        assert self._server is not None
        self._log.thread_id = threading.get_ident()
        try:
            with listening:
                asyncio.run(self._serve(self._server, listening))
        except BaseException as error:  # uvicorn exits where it cannot start
            self._error = error
        finally:
            self._server.there.set()

    async def _serve(self, server: _Uvicorn, listening: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        await server.serve(sockets=[listening])
        # Those that did not end in time: somebody who reads too slowly, or sends without an end.
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        if tasks := list(server.server_state.tasks):
            await asyncio.wait(tasks, timeout=1.0)
        await asyncio.sleep(0)


class _Uvicorn(uvicorn.Server):
    """Tells another thread when it has started; cuts connections that only take up room."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.there = threading.Event()
        self._idle: dict[Any, tuple[Any, float]] = {}  # by connection: its last request, and since when that is over

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.there.set()

    async def on_tick(self, counter: int) -> bool:
        self._cut_silent()
        return await super().on_tick(counter)

    def _cut_silent(self) -> None:
        """Cut who asks for nothing: uvicorn would wait for ever, and a few hundred such leave no room for others."""
        now_s = time.monotonic()
        before, self._idle = self._idle, {}
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            asked = connection.cycle
            if asked is not None and not asked.response_complete:
                continue
            last, since_s = before.get(connection, (None, now_s))
            self._idle[connection] = asked, since_s if asked is last else now_s
            if now_s - self._idle[connection][1] > HEAD_WITHIN_S:
                connection.transport.abort()


class _Log(logging.Handler):
    """Hands on in one line what uvicorn reports as an error, and keeps the rest to itself.

    Attributes:
        thread_id: of the server's thread: the logger is one for all servers of a process.
        started: whether errors are told; before, the first is kept as the ``reason``.
        closing: whether what is cut at the end is no error any more.
    """

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        super().__init__(logging.ERROR)
        self.thread_id = 0
        self.started = self.closing = False
        self.reason = ""
        self._tell = tell
        self._logger = logging.getLogger("uvicorn")
        self._propagated = True

    def attach(self) -> None:
        """Take over from the root logger."""
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)

    def detach(self) -> None:
        """Leave it as it was."""
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one error."""
        if self.closing or record.thread != self.thread_id:
            return
        error = record.exc_info[1] if record.exc_info else None
        # What keeps the application from starting comes as a traceback in the text; its last line is the error.
        lines = (f"{type(error).__name__}: {error}" if error is not None else record.getMessage()).split("\n")
        text = " ".join(next((line for line in reversed(lines) if line.strip()), "").split())
        if not self.started:
            self.reason = self.reason or text
        elif self._tell is not None:
            self._tell(f"web page: {text}")


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and listens. Raises ``UsageError``."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"{host}: no such host: give the address of one of this machine's interfaces") from None
    # "localhost" may be both; browsers try 127.0.0.1 in any case.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where the other would share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is taken: give another with --port, or 0 for a free one") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"{host} is not an address of this machine: give one with --host") from None
        if error.errno == errno.EACCES:
            raise UsageError(f"port {port} needs more rights: give one from 1024 up with --port") from None
        raise UsageError(f"{host}:{port} cannot be listened on ({error.strerror})") from None
    return listening

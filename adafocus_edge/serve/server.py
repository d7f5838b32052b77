"""The web server: runs uvicorn in a thread of its own, and closes in bounded time."""

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

    from adafocus_edge.live.event_store import EventStore
    from adafocus_edge.serve.editor import Editor
    from adafocus_edge.serve.run import Run

START_S = 15.0
GRACE_S = 2
"""When the server closes, responses in progress get this long before their connections are cut."""
CLOSE_S = 5.0
MAX_CONNECTIONS = 256
HEAD_WITHIN_S = 10.0
"""Time limit for the head of the next request on an idle connection."""
BACKLOG = 128


class Server:
    """Serves a live run's page and API. A context manager; it installs no signal handlers and prints nothing.

    Args:
        run: the run to serve.
        options: address, access and limits.
        report: called with one line for each error of the server; None ignores them.
        archive: of events, or None; the caller closes it.
        editor: changes sources and event rules, or None.

    Raises:
        UsageError: other machines could connect without a token; on entering: the host or port cannot be used.
        AdaFocusError: on entering: the server did not start.
    """

    def __init__(
        self,
        run: Run,
        options: ServeOptions | None = None,
        report: Callable[[str], None] | None = None,
        archive: EventStore | None = None,
        editor: Editor | None = None,
    ) -> None:
        self.options = options or ServeOptions()
        self._app = create_app(run, self.options, archive, editor)
        self._log = _Log(report)
        self._port = self.options.port
        self._server: _Uvicorn | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._port

    @property
    def url(self) -> str:
        """Address of the page; with this machine's name if the server listens on all interfaces."""
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
        ready = self._server.ready.wait(START_S)
        if self._error is not None or not ready:
            self.close()
            reason = self._log.reason or self._error or f"not ready after {START_S:.0f} s"
            raise AdaFocusError(f"the web server did not start ({reason})")
        self._log.started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, within_s: float = CLOSE_S) -> None:
        """Close the server; responses in progress get :data:`GRACE_S`. May be called more than once."""
        thread, server, loop = self._thread, self._server, self._loop
        if thread is None or server is None:
            return
        self._log.closing = True
        if loop is not None and not loop.is_closed():
            with suppress(RuntimeError):  # the loop was closed in the meantime
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
        except BaseException as error:  # uvicorn calls sys.exit if it cannot start
            self._error = error
        finally:
            self._server.ready.set()

    async def _serve(self, server: _Uvicorn, listening: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        await server.serve(sockets=[listening])
        # These did not end in time: the client reads too slowly, or does not stop sending.
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        if tasks := list(server.server_state.tasks):
            await asyncio.wait(tasks, timeout=1.0)
        await asyncio.sleep(0)


class _Uvicorn(uvicorn.Server):
    """Signals another thread when it has started; cuts idle connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._idle: dict[Any, tuple[Any, float]] = {}  # connection -> its last request, and the time that ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        self._cut_idle()
        return await super().on_tick(counter)

    def _cut_idle(self) -> None:
        """Cut connections without a request: uvicorn keeps them forever, and enough of them would block all others."""
        now_s = time.monotonic()
        before, self._idle = self._idle, {}
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            request = connection.cycle
            if request is not None and not request.response_complete:
                continue
            last, since_s = before.get(connection, (None, now_s))
            self._idle[connection] = request, since_s if request is last else now_s
            if now_s - self._idle[connection][1] > HEAD_WITHIN_S:
                connection.transport.abort()


class _Log(logging.Handler):
    """Reports each error that uvicorn logs as one line, and discards all other records.

    Attributes:
        thread_id: identifier of the server's thread; all servers of a process share uvicorn's logger.
        started: whether errors are reported; before, the first one is kept as the ``reason``.
        closing: whether errors are discarded, because connections are being cut.
        reason: why the server did not start.
        propagated: whether uvicorn's logger propagated before the first server of the process.
    """

    changing = threading.Lock()
    propagated = True

    def __init__(self, report: Callable[[str], None] | None) -> None:
        super().__init__(logging.ERROR)
        self.thread_id = 0
        self.started = self.closing = False
        self.reason = ""
        self._report = report
        self._logger = logging.getLogger("uvicorn")

    def attach(self) -> None:
        """Take over from the root logger."""
        with _Log.changing:
            if not self._is_taken():
                _Log.propagated = self._logger.propagate
                self._logger.propagate = False
            self._logger.addHandler(self)

    def detach(self) -> None:
        """Restore the logger after the last server of the process."""
        with _Log.changing:
            self._logger.removeHandler(self)
            if not self._is_taken():
                self._logger.propagate = _Log.propagated

    def _is_taken(self) -> bool:
        return any(isinstance(handler, _Log) for handler in self._logger.handlers)

    def emit(self, record: logging.LogRecord) -> None:
        """Report an error."""
        if self.closing or record.thread != self.thread_id:
            return
        error = record.exc_info[1] if record.exc_info else None
        # An error at startup is logged as a traceback in the text; its last line is the error itself.
        lines = (f"{type(error).__name__}: {error}" if error is not None else record.getMessage()).split("\n")
        text = " ".join(next((line for line in reversed(lines) if line.strip()), "").split())
        if not self.started:
            self.reason = self.reason or text
        elif self._report is not None:
            self._report(f"web page: {text}")


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ``UsageError`` if the host or the port cannot be used."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host {host}: unknown host; give the address of one of this machine's interfaces") from None
    # "localhost" may have an IPv4 and an IPv6 address; browsers always try 127.0.0.1.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR would share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} of {host} is already in use: choose another with --port, or --port 0 for any free one"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {host}: not an address of this machine") from None
        if error.errno == errno.EACCES:
            raise UsageError(f"no permission to listen on port {port}: choose one from 1024 up with --port") from None
        raise UsageError(f"cannot listen on {host}:{port} ({error.strerror})") from None
    return listening

"""The web application: routes and their handlers."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from adafocus_edge.serve import schemas
from adafocus_edge.serve.archive import ArchiveApi
from adafocus_edge.serve.board import Board
from adafocus_edge.serve.cameras import Cameras
from adafocus_edge.serve.configuration import ConfigurationApi
from adafocus_edge.serve.guard import (
    COOKIE,
    NO_STORE,
    SECURE_HEADERS,
    Guard,
    Sessions,
    Tries,
    address_of,
    refusal,
    same,
    session_name,
)
from adafocus_edge.serve.metrics import exposition
from adafocus_edge.serve.openapi import describe
from adafocus_edge.serve.options import ServeOptions, check_exposure
from adafocus_edge.serve.pages import PAGE, PATHS, page
from adafocus_edge.serve.pictures import BOUNDARY, Pictures
from adafocus_edge.serve.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adafocus_edge.live.event_store import EventStore
    from adafocus_edge.serve.editor import Editor
    from adafocus_edge.serve.run import Run

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
BEAT_S = 1.0
"""How often connected clients get the run's status."""
MAX_LOGIN_BYTES = 4096
LOGIN_WITHIN_S = 10.0
"""Time limit for receiving the login form."""
LOGIN_MESSAGE = "<!-- message -->"
"""Placeholder for an error message in the login page."""


class Service:
    """Objects that the routes share. Created, used and closed in the server's event loop.

    Args:
        run: the run to serve.
        options: access and limits.
    """

    def __init__(self, run: Run, options: ServeOptions) -> None:
        self._run = run
        self.board = Board(run, options, asyncio.get_running_loop())
        self.pictures = Pictures(run, options)
        self.uploads = Uploads(run, options)
        self.cameras = Cameras(run, options)
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe to the run."""
        with suppress(Exception):  # /healthz reports it
            await run_in_threadpool(self.board.refresh)
        self._run.listen(self.board)
        self._beating = asyncio.create_task(self._beat())

    def begin_closing(self) -> None:
        """End the responses that have no end of their own."""
        for part in (self.board, self.pictures, self.uploads):
            part.closing.set()

    async def close(self) -> None:
        """Close cameras and streams, and unsubscribe from the run."""
        self.begin_closing()
        if self._beating is not None:
            self._beating.cancel()
        self._run.unlisten(self.board)
        await self.cameras.close()
        await run_in_threadpool(self.board.close, 1.0)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with suppress(Exception):  # the run is ending, or it failed, which /healthz reports
                await self.cameras.close_idle()
                self.pictures.forget()
                self.board.beat(await run_in_threadpool(self.board.refresh))


class Site:
    """Handlers of all routes.

    Args:
        run: the run to serve.
        options: access and limits.
        sessions: open logins.
        tries: failed logins.
        archive: of events, or None.
        editor: of sources and event rules, or None.
    """

    def __init__(
        self, run: Run, options: ServeOptions, sessions: Sessions, tries: Tries, archive: EventStore | None = None,
        editor: Editor | None = None,
    ) -> None:  # fmt: skip
        self._run, self._options, self._sessions, self._tries = run, options, sessions, tries
        self.archive = ArchiveApi(archive)
        self.configuration = ConfigurationApi(editor, run.classes, options.picture_width)
        self._files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in MEDIA_TYPES}
        self._pages = {path: page(name) for name, path in PATHS.items()}
        self._tags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in self._files.items()}
        self._description = bytes(JSONResponse(describe(options)).body)
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        """Objects that the routes share while the server runs."""
        if self._service is None:
            raise RuntimeError("the application has not been started")
        return self._service

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Subscribe to the run while the server runs."""
        self._service = app.state.service = Service(self._run, self._options)
        await self._service.start()
        try:
            yield
        finally:
            await self._service.close()

    # -- the page -----------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """Handle ``GET`` of the pages: live, events, sources, and the description of the API for people."""
        return HTMLResponse(self._pages[request.url.path])

    async def page_file(self, request: Request) -> Response:
        """Handle ``GET /page/{name}``: return a script, style sheet or image of the page."""
        name = request.path_params["name"]
        if name not in self._files:
            return refusal(404, "file not found")
        headers = {"Cache-Control": "no-cache", "ETag": self._tags[name]}
        if request.headers.get("if-none-match") == self._tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(self._files[name], headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])

    def _login_page(self, status: int, message: str) -> Response:
        shown = f'<p class="problem" role="alert">{message}</p>' if message else ""
        return HTMLResponse(self._pages["/login"].decode().replace(LOGIN_MESSAGE, shown), status)

    async def login(self, request: Request) -> Response:
        """Handle ``/login``: return the form; for a correct token, set the cookie and redirect to the page."""
        if self._options.token is None:
            return RedirectResponse("/", 303)
        if request.method != "POST":
            return self._login_page(200, "")
        if self._tries.wait_s(address_of(request.scope)) > 0:
            return self._login_page(429, "Too many wrong tokens. Wait a minute, then try again.")
        try:
            given = await asyncio.wait_for(_login_token(request), LOGIN_WITHIN_S)
        except asyncio.TimeoutError:
            return self._login_page(408, "The request took too long. Try again.")
        if given is None or not same(given, self._options.token):
            self._tries.failed(address_of(request.scope))
            return self._login_page(401, "Wrong token.")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            self._sessions.open(),
            max_age=int(self._options.session_s),
            httponly=True,
            # Links in messages of other programs lead here. Changes need this origin besides (guard.py).
            samesite="lax",
            # Behind a proxy that terminates TLS, only the origin shows that the browser uses HTTPS.
            secure=request.headers.get("origin", "").startswith("https:"),
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """Handle ``POST /logout``."""
        self._sessions.close(session_name(request.headers))
        answer = RedirectResponse("/login" if self._options.token else "/", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    # -- status and results -------------------------------------------------------------------------------------------

    async def description(self, request: Request) -> Response:
        """Handle ``GET /api/openapi.json``: return the description of the API."""
        del request
        return Response(self._description, media_type="application/json")

    async def status(self, request: Request) -> Response:
        """Handle ``GET /api/status``: return the state of the run."""
        del request
        return schemas.respond(await run_in_threadpool(self.service.board.refresh))

    async def results(self, request: Request) -> Response:
        """Handle ``GET /api/results``: return the last windows, newest first."""
        if (limit := _limit(request, self._options.kept)) is None:
            return refusal(400, f"limit must be 1 to {self._options.kept}")
        board, source = self.service.board, request.query_params.get("source")
        return schemas.respond(schemas.Results(board.recent(board.windows, source, limit)))

    async def events(self, request: Request) -> Response:
        """Handle ``GET /api/events``: return the last events and notices, newest first."""
        if (limit := _limit(request, self._options.kept)) is None:
            return refusal(400, f"limit must be 1 to {self._options.kept}")
        board, source = self.service.board, request.query_params.get("source")
        events, notices = board.recent(board.events, source, limit), board.recent(board.notices, source, limit)
        return schemas.respond(schemas.Events(events, notices))

    async def live(self, request: Request) -> Response:
        """Handle ``GET /api/live``: stream server-sent events."""
        board = self.service.board
        if board.full:
            return refusal(503, f"{self._options.max_viewers} clients are connected already", {"Retry-After": "10"})
        headers = {"Cache-Control": NO_STORE, "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return StreamingResponse(board.live(), headers=headers, media_type="text/event-stream")

    async def metrics(self, request: Request) -> Response:
        """Handle ``GET /metrics``."""
        del request
        service = self.service
        own = {
            "web_watchers": (float(service.board.watchers), "Live data connections."),
            "web_videos": (float(service.pictures.viewers), "Video connections."),
            "web_cameras": (float(len(service.cameras)), "Open browser cameras."),
            "web_uploads": (float(service.uploads.under_way), "Files being uploaded or classified."),
        }
        now = await run_in_threadpool(service.board.refresh)
        return Response(exposition(now, own), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(self, request: Request) -> Response:
        """Handle ``GET /healthz``: return 200 while the model's loop runs and makes progress, else 503."""
        del request
        healthy = False
        with suppress(Exception):  # a run whose status cannot be read is not healthy
            status = await run_in_threadpool(self._run.status)
            healthy = status.alive and status.stalled_s <= self._options.stalled_s
        return schemas.respond(schemas.Health("ok" if healthy else "failing"), 200 if healthy else 503)

    # -- pictures -----------------------------------------------------------------------------------------------------

    async def picture(self, request: Request) -> Response:
        """Handle ``GET .../picture.jpg``: return a source's newest picture, or 204 if ``after`` is its number."""
        name, service = request.path_params["name"], self.service
        if not await self._knows(name):
            return refusal(404, f"{name}: no such source")
        newest, after = await service.pictures.newest(name), request.query_params.get("after")
        if newest is None:
            none_yet = refusal(503, f"{name}: no picture yet", {"Retry-After": "1"})
            return none_yet if after is None else Response(status_code=204)
        headers = {"Cache-Control": NO_STORE, "X-Frame-Index": str(newest.index)}
        if after == str(newest.index):
            return Response(status_code=204, headers=headers)
        return Response(newest.jpeg, headers=headers, media_type="image/jpeg")

    async def video(self, request: Request) -> Response:
        """Handle ``GET .../video.mjpeg``: stream a source's pictures."""
        name, service = request.path_params["name"], self.service
        if not await self._knows(name):
            return refusal(404, f"{name}: no such source")
        if service.pictures.full:
            return refusal(503, f"{self._options.max_viewers} clients are connected already", {"Retry-After": "10"})
        headers = {"Cache-Control": NO_STORE}
        media_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        if request.method == "HEAD":
            return Response(headers=headers, media_type=media_type)
        return StreamingResponse(service.pictures.video(name), headers=headers, media_type=media_type)

    async def _knows(self, name: str) -> bool:
        board = self.service.board
        if not board.knows(name):  # it may be new
            await run_in_threadpool(board.refresh)
        return board.knows(name)

    # -- files and cameras --------------------------------------------------------------------------------------------

    async def classify(self, request: Request) -> Response:
        """Handle ``POST /api/classify``."""
        return await self.service.uploads.classify(request)

    async def open_camera(self, request: Request) -> Response:
        """Handle ``POST /api/cameras``."""
        return await self.service.cameras.open(request)

    async def camera_frame(self, request: Request) -> Response:
        """Handle ``POST /api/cameras/{id}/frame``."""
        return await self.service.cameras.frame(request)

    async def close_camera(self, request: Request) -> Response:
        """Handle ``DELETE /api/cameras/{id}``."""
        return await self.service.cameras.delete(request)


def create_app(
    run: Run, options: ServeOptions, archive: EventStore | None = None, editor: Editor | None = None
) -> Starlette:
    """Return the application that serves a run. Raises ``UsageError`` if other machines could reach it unprotected."""
    check_exposure(options)
    sessions, tries = Sessions(options.session_s), Tries()
    site = Site(run, options, sessions, tries, archive, editor)
    routes = [
        Route("/", site.page),
        Route("/events", site.page),
        Route("/sources", site.page),
        Route("/docs", site.page),
        Route("/page/{name}", site.page_file),
        Route("/login", site.login, methods=["GET", "POST"]),
        Route("/logout", site.logout, methods=["POST"]),
        Route("/healthz", site.healthz),
        Route("/metrics", site.metrics),
        Route("/api/openapi.json", site.description),
        Route("/api/status", site.status),
        Route("/api/results", site.results),
        Route("/api/events", site.events),
        Route("/api/archive", site.archive.list),
        Route("/api/archive/training.csv", site.archive.training),
        Route("/api/archive/{key}", site.archive.event, methods=["GET", "DELETE"]),
        Route("/api/archive/{key}/clip.mp4", site.archive.clip),
        Route("/api/archive/{key}/picture.jpg", site.archive.picture),
        Route("/api/archive/{key}/mark", site.archive.mark, methods=["PUT"]),
        *_configuration_routes(site.configuration),
        Route("/api/live", site.live),
        # Names of sources may contain slashes: they can be addresses or paths.
        Route("/api/streams/{name:path}/picture.jpg", site.picture),
        Route("/api/streams/{name:path}/video.mjpeg", site.video),
        Route("/api/classify", site.classify, methods=["POST"]),
        Route("/api/cameras", site.open_camera, methods=["POST"]),
        Route("/api/cameras/{id}/frame", site.camera_frame, methods=["POST"]),
        Route("/api/cameras/{id}", site.close_camera, methods=["DELETE"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=site.lifespan,
        middleware=[Middleware(Guard, options=options, sessions=sessions, tries=tries)],
        exception_handlers={HTTPException: _http_error, Exception: _unexpected},
    )


def _configuration_routes(configuration: ConfigurationApi) -> list[Route]:
    lists = {"sources": configuration.sources, "events": configuration.events}
    return [
        Route("/api/config", configuration.show),
        Route("/api/config/reload", configuration.reload, methods=["POST"]),
        Route("/api/config/test", configuration.test, methods=["POST"]),
        *(Route(f"/api/config/{name}", handler, methods=["POST"]) for name, handler in lists.items()),
        *(
            Route(f"/api/config/{name}/{{number}}", handler, methods=["PUT", "DELETE"])
            for name, handler in lists.items()
        ),
    ]


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "not found", 405: f"method {request.method} is not allowed here"}.get(error.status_code, error.detail)
    return refusal(error.status_code, text, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    del request, error  # the server's log has the details
    return refusal(500, "internal server error", {**SECURE_HEADERS, "Cache-Control": NO_STORE})


def _limit(request: Request, maximum: int) -> int | None:
    """Return the query parameter ``limit``, 50 by default; None if it is not a number or out of range."""
    given: Any = request.query_params.get("limit", str(min(50, maximum)))
    if not (given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= maximum):
        return None
    return int(given)


async def _login_token(request: Request) -> str | None:
    """Read the token from the login form; return None if the form is too long or incomplete."""
    received = bytearray()
    try:
        async for part in request.stream():
            received += part
            if len(received) > MAX_LOGIN_BYTES:
                return None
    except ClientDisconnect:
        return None
    return parse_qs(received.decode("utf-8", "replace")).get("token", [""])[0].strip()

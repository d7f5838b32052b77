"""The web application: which address is answered by what."""

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

from adafocus_edge.serve.board import Board
from adafocus_edge.serve.cameras import Cameras
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
from adafocus_edge.serve.pictures import BOUNDARY, Pictures
from adafocus_edge.serve.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adafocus_edge.serve.run import Run

PAGE = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
BEAT_S = 1.0
"""How often those who watch are told how the run is doing."""
LONGEST_LOGIN_BYTES = 4096
LOGIN_WITHIN_S = 10.0
"""The form must be there within this time from when it began to come."""
LOGIN_MESSAGE = "<!-- message -->"
"""What the login page has in the place of what went wrong."""


class Service:
    """What the routes share. Made, used and closed in the server's event loop.

    Args:
        run: that is served.
        options: how.
    """

    def __init__(self, run: Run, options: ServeOptions) -> None:
        self._run = run
        self.board = Board(run, options, asyncio.get_running_loop())
        self.pictures = Pictures(run, options)
        self.uploads = Uploads(run, options)
        self.cameras = Cameras(run, options)
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen to the run."""
        with suppress(Exception):  # told by /healthz
            await run_in_threadpool(self.board.refresh)
        self._run.listen(self.board)
        self._beating = asyncio.create_task(self._beat())

    def begin_closing(self) -> None:
        """Let what has no end of its own end."""
        for part in (self.board, self.pictures, self.uploads):
            part.closing.set()

    async def close(self) -> None:
        """End it all."""
        self.begin_closing()
        if self._beating is not None:
            self._beating.cancel()
        self._run.unlisten(self.board)
        await self.cameras.close()
        await run_in_threadpool(self.board.close, 1.0)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with suppress(Exception):  # a run that is ending; /healthz tells of one that failed
                await self.cameras.close_idle()
                self.pictures.forget()
                self.board.beat(await run_in_threadpool(self.board.refresh))


class Site:
    """Answers requests.

    Args:
        run: that is served.
        options: how.
        sessions: that logins open.
        tries: that failed.
    """

    def __init__(self, run: Run, options: ServeOptions, sessions: Sessions, tries: Tries) -> None:
        self._run, self._options, self._sessions, self._tries = run, options, sessions, tries
        self._files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in MEDIA_TYPES}
        self._tags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in self._files.items()}
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        """What the routes share, while the server runs."""
        if self._service is None:
            raise RuntimeError("the application has not been started")
        return self._service

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Listen to the run while the server runs."""
        self._service = app.state.service = Service(self._run, self._options)
        await self._service.start()
        try:
            yield
        finally:
            await self._service.close()

    # -- the page -----------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """Answer ``GET /``."""
        del request
        return HTMLResponse(self._files["index.html"])

    async def page_file(self, request: Request) -> Response:
        """Answer with what the page consists of."""
        name = request.path_params["name"]
        if name not in self._files or name.endswith(".html"):
            return refusal(404, "no such file")
        headers = {"Cache-Control": "no-cache", "ETag": self._tags[name]}
        if request.headers.get("if-none-match") == self._tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(self._files[name], headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])

    def _login_page(self, status: int, message: str) -> Response:
        shown = f'<p class="problem" role="alert">{message}</p>' if message else ""
        return HTMLResponse(self._files["login.html"].decode().replace(LOGIN_MESSAGE, shown), status)

    async def login(self, request: Request) -> Response:
        """Answer ``/login``: the form, or where it was filled in rightly a cookie and the page."""
        if self._options.token is None:
            return RedirectResponse("/", 303)
        if request.method != "POST":
            return self._login_page(200, "")
        if self._tries.wait_s(address_of(request.scope)) > 0:
            return self._login_page(429, "Too many wrong tokens. Wait a minute, then try again.")
        try:
            given = await asyncio.wait_for(_login_token(request), LOGIN_WITHIN_S)
        except asyncio.TimeoutError:
            return self._login_page(408, "The token took too long. Try again.")
        if given is None or not same(given, self._options.token):
            self._tries.failed(address_of(request.scope))
            return self._login_page(401, "That is not the token.")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            self._sessions.open(),
            max_age=int(self._options.session_s),
            httponly=True,
            samesite="strict",
            # Behind a proxy that ends TLS only the origin tells.
            secure=request.headers.get("origin", "").startswith("https:"),
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """Answer ``POST /logout``."""
        self._sessions.close(session_name(request.headers))
        answer = RedirectResponse("/login" if self._options.token else "/", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    # -- what is known ------------------------------------------------------------------------------------------------

    async def description(self, request: Request) -> Response:
        """Answer ``GET /api/openapi.json`` with what all the others are."""
        del request
        return JSONResponse(describe(self._options))

    async def status(self, request: Request) -> Response:
        """Answer ``GET /api/status`` with how the run is doing."""
        del request
        return JSONResponse(await run_in_threadpool(self.service.board.refresh))

    async def results(self, request: Request) -> Response:
        """Answer ``GET /api/results``: the last windows, newest first."""
        if (limit := _limit(request, self._options.kept)) is None:
            return refusal(400, f"limit must be 1 to {self._options.kept}")
        source = request.query_params.get("source")
        return JSONResponse({"results": self.service.board.recent("windows", source, limit)})

    async def events(self, request: Request) -> Response:
        """Answer ``GET /api/events``: the last events and notices, newest first."""
        if (limit := _limit(request, self._options.kept)) is None:
            return refusal(400, f"limit must be 1 to {self._options.kept}")
        board, source = self.service.board, request.query_params.get("source")
        found = {kind: board.recent(kind, source, limit) for kind in ("events", "notices")}
        return JSONResponse(found)

    async def live(self, request: Request) -> Response:
        """Answer ``GET /api/live`` with server-sent events."""
        board = self.service.board
        if board.full:
            return refusal(503, f"{self._options.max_viewers} people watch already", {"Retry-After": "10"})
        headers = {"Cache-Control": NO_STORE, "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return StreamingResponse(board.live(), headers=headers, media_type="text/event-stream")

    async def metrics(self, request: Request) -> Response:
        """Answer ``GET /metrics``."""
        del request
        service = self.service
        own = {
            "web_watchers": (float(service.board.watchers), "Connections that get live data."),
            "web_videos": (float(service.pictures.viewers), "Connections that get video."),
            "web_cameras": (float(len(service.cameras)), "Browsers' cameras that are open."),
            "web_uploads": (float(service.uploads.under_way), "Files that are uploaded or classified."),
        }
        now = await run_in_threadpool(service.board.refresh)
        return Response(exposition(now, own), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(self, request: Request) -> Response:
        """Answer ``GET /healthz``: 200 while the run is alive and moves."""
        del request
        healthy = False
        with suppress(Exception):  # a run that cannot even tell is not healthy
            told = (await run_in_threadpool(self._run.status)).to_json()
            healthy = bool(told["alive"]) and told["stalled_s"] <= self._options.stalled_s
        return JSONResponse({"status": "ok" if healthy else "failing"}, 200 if healthy else 503)

    # -- pictures -----------------------------------------------------------------------------------------------------

    async def picture(self, request: Request) -> Response:
        """Answer with a source's newest picture; 204 where the one with the number ``after`` is the newest."""
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
        """Answer with a source's pictures as they come."""
        name, service = request.path_params["name"], self.service
        if not await self._knows(name):
            return refusal(404, f"{name}: no such source")
        if service.pictures.full:
            return refusal(503, f"{self._options.max_viewers} videos are watched already", {"Retry-After": "10"})
        headers = {"Cache-Control": NO_STORE}
        media_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        if request.method == "HEAD":
            return Response(headers=headers, media_type=media_type)
        return StreamingResponse(service.pictures.video(name), headers=headers, media_type=media_type)

    async def _knows(self, name: str) -> bool:
        board = self.service.board
        if not board.knows(name):  # it may have come just now
            await run_in_threadpool(board.refresh)
        return board.knows(name)

    # -- what is sent here --------------------------------------------------------------------------------------------

    async def classify(self, request: Request) -> Response:
        """Answer ``POST /api/classify``."""
        return await self.service.uploads.classify(request)

    async def open_camera(self, request: Request) -> Response:
        """Answer ``POST /api/cameras``."""
        return await self.service.cameras.open(request)

    async def camera_frame(self, request: Request) -> Response:
        """Answer ``POST /api/cameras/{id}/frame``."""
        return await self.service.cameras.frame(request)

    async def close_camera(self, request: Request) -> Response:
        """Answer ``DELETE /api/cameras/{id}``."""
        return await self.service.cameras.delete(request)


def create_app(run: Run, options: ServeOptions) -> Starlette:
    """Return the application that serves a run. Raises ``UsageError`` where it would be open to other machines."""
    check_exposure(options)
    sessions, tries = Sessions(options.session_s), Tries()
    site = Site(run, options, sessions, tries)
    routes = [
        Route("/", site.page),
        Route("/page/{name}", site.page_file),
        Route("/login", site.login, methods=["GET", "POST"]),
        Route("/logout", site.logout, methods=["POST"]),
        Route("/healthz", site.healthz),
        Route("/metrics", site.metrics),
        Route("/api/openapi.json", site.description),
        Route("/api/status", site.status),
        Route("/api/results", site.results),
        Route("/api/events", site.events),
        Route("/api/live", site.live),
        # Names of sources hold slashes: addresses and paths.
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


async def _http_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    text = {404: "no such page", 405: "not allowed here"}.get(error.status_code, error.detail)
    return refusal(error.status_code, text, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    del request, error  # told to whoever runs the server
    return refusal(500, "something went wrong in the server", {**SECURE_HEADERS, "Cache-Control": NO_STORE})


def _limit(request: Request, most: int) -> int | None:
    """Return how many entries are asked for; None if that is no number or out of range."""
    given: Any = request.query_params.get("limit", str(min(50, most)))
    if not (given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= most):
        return None
    return int(given)


async def _login_token(request: Request) -> str | None:
    """Read the token from the login's form; None if that is too long."""
    received = bytearray()
    try:
        async for part in request.stream():
            received += part
            if len(received) > LONGEST_LOGIN_BYTES:
                return None
    except ClientDisconnect:
        return None
    return parse_qs(received.decode("utf-8", "replace")).get("token", [""])[0].strip()

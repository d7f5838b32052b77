"""The archive of events over HTTP: the list, clips, pictures, marks, and the clips that a person has judged."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from adafocus_edge.errors import AdaFocusError
from adafocus_edge.live.event_store import EventStore, Filter, StoredEvent
from adafocus_edge.serve import schemas
from adafocus_edge.serve.bodies import read_json
from adafocus_edge.serve.guard import NO_STORE, RefusedError, refusal
from adafocus_edge.system.csv_lines import csv_header, csv_line
from adafocus_edge.system.timestamps import iso

PAGE_EVENTS = 30
"""Events per page by default."""
MAX_PAGE_EVENTS = 200
MAX_BODY_BYTES = 4096
NO_ARCHIVE = "no archive of events: start the server with --events DIR"
COLUMNS = ("video", "class", "source")
Found = TypeVar("Found")


class ArchiveApi:
    """Handlers of the archive's routes.

    Args:
        store: the archive, or None: then every answer is 404.
    """

    def __init__(self, store: EventStore | None) -> None:
        self._store = store

    async def list(self, request: Request) -> Response:
        """Handle ``GET /api/archive``: return events, newest first."""
        try:
            asked, limit, before = _asked(request)
        except ValueError as error:
            return refusal(400, str(error))

        def find(store: EventStore) -> schemas.Archive:
            try:
                events, total = store.find(asked, limit, before)
            except KeyError:
                raise RefusedError(400, f"before={before}: no such event") from None
            sources, labels = store.names()
            return schemas.Archive([_entry(one) for one in events], total, sources, labels, list(store.classes()))

        try:
            found = await self._with_store(find)
        except RefusedError as error:
            return refusal(error.status, str(error))
        return found if isinstance(found, Response) else schemas.respond(found, headers={"Cache-Control": NO_STORE})

    async def event(self, request: Request) -> Response:
        """Handle ``/api/archive/{key}``: return an event, or with ``DELETE`` delete it, its clip and its picture."""
        key = request.path_params["key"]
        missing = refusal(404, f"{key}: no such event")
        if request.method == "DELETE":
            deleted = await self._with_store(lambda store: store.delete(key))
            if isinstance(deleted, Response):
                return deleted
            return Response(status_code=204) if deleted else missing
        event = await self._with_store(lambda store: store.get(key))
        if isinstance(event, Response):
            return event
        return missing if event is None else schemas.respond(_entry(event))

    async def clip(self, request: Request) -> Response:
        """Handle ``GET /api/archive/{key}/clip.mp4``: return a clip, or the part of it that is asked for."""
        return await self._file(request, "clip", "video/mp4")

    async def picture(self, request: Request) -> Response:
        """Handle ``GET /api/archive/{key}/picture.jpg``."""
        return await self._file(request, "picture", "image/jpeg")

    async def mark(self, request: Request) -> Response:
        """Handle ``PUT /api/archive/{key}/mark``: keep what a person says of an event."""
        try:
            given = await read_json(request, schemas.Judgement, "a mark", MAX_BODY_BYTES)
        except msgspec.ValidationError as error:
            return refusal(400, f"the body is not a mark: {error}")
        except RefusedError as error:
            return refusal(error.status, str(error))
        key = request.path_params["key"]

        def change(store: EventStore) -> StoredEvent | None:
            if given.correct is not None and given.correct not in store.classes():
                raise RefusedError(400, f"{given.correct}: no class of the model")
            event = store.get(key)
            if event is not None and given.mark == "wrong" and given.correct == event.label:
                raise RefusedError(400, f"{given.correct}: is what the event says; mark it right")
            return store.mark(key, given.mark, given.correct)

        try:
            event = await self._with_store(change)
        except RefusedError as error:
            return refusal(error.status, str(error))
        if isinstance(event, Response):
            return event
        return refusal(404, f"{key}: no such event") if event is None else schemas.respond(_entry(event))

    async def training(self, request: Request) -> Response:
        """Handle ``GET /api/archive/training.csv``: list the judged clips, with their classes."""
        del request
        judged = await self._with_store(lambda store: store.judged())
        if isinstance(judged, Response):
            return judged
        text = io.StringIO()
        text.write(csv_header(COLUMNS))
        for event, label in judged:
            if label is not None:
                text.write(csv_line(COLUMNS, {"video": event.clip, "class": label, "source": event.source}))
        headers = {"Cache-Control": NO_STORE, "Content-Disposition": 'attachment; filename="training.csv"'}
        return Response(text.getvalue(), headers=headers, media_type="text/csv; charset=utf-8")

    async def _with_store(self, work: Callable[[EventStore], Found]) -> Found | Response:
        """Run some work on the archive beside the event loop; return its result, or the response to an error."""
        if self._store is None:
            return refusal(404, NO_ARCHIVE)
        try:
            return await run_in_threadpool(work, self._store)
        except AdaFocusError as error:
            return refusal(500, str(error))

    async def _file(self, request: Request, what: str, media_type: str) -> Response:
        key = request.path_params["key"]
        event = await self._with_store(lambda store: store.get(key))
        if isinstance(event, Response):
            return event
        name = None if event is None else getattr(event, what)
        if event is None or name is None:
            return refusal(404, f"{key}: no such {'event' if event is None else what}")
        assert self._store is not None
        path = self._store.path(name)
        if not await run_in_threadpool(path.is_file):
            return refusal(404, f"{key}: its {what} is gone")
        download = name if "download" in request.query_params else None
        # A clip still grows while its event lasts.
        return FileResponse(path, headers={"Cache-Control": NO_STORE}, media_type=media_type, filename=download)


def _entry(event: StoredEvent) -> schemas.ArchivedEvent:
    return schemas.ArchivedEvent(
        key=event.key,
        source=event.source,
        label=event.label,
        started_at=iso(event.started),
        ended_at=None if event.ended is None else iso(event.ended),
        peak=event.peak,
        cut=event.cut,
        clip_s=event.clip_s,
        picture=event.picture is not None,
        bytes=event.bytes,
        mark=event.mark,
        correct=event.correct,
    )


def _asked(request: Request) -> tuple[Filter, int, str | None]:
    """Return what the query asks for. Raises ``ValueError``."""
    given = dict(request.query_params)
    mark: Any = given.get("mark")
    if mark not in (None, "right", "wrong", "any", "none"):
        raise ValueError("mark must be right, wrong, any or none")
    limit = given.get("limit", str(PAGE_EVENTS))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= MAX_PAGE_EVENTS):
        raise ValueError(f"limit must be 1 to {MAX_PAGE_EVENTS}")
    least = given.get("min_peak")
    min_peak = None if least is None else _number(least)
    if min_peak is not None and not 0 <= min_peak <= 1:
        raise ValueError("min_peak must be 0 to 1")
    asked = Filter(
        given.get("source"), given.get("label"), _time(given, "since"), _time(given, "until"), min_peak, mark
    )
    return asked, int(limit), given.get("before")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    return value if math.isfinite(value) else -1.0


def _time(given: dict[str, str], name: str) -> float | None:
    """Return a time of the query in seconds since 1970; one without a zone is UTC."""
    if name not in given:
        return None
    try:
        moment = datetime.fromisoformat(given[name].replace("Z", "+00:00"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{name} must be a time such as 2026-05-17T08:30:00Z") from None

"""Sources and event rules over HTTP: the list, changes, and a picture of a source to see whether it works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from adafocus_edge.errors import AdaFocusError, BackendError, SourceError, UsageError
from adafocus_edge.live.stream_config import InvalidError
from adafocus_edge.serve import schemas
from adafocus_edge.serve.bodies import read_json, wrong_field
from adafocus_edge.serve.editor import ConflictError, Editor, ForbiddenError, MissingError
from adafocus_edge.serve.guard import NO_STORE, RefusedError, refusal
from adafocus_edge.serve.pictures import encode
from adafocus_edge.serve.stream_file import Kind
from adafocus_edge.system.addresses import conceal, without_password

MAX_BODY_BYTES = 200_000
"""Room for all regions and masks of a source."""
TESTS = 2
"""Sources that are tested at the same time."""
STATUSES: tuple[tuple[type[AdaFocusError], int], ...] = (
    (ForbiddenError, 403),
    (MissingError, 404),
    (ConflictError, 409),
    (UsageError, 422),
    (SourceError, 422),
    (BackendError, 422),
)
NONE = "this server has no configuration"
T = TypeVar("T")


class ConfigurationApi:
    """Handlers of the configuration's routes.

    Args:
        editor: changes it, or None: then every answer is 404.
        classes: of the model.
        max_width: of pictures, in pixels.
    """

    def __init__(self, editor: Editor | None, classes: tuple[str, ...], max_width: int) -> None:
        self._editor, self._classes, self._max_width = editor, classes, max_width
        self._testing = 0

    async def show(self, request: Request) -> Response:
        """Handle ``GET /api/config``: return sources and event rules."""
        del request
        return await self._answer(self._shown)

    async def reload(self, request: Request) -> Response:
        """Handle ``POST /api/config/reload``: use the file as it is now."""
        del request
        return await self._changed(lambda editor: editor.reload())

    async def sources(self, request: Request) -> Response:
        """Handle ``POST /api/config/sources``, and ``PUT`` and ``DELETE`` of ``.../{number}``."""
        number = _number(request)
        if request.method == "DELETE":
            return await self._removed(request, "source", number)
        return await self._with_body(
            request, schemas.SourceChange, "a source", lambda editor, asked: editor.change_source(number, asked)
        )

    async def events(self, request: Request) -> Response:
        """Handle ``POST /api/config/events``, and ``PUT`` and ``DELETE`` of ``.../{number}``."""
        number = _number(request)
        if request.method == "DELETE":
            return await self._removed(request, "event", number)
        return await self._with_body(
            request, schemas.EventChange, "an event rule", lambda editor, asked: editor.change_rule(number, asked)
        )

    async def test(self, request: Request) -> Response:
        """Handle ``POST /api/config/test``: return a picture of a source, or why there is none."""
        if self._testing >= TESTS:
            return refusal(429, f"{TESTS} sources are being tested already: try again", {"Retry-After": "5"})
        self._testing += 1
        try:
            asked = await read_json(request, schemas.SourceTest, "a source", MAX_BODY_BYTES)
            return await self._answer(lambda editor: self._picture(editor, asked))
        except (RefusedError, msgspec.ValidationError) as error:
            return _unread(error)
        finally:
            self._testing -= 1

    # -- parts --------------------------------------------------------------------------------------------------------

    def _shown(self, editor: Editor) -> Response:
        state = editor.state()
        shown = schemas.Configuration(
            file=editor.file_name,
            version=state.version,
            changed=state.changed,
            problem=None if state.problem is None else conceal(state.problem),
            sources=[
                schemas.ConfiguredSource(
                    name=entry.name,
                    address=without_password(entry.address),
                    paused=entry.paused,
                    regions=[[list(point) for point in one] for one in entry.zones.regions],
                    masks=[[list(point) for point in one] for one in entry.zones.masks],
                    running=editor.running(entry),
                )
                for entry in state.entries
            ],
            rules=[
                schemas.ConfiguredRule(rule.label, rule.threshold, rule.for_s, rule.cooldown_s) for rule in state.rules
            ],
            sources_fixed=editor.refusal("source"),
            rules_fixed=editor.refusal("event"),
            classes=list(self._classes),
        )
        return schemas.respond(shown, headers={"Cache-Control": NO_STORE})

    def _picture(self, editor: Editor, asked: schemas.SourceTest) -> Response:
        jpeg = encode(editor.still(asked), self._max_width)
        return Response(jpeg, headers={"Cache-Control": NO_STORE}, media_type="image/jpeg")

    async def _with_body(
        self, request: Request, kind: type[T], what: str, change: Callable[[Editor, T], None]
    ) -> Response:
        try:
            asked = await read_json(request, kind, what, MAX_BODY_BYTES)
        except (RefusedError, msgspec.ValidationError) as error:
            return _unread(error)
        return await self._changed(lambda editor: change(editor, asked))

    async def _removed(self, request: Request, kind: Kind, number: int | None) -> Response:
        version = request.query_params.get("version")
        if version is None:
            return refusal(400, "version is missing: send that of GET /api/config")
        assert number is not None
        return await self._changed(lambda editor: editor.remove(kind, number, version))

    async def _changed(self, change: Callable[[Editor], None]) -> Response:
        """Change something; return the configuration after that."""

        def work(editor: Editor) -> Response:
            change(editor)
            return self._shown(editor)

        # A client that disconnects does not stop it half-way.
        return await asyncio.shield(asyncio.ensure_future(self._answer(work)))

    async def _answer(self, work: Callable[[Editor], Response]) -> Response:
        if self._editor is None:
            return refusal(404, NONE)
        try:
            return await run_in_threadpool(work, self._editor)
        except AdaFocusError as error:
            return _refused(error)


def _refused(error: AdaFocusError) -> Response:
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    if status != 422:
        return refusal(status, conceal(str(error)))
    fields = error.fields if isinstance(error, InvalidError) else {}
    shown = {key.replace("-", "_"): conceal(line) for key, line in fields.items()}
    return schemas.respond(schemas.Invalid(conceal(str(error)), shown), 422)


def _unread(error: RefusedError | msgspec.ValidationError) -> Response:
    """Return the response to a body that cannot be read, or whose fields are of another type."""
    if isinstance(error, RefusedError):
        return refusal(error.status, str(error))
    field, text = wrong_field(error)
    whole = f"{field}: {text}" if field else f"the body cannot be used: {text}"
    return schemas.respond(schemas.Invalid(whole, {field: text} if field else {}), 422)


def _number(request: Request) -> int | None:
    """Return the number in the path; -1, which no entry has, for anything else that is there."""
    given: Any = request.path_params.get("number")
    if given is None:
        return None
    return int(given) if given.isascii() and given.isdigit() and len(given) < 7 else -1

"""The API as OpenAPI 3.1 describes it, for programs that talk to it: what may be sent, and what is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from adafocus_edge import __version__
from adafocus_edge.live.messages import DropKind, NoticeKind
from adafocus_edge.serve.guard import COOKIE
from adafocus_edge.serve.metrics import STATES

if TYPE_CHECKING:
    from adafocus_edge.serve.options import ServeOptions

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def describe(options: ServeOptions) -> Schema:
    """Return the description of what a server with these options offers."""
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "AdaFocus Edge", "version": __version__},
        "paths": _paths(options),
        "components": {
            "schemas": _schemas(),
            "parameters": {
                "source": {
                    "name": "name",
                    "in": "path",
                    "required": True,
                    "description": "The source's name, percent-encoded; a slash as %2F.",
                    "schema": TEXT,
                },
                "only": {"name": "source", "in": "query", "description": "Of this source alone.", "schema": TEXT},
                "limit": {
                    "name": "limit",
                    "in": "query",
                    "description": "How many at most, of each kind.",
                    "schema": {"type": "integer", "minimum": 1, "maximum": options.kept},
                },
                "camera": {"name": "id", "in": "path", "required": True, "schema": TEXT},
            },
        },
    }
    if options.token is not None:
        document["components"]["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "login": {"type": "apiKey", "in": "cookie", "name": COOKIE},
        }
        document["security"] = [{"token": []}, {"login": []}]
    return document


def _paths(options: ServeOptions) -> Schema:
    source, only, limit, camera = (
        {"$ref": f"#/components/parameters/{n}"} for n in ("source", "only", "limit", "camera")
    )
    form = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}, "required": ["file"]}
    video: Schema = {
        "video/*": {"schema": {}},
        "application/octet-stream": {"schema": {}},
        "multipart/form-data": {"schema": {**form, "description": "One file, in a field of any name."}},
    }
    name = {
        "in": "query",
        "name": "name",
        "description": "The file's name; or in the header, or the form.",
        "schema": TEXT,
    }
    header = {"in": "header", "name": "X-File-Name", "description": "The same, percent-encoded.", "schema": TEXT}
    number = {"in": "header", "name": "X-Frame-Number", "description": "Puts pictures in order.", "schema": COUNT}
    after = {"in": "query", "name": "after", "description": "The X-Frame-Index that is known already.", "schema": TEXT}
    lists = {400: "limit is out of range"}
    return {
        "/api/openapi.json": {"get": _operation("This description", {200: _json({"type": "object"})})},
        "/api/status": {"get": _operation("How the run is doing", {200: _json(_ref("Status"))})},
        "/api/results": {
            "get": _operation(
                "The last windows, newest first",
                {200: _json(_object(results=_list(_ref("Window"))))},
                lists,
                [only, limit],
            )
        },
        "/api/events": {
            "get": _operation(
                "The last events and notices, newest first",
                {200: _json(_object(events=_list(_ref("Event")), notices=_list(_ref("Notice"))))},
                lists,
                [only, limit],
            )
        },
        "/api/live": {
            "get": _operation(
                "Server-sent events without end: hello (all that is known), look, window, event, notice, status",
                {200: _content("text/event-stream", TEXT)},
                {503: f"{options.max_viewers} watch already"},
            )
        },
        "/api/streams/{name}/picture.jpg": {
            "get": _operation(
                "The newest picture",
                {200: _content("image/jpeg", {}), 204: {"description": "There is none newer."}},
                {404: "no such source", 503: "no picture yet"},
                [source, after],
            )
        },
        "/api/streams/{name}/video.mjpeg": {
            "get": _operation(
                "Pictures without end",
                {200: _content("multipart/x-mixed-replace", {})},
                {404: "no such source", 503: f"{options.max_viewers} watch already"},
                [source],
            )
        },
        "/api/classify": {
            "post": _operation(
                f"Classify a video of at most {options.max_upload_mb} MB: the body of the request, or a form's file",
                {200: _json(_ref("Result"))},
                {
                    400: "no name, cut short, or a form without exactly one file",
                    408: "nothing came for too long",
                    413: "too large",
                    415: "not a video by its name",
                    422: "cannot be read",
                    429: "too many at a time",
                    503: "it was stopped",
                    507: "the disk is full",
                },
                [name, header],
                video,
            )
        },
        "/api/cameras": {
            "post": _operation(
                "Open a camera that sends its pictures; its id is secret",
                {201: _json(_object(id=TEXT, source=TEXT))},
                {429: "too many cameras", 503: "it was stopped"},
            )
        },
        "/api/cameras/{id}": {
            "delete": _operation("Close it", {204: {"description": "Done."}}, {404: "no such camera"}, [camera])
        },
        "/api/cameras/{id}/frame": {
            "post": _operation(
                "Send a picture",
                {204: {"description": "It is seen, or a later one was."}},
                {
                    400: "cut short",
                    404: "no such camera",
                    408: "it took too long",
                    413: "too large",
                    415: "not image/jpeg",
                    422: "cannot be read",
                },
                [camera, number],
                {"image/jpeg": {"schema": {}}},
            )
        },
        "/healthz": {
            "get": {
                **_operation(
                    "Whether the model's loop moves",
                    {code: _json(_object(status={"enum": [word]})) for code, word in ((200, "ok"), (503, "failing"))},
                ),
                "security": [],
            }
        },
        "/metrics": {"get": _operation("For Prometheus", {200: _content("text/plain", TEXT)})},
    }


def _operation(
    summary: str,
    answers: dict[int, Schema],
    refusals: dict[int, str] | None = None,
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
) -> Schema:
    """Return an operation; all of them may be refused to who has no token or comes from another site."""
    told = {
        400: "the request is malformed",
        401: "no token, or a wrong one",
        403: "it comes from another site's page",
        429: "too many wrong tokens",
        **(refusals or {}),
    }
    refused = {str(code): {**_json(_ref("Refusal")), "description": text} for code, text in sorted(told.items())}
    operation: Schema = {
        "summary": summary,
        "responses": {**refused, **{str(code): answer for code, answer in answers.items()}},
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _content(media_type: str, schema: Schema) -> Schema:
    return {"description": "", "content": {media_type: {"schema": schema}}}


def _json(schema: Schema) -> Schema:
    return _content("application/json", schema)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(of: Schema, length: int | None = None) -> Schema:
    return {"type": "array", "items": of, **({} if length is None else {"minItems": length, "maxItems": length})}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(optional: Schema | None = None, /, **properties: Schema) -> Schema:
    """Return an object that has these properties, perhaps the optional ones, and no other."""
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
        "additionalProperties": False,
    }


def _schemas() -> Schema:
    guess = {"label": TEXT, "class_id": COUNT, "confidence": SHARE}
    box = _or_null(_list(NUMBER, 4))
    result = {
        "source": TEXT,
        "start_s": _or_null(NUMBER),
        "end_s": _or_null(NUMBER),
        **guess,
        "top": _list(_ref("Guess")),
        "steps": _list(_ref("Step")),
        "steps_used": COUNT,
        "exited_early": FLAG,
        "latency_ms": NUMBER,
        "model_ms": NUMBER,
        "backend": TEXT,
        "variant": TEXT,
    }
    moment = {"at": {"type": "string", "format": "date-time"}, "wall_s": NUMBER}
    return {
        "Refusal": _object(error={"type": "string", "description": "One line on what is wrong."}),
        "Guess": _object(**guess),
        "Step": _object(step=COUNT, frame_index=COUNT, time_s=_or_null(NUMBER), patch=_list(COUNT, 3), **guess),
        "Result": _object(**result),
        "Window": _object({"smoothed": _list(_ref("Guess"))}, **result, **moment, window_model_ms=NUMBER, cut=FLAG),
        "Event": _object(
            event={"enum": ["start", "end"]},
            id=COUNT,
            source=TEXT,
            label=TEXT,
            start_s=NUMBER,
            end_s=_or_null(NUMBER),
            peak=SHARE,
            start_wall_s=NUMBER,
            **moment,
        ),
        "Notice": _object(
            {"error": TEXT},
            source={"type": "string", "description": "A source, or for what is dropped an output."},
            notice={"enum": [*get_args(NoticeKind), *get_args(DropKind)]},
            text=TEXT,
            **moment,
        ),
        "Source": _object(
            name=TEXT,
            kind=TEXT,
            state={"enum": list(STATES)},
            text=TEXT,
            **dict.fromkeys(("width", "height", "frames", "picked", "glimpses", "windows", "dropped"), COUNT),
            **dict.fromkeys(("damaged", "reconnects", "waiting"), COUNT),
            fps_in=NUMBER,
            fps_glimpsed=NUMBER,
            latency_ms=_object(**{name: _or_null(NUMBER) for name in ("p50", "p95", "p99")}),
            last_frame_age_s=_or_null(NUMBER),
            stale={**FLAG, "description": "Whether the last result no longer says what is there: as of a lost source."},
            last_seen_at=_or_null(moment["at"]),
            dropping={**FLAG, "description": "Whether the model is too slow for it at the moment."},
            crop=box,
        ),
        "Listener": _object(
            name=TEXT, **dict.fromkeys(("waiting", "handled", "dropped", "failed"), COUNT), dropping=FLAG
        ),
        "Status": _object(
            uptime_s=NUMBER,
            model={"type": "object"},
            sources=_list(_ref("Source")),
            listeners=_list(_ref("Listener")),
            sensors={"type": "object"},
            alive=FLAG,
            stalled_s=NUMBER,
            now_s=NUMBER,
        ),
    }

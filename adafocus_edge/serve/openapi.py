"""The OpenAPI 3.1 description of the API: paths and parameters; the components come from :mod:`.schemas`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from adafocus_edge import __version__
from adafocus_edge.serve import schemas
from adafocus_edge.serve.archive import MAX_PAGE_EVENTS
from adafocus_edge.serve.guard import COOKIE

if TYPE_CHECKING:
    from adafocus_edge.serve.options import ServeOptions

Schema = dict[str, Any]

COMPONENT = "#/components/schemas/{name}"
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}


def describe(options: ServeOptions) -> Schema:
    """Return the description of the API of a server with these options."""
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "AdaFocus Edge", "version": __version__},
        "paths": _paths(options),
        "components": {
            "schemas": msgspec.json.schema_components(schemas.COMPONENTS, ref_template=COMPONENT)[1],
            "parameters": {
                "source": {
                    "name": "name",
                    "in": "path",
                    "required": True,
                    "description": "Name of the source, percent-encoded; a slash as %2F.",
                    "schema": TEXT,
                },
                "only": {
                    "name": "source",
                    "in": "query",
                    "description": "Return entries of this source only.",
                    "schema": TEXT,
                },
                "limit": {
                    "name": "limit",
                    "in": "query",
                    "description": "Maximum number of entries of each kind.",
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
        "description": "File name; alternatively in the header X-File-Name or in the form.",
        "schema": TEXT,
    }
    frames = {
        "in": "query",
        "name": "frames",
        "description": "1 adds the picture of each glimpse.",
        "schema": {"type": "string", "enum": ["1"]},
    }
    header = {"in": "header", "name": "X-File-Name", "description": "File name, percent-encoded.", "schema": TEXT}
    number = {
        "in": "header",
        "name": "X-Frame-Number",
        "description": "Sequence number; a picture that arrives after a later one is ignored.",
        "schema": COUNT,
    }
    after = {
        "in": "query",
        "name": "after",
        "description": "X-Frame-Index of the last picture received; if there is no newer one, the status is 204.",
        "schema": TEXT,
    }
    lists = {400: "limit is out of range"}
    return {
        "/api/openapi.json": {"get": _operation("Return this description", {200: _json({"type": "object"})})},
        "/api/status": {"get": _operation("Return the state of the run", {200: _ref(schemas.Status)})},
        "/api/results": {
            "get": _operation(
                "Return the last windows, newest first", {200: _ref(schemas.Results)}, lists, [only, limit]
            )
        },
        "/api/events": {
            "get": _operation(
                "Return the last events and notices, newest first", {200: _ref(schemas.Events)}, lists, [only, limit]
            )
        },
        **_archive_paths(),
        **_configuration_paths(),
        "/api/live": {
            "get": _operation(
                "Stream server-sent events: hello (the current state) first, then look, window, event, notice and"
                " status as they occur",
                {200: _content("text/event-stream", TEXT)},
                {503: f"{options.max_viewers} clients are connected already"},
            )
        },
        "/api/streams/{name}/picture.jpg": {
            "get": _operation(
                "Return the newest picture",
                {200: _content("image/jpeg", {}), 204: {"description": "there is no newer picture"}},
                {404: "no such source", 503: "no picture yet"},
                [source, after],
            )
        },
        "/api/streams/{name}/video.mjpeg": {
            "get": _operation(
                "Stream pictures as motion JPEG",
                {200: _content("multipart/x-mixed-replace", {})},
                {404: "no such source", 503: f"{options.max_viewers} clients are connected already"},
                [source],
            )
        },
        "/api/classify": {
            "post": _operation(
                f"Classify a video of at most {options.max_upload_mb} MB, sent as the request body or as a form's file",
                {200: _ref(schemas.Result)},
                {
                    400: "no file name, an incomplete body, or a form without exactly one file",
                    408: "no data received for too long",
                    413: "the file is too large",
                    415: "the file name does not end in a known video suffix",
                    422: "the video cannot be decoded",
                    429: "too many files are being classified",
                    503: "the server is shutting down",
                    507: "the disk is full",
                },
                [name, header, frames],
                video,
            )
        },
        "/api/cameras": {
            "post": _operation(
                "Open a camera whose pictures the client sends; keep the returned id secret",
                {201: _ref(schemas.OpenedCamera)},
                {429: "too many cameras are open", 503: "the server is shutting down"},
            )
        },
        "/api/cameras/{id}": {
            "delete": _operation("Close a camera", {204: {"description": "closed"}}, {404: "no such camera"}, [camera])
        },
        "/api/cameras/{id}/frame": {
            "post": _operation(
                "Send a picture of a camera",
                {204: {"description": "accepted, or ignored because a later one arrived first"}},
                {
                    400: "the body is incomplete",
                    404: "no such camera",
                    408: "the upload took too long",
                    413: "the picture is too large",
                    415: "Content-Type is not image/jpeg",
                    422: "the picture cannot be decoded",
                },
                [camera, number],
                {"image/jpeg": {"schema": {}}},
            )
        },
        "/healthz": {
            "get": {
                **_operation(
                    "Report whether the model's loop makes progress",
                    {
                        200: {**_ref(schemas.Health), "description": "it does"},
                        503: {**_ref(schemas.Health), "description": "it has ended or stalled"},
                    },
                ),
                "security": [],
            }
        },
        "/metrics": {"get": _operation("Return Prometheus metrics", {200: _content("text/plain", TEXT)})},
    }


def _archive_paths() -> Schema:
    key = {"in": "path", "name": "key", "required": True, "description": "Name of the event.", "schema": TEXT}
    moment: Schema = {"type": "string", "format": "date-time"}
    share: Schema = {"type": "number", "minimum": 0, "maximum": 1}
    queries: list[Schema] = [
        {"in": "query", "name": name, "description": text, "schema": schema}
        for name, text, schema in (
            ("source", "Return events of this source only.", TEXT),
            ("label", "Return events of this label only.", TEXT),
            ("since", "Return events that started then or later.", moment),
            ("until", "Return events that started then or earlier.", moment),
            ("min_peak", "Return events of at least this confidence.", share),
            ("mark", "Return events with this mark.", {"type": "string", "enum": ["right", "wrong", "any", "none"]}),
            ("before", "Return events before the one of this key: the next page.", TEXT),
            ("limit", "Maximum number of events.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_EVENTS}),
        )
    ]
    none = {404: "no such event, or no archive"}
    broken = {500: "the archive cannot be read"}
    return {
        "/api/archive": {
            "get": _operation(
                "Return archived events, newest first",
                {200: _ref(schemas.Archive)},
                {400: "a parameter is malformed", 404: "no archive", **broken},
                queries,
            )
        },
        "/api/archive/training.csv": {
            "get": _operation(
                "List the clips that a person has judged, with their classes",
                {200: _content("text/csv", TEXT)},
                {404: "no archive", **broken},
            )
        },
        "/api/archive/{key}": {
            "get": _operation("Return an event", {200: _ref(schemas.ArchivedEvent)}, none | broken, [key]),
            "delete": _operation(
                "Delete an event, its clip and its picture", {204: {"description": "deleted"}}, none | broken, [key]
            )
        },
        "/api/archive/{key}/clip.mp4": {
            "get": _operation(
                "Return the clip, or a range of it",
                {200: _content("video/mp4", {}), 206: _content("video/mp4", {})},
                none | broken,
                [key],
            )
        },
        "/api/archive/{key}/picture.jpg": {
            "get": _operation(
                "Return the picture, with the patch drawn", {200: _content("image/jpeg", {})}, none | broken, [key]
            )
        },
        "/api/archive/{key}/mark": {
            "put": _operation(
                "Say whether an event is right or wrong",
                {200: _ref(schemas.ArchivedEvent)},
                {400: "not a mark, or no class of the model", 408: "the request took too long",
                 413: "the body is too large", **none, **broken},
                [key],
                _body(schemas.Judgement),
            )
        },
    }  # fmt: skip


def _configuration_paths() -> Schema:
    number = {"in": "path", "name": "number", "required": True, "description": "Place in its list.", "schema": COUNT}
    version: Schema = {
        "in": "query", "name": "version", "required": True, "description": "The version that the change is based on.",
        "schema": TEXT,
    }  # fmt: skip
    forbidden = "the request comes from another site's page, or changes are not allowed here"
    unwritable = {403: forbidden, 500: "the file cannot be read or written, or the change is saved but not in effect"}
    changed = {409: "the file has changed meanwhile", **unwritable}
    body = {408: "the request took too long", 413: "the body is too large"}
    invalid: dict[int, Schema] = {422: {**_ref(schemas.Invalid), "description": "a field is wrong"}}
    done: dict[int, Schema] = {200: _ref(schemas.Configuration), **invalid}
    paths: Schema = {
        "/api/config": {
            "get": _operation(
                "Return the configured sources and event rules", {200: _ref(schemas.Configuration)},
                {404: "this server has no configuration"},
            )
        },
        "/api/config/reload": {
            "post": _operation("Use the configuration file as it is now", done, {404: "no configuration", **unwritable})
        },
        "/api/config/test": {
            "post": _operation(
                "Open a source for one frame, and return it with the masks that are saved",
                {200: _content("image/jpeg", {}), **invalid},
                {404: "no such source, or no configuration", 429: "too many sources are being tested", **body,
                 **unwritable},
                None,
                _body(schemas.SourceTest),
            )
        },
    }  # fmt: skip
    for name, what, kind in (("sources", "a source", schemas.SourceChange), ("events", "a rule", schemas.EventChange)):
        none = {404: "no such entry, or no configuration"}
        paths[f"/api/config/{name}"] = {
            "post": _operation(f"Add {what}", done, none | changed | body, None, _body(kind)),
        }
        paths[f"/api/config/{name}/{{number}}"] = {
            "put": _operation(f"Change {what}", done, none | changed | body, [number], _body(kind)),
            "delete": _operation(f"Remove {what}", done, none | changed, [number, version]),
        }
    return paths


def _body(component: type[schemas.Object]) -> Schema:
    return {"application/json": {"schema": {"$ref": COMPONENT.format(name=component.__name__)}}}


def _operation(
    summary: str,
    responses: dict[int, Schema],
    refusals: dict[int, str] | None = None,
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
) -> Schema:
    """Return an operation, with the errors that every operation can return."""
    errors = {
        400: "the request is malformed",
        401: "the token is missing or wrong",
        403: "the request comes from another site's page",
        429: "too many wrong tokens",
        **(refusals or {}),
    }
    refused = {str(code): {**_ref(schemas.Refusal), "description": text} for code, text in sorted(errors.items())}
    operation: Schema = {
        "summary": summary,
        "responses": {**refused, **{str(code): response for code, response in responses.items()}},
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


def _ref(component: type[schemas.Object]) -> Schema:
    """Return a response with one of the components as JSON."""
    return _json({"$ref": COMPONENT.format(name=component.__name__)})

"""The HTTP and JSON reference, from the OpenAPI document that the server answers with."""

from __future__ import annotations

from typing import Any

from adafocus_edge.serve.openapi import describe
from adafocus_edge.serve.options import ServeOptions
from scripts.manual.tables import table

METHODS = ("get", "post", "put", "delete")
COMMON = {"400", "401", "403", "429"}
"""Refusals that every operation has; the page names them once."""


def _document() -> dict[str, Any]:
    return describe(ServeOptions())


def operations() -> str:
    """Return a chapter for each operation: parameters, body, answers, and the refusals that are its own."""
    document = _document()
    chapters = []
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                chapters.append(_operation(document, f"{method.upper()} {path}", methods[method]))
    return "\n\n".join(chapters)


def overview() -> str:
    """Return a table of all operations."""
    rows = [
        (f"`{method.upper()} {path}`", operation["summary"])
        for path, methods in _document()["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]
    return table(("operation", "does"), rows)


def schemas(names: str = "") -> str:
    """Return a table of the fields of each schema: of those that are named, or of all."""
    known = _document()["components"]["schemas"]
    wanted = names.split() or list(known)
    return "\n\n".join(f"### {name}\n\n{known[name]['description']}\n\n{_fields(known[name])}" for name in wanted)


def _operation(document: dict[str, Any], title: str, operation: dict[str, Any]) -> str:
    parts = [f"### {title}", operation["summary"] + "."]
    parameters = [_resolved(document, one) for one in operation.get("parameters", ())]
    if parameters:
        described = (
            (f"`{one['name']}`", one["in"], _kind(one["schema"]), one.get("description")) for one in parameters
        )
        parts.append(table(("parameter", "in", "type", "description"), described))
    if body := operation.get("requestBody"):
        parts.append("Body: " + ", ".join(f"`{media}`" for media in body["content"]) + ".")
    rows = []
    for code, answer in sorted(operation["responses"].items()):
        if code in COMMON and int(code) >= 400 and answer == _usual(document, code):
            continue
        content = ", ".join(
            f"`{media}`" + (f": {kind}" if (kind := _kind(one.get("schema", {}))) else "")
            for media, one in answer.get("content", {}).items()
        )
        rows.append((code, answer.get("description"), content if int(code) < 400 else ""))
    parts.append(table(("status", "meaning", "content"), rows))
    return "\n\n".join(parts)


def _usual(document: dict[str, Any], code: str) -> object:
    """Return the refusal as an operation has it that adds none of its own."""
    return document["paths"]["/metrics"]["get"]["responses"].get(code)


def refusals() -> str:
    """Return the refusals that every operation may answer with."""
    responses = _document()["paths"]["/metrics"]["get"]["responses"]
    return table(
        ("status", "meaning"), ((code, responses[code]["description"]) for code in sorted(COMMON & set(responses)))
    )


def _resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    found: Any = document
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = (
        (f"`{name}`", _kind(one), "" if name in required else "optional", one.get("description"))
        for name, one in schema.get("properties", {}).items()
    )
    return table(("field", "type", "", "description"), rows)


def _kind(schema: dict[str, Any]) -> str:
    """Return the type of a schema in a word or two."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = str(schema.get("type", ""))
    if kind == "array":
        return f"list of {_kind(schema['items'])}" + (f" ({schema['maxItems']})" if "maxItems" in schema else "")
    if "format" in schema:
        kind = f"{kind} ({schema['format']})"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        kind += f", {low} to {high}" if high is not None else f", min {low}"
    if kind.startswith("object") and schema.get("properties"):
        return "object: " + ", ".join(f"`{name}` {_kind(one)}" for name, one in schema["properties"].items())
    return kind

"""The lines of stderr, in one of two forms: text for people, or one JSON object per line for programs."""

from __future__ import annotations

import time
from typing import Literal

LogFormat = Literal["text", "json"]
"""Text; or JSON objects with ``time``, ``level``, ``source``, ``event`` and ``message``."""
Level = Literal["info", "warning", "error"]
NOTE = "note"
"""The ``event`` of a line that belongs to nothing more special."""

_format: LogFormat = "text"


def set_log_format(chosen: LogFormat | None) -> None:
    """Choose the form of all further lines; None for text."""
    global _format  # noqa: PLW0603 - a process has one stderr
    _format = chosen or "text"


def log_format() -> LogFormat:
    """Return the form of lines."""
    return _format


def log_line(text: str, level: Level = "info", *, event: str = NOTE, source: str | None = None) -> str:
    """Return a line of stderr, without a line break at its end.

    Args:
        text: one line for people, without secrets.
        level: how serious it is; as text, an error begins with ``error:``.
        event: what it reports, in one word.
        source: name of the source that it is about, or None.
    """
    if _format == "text":
        return f"error: {text}" if level == "error" else text
    from adafocus_edge.system.json_lines import to_line
    from adafocus_edge.system.timestamps import iso

    return to_line({"time": iso(time.time()), "level": level, "source": source, "event": event, "message": text})

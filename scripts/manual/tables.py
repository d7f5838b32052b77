"""Markdown that the generators share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

FIGURE = re.compile(r"[(\d][\d.,:%±() a-z]{0,24}")
"""A figure with its unit or interval: never broken over lines."""


def cell(value: object) -> str:
    """Return a value as one cell of a table: empty for None, on one line, with its bars escaped."""
    text = "" if value is None else " ".join(str(value).split()).replace("|", "\\|")
    return text.replace(" ", "\N{NO-BREAK SPACE}") if FIGURE.fullmatch(text) else text


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)

"""Docstrings in Google's style, as Markdown."""

from __future__ import annotations

import inspect
import re
from typing import Any

SECTIONS = ("Attributes", "Args", "Example", "Raises", "Returns", "Yields")
ROLE = re.compile(r":(?:class|meth|func|mod|attr|data):`~?([^`]+)`")


def plain(text: str) -> str:
    """Return reStructuredText as it stands in our docstrings as Markdown."""
    return ROLE.sub(r"`\1`", text).replace("``", "`")


def sections(documented: Any) -> dict[str, str]:
    """Return the parts of a docstring: the text under ``""``, and each named section, dedented."""
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for line in (inspect.getdoc(documented) or "").splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            name = line.rstrip(":")
            parts[name] = []
        elif name and line and not line.startswith(" "):
            name = ""
            parts[""].append(line)
        else:
            parts[name].append(line)
    return {key: inspect.cleandoc("\n".join(lines)) for key, lines in parts.items()}


def attributes(documented: Any, section: str = "Attributes") -> dict[str, str]:
    """Return name and description of each entry of a section; a description may go over several lines."""
    entries: dict[str, str] = {}
    name = ""
    for line in sections(documented).get(section, "").splitlines():
        if found := re.match(r"([\w.]+)(?: \([^)]*\))?: (.*)", line):
            name, entries[found[1]] = found[1], found[2]
        elif name:
            entries[name] += " " + line.strip()
    return entries

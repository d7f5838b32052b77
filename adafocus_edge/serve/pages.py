"""The HTML pages, put together once from their own files and the parts that they share."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent / "page"
PATHS = {
    "index.html": "/",
    "events.html": "/events",
    "sources.html": "/sources",
    "docs.html": "/docs",
    "login.html": "/login",
}
"""The pages, and where each is served."""
INCLUDE = re.compile(r"<!-- include ([\w.]+) -->")
"""A line of a page that stands for a file beside it."""


def page(name: str) -> bytes:
    """Return a page with the parts that it includes; its own link among the pages is marked as the current one."""
    text = INCLUDE.sub(lambda found: (PAGE / found[1]).read_text("utf-8").strip(), (PAGE / name).read_text("utf-8"))
    return text.replace(f'href="{PATHS[name]}">', f'href="{PATHS[name]}" aria-current="page">').encode()

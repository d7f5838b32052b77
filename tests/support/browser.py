"""A real browser for tests of the page. One that hangs is killed: the test fails in time."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from adafocus_edge.serve import Server
from tests.support.streams import command, need

ACTION_S = 60.0
"""Time limit of one action that playwright limits by itself: clicks, navigation, waiting for a condition."""
PAGE_S = 240.0
"""Time limit of everything that a test does with one page. Scripts, and opening and closing pages, have no other."""
ARGUMENTS = ("--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
NO_SIDEWAYS = "() => document.documentElement.scrollWidth <= innerWidth"


class Browser:
    """A Chromium that can be killed from outside.

    Args:
        chromium: as playwright launched it.
        processes: file that holds the numbers of its process and of its driver's.
    """

    def __init__(self, chromium: Any, processes: Path) -> None:
        self.killed = False
        self._chromium = chromium
        self._browser_pid, self._driver_pid = map(int, processes.read_text().split())

    def new_context(self, **options: Any) -> Any:
        """Open a context, as playwright's browser does."""
        assert not self.killed, "Chromium hung in an earlier test and was killed"
        return self._chromium.new_context(**options)

    def kill(self) -> None:
        """Kill the browser and its driver, from any thread: every call that waits for them raises an error."""
        self.killed = True
        for pid, kill in ((self._browser_pid, os.killpg), (self._driver_pid, os.kill)):
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)

    @contextmanager
    def limited(self, limit_s: float) -> Iterator[None]:
        """Kill the browser if the block takes longer."""
        timer = threading.Timer(limit_s, self.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def opened_browser(folder: Path) -> Iterator[Browser]:
    """Launch Chromium; skip or fail where it cannot be had. ``folder`` holds a script and a file while it runs."""
    need("chromium")
    if importlib.util.find_spec("playwright") is None:
        why = "playwright is not installed: pip install playwright"
        if os.environ.get("ADAFOCUS_EDGE_REQUIRE_TOOLS") == "1":
            pytest.fail(why)
        pytest.skip(why)
    from playwright.sync_api import Error, sync_playwright

    # Playwright does not say which process it started.
    script, processes = folder / "chromium", folder / "processes"
    script.write_text(f'#!/bin/sh\necho $$ $PPID > "{processes}"\nexec "{command("chromium")}" "$@"\n')
    script.chmod(0o755)
    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=script, args=list(ARGUMENTS), timeout=ACTION_S * 1e3)
        browser = Browser(chromium, processes)
        yield browser
        with browser.limited(ACTION_S), suppress(Error):
            chromium.close()


@contextmanager
def page_of(browser: Browser, server: Server, path: str = "", **more: Any) -> Iterator[Any]:
    """Open a page; unexpected errors and warnings in its console fail the test, and so does a browser that hangs."""
    expected = more.pop("expected", ())
    said: list[str] = []
    with browser.limited(more.pop("limit_s", PAGE_S)):
        context = browser.new_context(viewport=more.pop("viewport", {"width": 1280, "height": 800}), **more)
        try:
            page = context.new_page()
            page.set_default_timeout(ACTION_S * 1e3)
            page.on("console", lambda line: line.type in ("error", "warning") and said.append(line.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(server.url + path)
            yield page
        finally:
            context.close()
    unexpected = [line for line in said if not any(part in line for part in expected)]
    assert not unexpected, unexpected


def card(name: str) -> str:
    """Return the selector of a source's card."""
    return f'.card[data-source="{name}"]'


def wait_for(page: Any, expression: str, argument: Any = None) -> None:
    """Wait until a function of the page returns something true."""
    page.wait_for_function(expression, arg=argument)

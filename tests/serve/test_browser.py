"""The browser that the tests of the page use: one that hangs fails its test, and does not stop the run."""

from __future__ import annotations

import time

import pytest

from tests.support.browser import Browser, page_of
from tests.support.served import Served


def test_a_page_that_hangs_fails_its_test(browser: Browser, served: Served) -> None:
    from playwright.sync_api import Error

    began_s = time.monotonic()
    with pytest.raises(Error, match=r"closed"), page_of(browser, served.server, "docs", limit_s=8.0) as page:
        page.evaluate("() => { for (;;); }")
    assert time.monotonic() - began_s >= 8.0
    assert browser.killed
    with pytest.raises(AssertionError, match=r"Chromium hung in an earlier test"), page_of(browser, served.server):
        pass

"""The pages for people who hear them or use a keyboard: axe-core finds nothing serious on any of them.

``axe/`` holds axe-core 4.14.1 (MPL-2.0) as its npm package has it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_archive import Kept, kept  # noqa: F401 - fixture
from tests.serve.test_configuration import Set, given, path  # noqa: F401 - fixtures
from tests.serve.test_serve import Served, browser, card, classifier, page_of, served, until  # noqa: F401 - fixtures

pytestmark = pytest.mark.skipif(
    os.environ.get("ADAFOCUS_EDGE_AXE") != "1",
    reason="Chromium hung once while two of these ran side by side: ADAFOCUS_EDGE_AXE=1 runs them",
)
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text("utf-8")
SERIOUS = ("serious", "critical")
SIZES = ({"width": 1280, "height": 800}, {"width": 390, "height": 844})


def findings(page: Any) -> list[str]:
    """What axe-core finds on a page, a line each."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 5
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_live_page(browser: Any, served: Served, scheme: str) -> None:  # noqa: F811
    for size in SIZES:
        with page_of(browser, served.server, viewport=size, color_scheme=scheme) as page:
            page.wait_for_selector(card("entrance"))
            page.wait_for_function(
                "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", arg=card("entrance")
            )
            assert findings(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_events_and_the_description_of_the_api(browser: Any, kept: Kept, scheme: str) -> None:  # noqa: F811
    for size in SIZES:
        with page_of(browser, kept.server, "events", viewport=size, color_scheme=scheme) as page:
            page.wait_for_selector("#archive li")
            kept.store.mark(kept.key(39), "right")
            kept.store.mark(kept.key(38), "wrong", "fall")
            page.reload()
            page.wait_for_selector("#archive .mark[data-mark=wrong]")
            assert findings(page) == []
            page.locator("#archive .open").nth(1).click()
            page.wait_for_function("() => document.getElementById('player').readyState >= 2")
            assert findings(page) == []
        with page_of(browser, kept.server, "docs", viewport=size, color_scheme=scheme) as page:
            page.wait_for_selector("#operations details")
            page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
            assert findings(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sources_and_rules(browser: Any, given: Set, scheme: str) -> None:  # noqa: F811
    until(lambda: given.states().get("yard") == "running")
    for size in SIZES:
        with page_of(browser, given.server, "sources", viewport=size, color_scheme=scheme) as page:
            page.wait_for_selector("#sources > li")
            page.wait_for_function("() => document.querySelector('#sources .badge').textContent === 'Live'")
            assert findings(page) == []
            page.locator("#sources .edit").first.click()
            page.wait_for_function("() => document.getElementById('still').dataset.shown")
            page.locator("[data-draw=mask]").click()
            for key in ("Enter", "Shift+ArrowRight", "Enter", "Shift+ArrowDown", "Enter"):
                page.keyboard.press(key)
            assert findings(page) == []
            page.locator("#finish").click()
            page.locator("[name=name]").fill("a/b")
            page.locator("#areas input").fill("nothing")
            assert findings(page) == []
            page.locator("#source-dialog [data-close]").click()
            page.locator("#add-rule").click()
            assert findings(page) == []

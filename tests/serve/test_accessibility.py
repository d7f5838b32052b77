"""The pages for people who hear them or use a keyboard: axe-core finds nothing serious on any of them.

``axe/`` holds axe-core 4.14.1 (MPL-2.0) as its npm package has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adafocus_edge.runtime.classifier import Classifier
from tests.support.browser import Browser, card, page_of, wait_for
from tests.support.configured import Set
from tests.support.kept import Kept
from tests.support.served import SHORT, TOKEN, Served, quick, until

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text("utf-8")
SERIOUS = ("serious", "critical")
SIZES = ({"width": 1920, "height": 1080}, {"width": 390, "height": 844})
BOTH = pytest.mark.parametrize("scheme", ["light", "dark"])


def check(page: Any) -> None:
    """Fail for what axe-core finds on a page as it is."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE)
    # Nothing here depends on other files: axe-core would read style sheets again, and wait for clips.
    found = page.evaluate("axe.run({ preload: false })")
    assert len(found["passes"]) > 5
    assert [
        f"{one['id']} ({one['impact']}): {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ] == []


@BOTH
def test_the_live_page(browser: Browser, served: Served, scheme: str) -> None:
    for size in SIZES:
        with page_of(browser, served.server, viewport=size, color_scheme=scheme) as page:
            wait_for(page, "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", card("entrance"))
            page.wait_for_selector("#events .open")
            page.wait_for_selector("#results li")
            chart = page.locator(f"{card('entrance')} .chart")
            chart.focus()
            page.keyboard.press("ArrowLeft")
            page.set_input_files("#file", str(SHORT))
            page.wait_for_selector(".upload .steps button")
            check(page)
            page.locator("#events .open").first.press("Enter")
            page.wait_for_selector("#viewer[open]")
            check(page)
            page.keyboard.press("Escape")
            page.get_by_label("16", exact=True).check(force=True)
            check(page)
            page.locator(f"{card('entrance')} .enlarge").press("Enter")
            check(page)


@BOTH
def test_the_live_page_without_streams_and_the_login(browser: Browser, classifier: Classifier, scheme: str) -> None:
    for size in SIZES:
        with quick(classifier) as server, page_of(browser, server, viewport=size, color_scheme=scheme) as page:
            page.get_by_role("heading", name="No streams").wait_for()
            check(page)
        with (
            quick(classifier, token=TOKEN) as server,
            page_of(browser, server, "login", viewport=size, color_scheme=scheme) as page,
        ):
            check(page)


@BOTH
def test_events(browser: Browser, kept: Kept, scheme: str) -> None:
    kept.store.mark(kept.key(39), "right")
    kept.store.mark(kept.key(38), "wrong", "fall")
    for size in SIZES:
        with page_of(browser, kept.server, "events", viewport=size, color_scheme=scheme) as page:
            page.wait_for_selector("#archive .mark[data-mark=wrong]")
            check(page)
            page.locator("#archive .open").nth(1).click()
            wait_for(page, "() => document.getElementById('player').readyState >= 2")
            check(page)


@BOTH
def test_the_description_of_the_api(browser: Browser, served: Served, scheme: str) -> None:
    for size in SIZES:
        with page_of(browser, served.server, "docs", viewport=size, color_scheme=scheme) as page:
            page.wait_for_selector("#operations details")
            page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
            check(page)


def test_a_screen_reader_hears_what_the_page_shows(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server, viewport=SIZES[0]) as page:
        wait_for(page, "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", card("entrance"))
        page.wait_for_selector("#events .open")
        wall = page.get_by_role("region", name="Streams")
        tiles = wall.get_by_role("group", name="Streams on one page")
        assert tiles.get_by_role("radio").count() == 5
        stream = wall.get_by_role("article", name="entrance")
        assert stream.get_by_role("button").evaluate_all("all => all.map((one) => one.ariaLabel)") == [
            "Pause the picture", "Enlarge"
        ]  # fmt: skip
        wait_for(
            page,
            r"s => /^Picture of entrance: \w+, \d+ %/.test(document.querySelector(s + ' .picture').ariaLabel)",
            card("entrance"),
        )
        chart = stream.get_by_role("slider", name="Confidence of entrance over time")
        assert "%" in chart.get_attribute("aria-valuetext")
        event = page.get_by_role("log", name="Events").get_by_role("button").first
        label, source, time = event.get_attribute("aria-label").rsplit(", ", 2)
        assert (label in ("fight", "no_fight"), time.count(":")) == (True, 2)
        event.press("Enter")
        dialog = page.get_by_role("dialog", name=f"{label}, {source}")
        dialog.wait_for()
        assert dialog.get_by_role("button", name="Close").count() == 1


@BOTH
def test_sources_and_rules(browser: Browser, given: Set, scheme: str) -> None:
    until(lambda: given.states().get("yard") == "running")
    for size in SIZES:
        with page_of(browser, given.server, "sources", viewport=size, color_scheme=scheme) as page:
            page.wait_for_selector("#sources > li")
            wait_for(page, "() => document.querySelector('#sources .badge').textContent === 'Live'")
            check(page)
            page.locator("#sources .edit").first.click()
            wait_for(page, "() => document.getElementById('still').dataset.shown")
            page.locator("[data-draw=mask]").click()
            for key in ("Enter", "Shift+ArrowRight", "Enter", "Shift+ArrowDown", "Enter"):
                page.keyboard.press(key)
            check(page)
            page.locator("#finish").click()
            page.locator("[name=name]").fill("a/b")
            page.locator("#areas input").fill("nothing")
            check(page)
            page.locator("#source-dialog [data-close]").click()
            page.locator("#add-rule").click()
            check(page)

"""The page of sources and event rules in a real browser: forms, drawing with mouse, touch and keyboard, refusals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve.stream_file import StreamDocument
from tests.support.browser import NO_SIDEWAYS, Browser, card, page_of, wait_for
from tests.support.configured import TEXT, Set, configured
from tests.support.served import get, until
from tests.support.streams import HttpStream


def row(page: Any, name: str, what: str = "sources") -> Any:
    return page.locator(f"#{what} > li", has=page.get_by_text(name, exact=True))


def saved(page: Any) -> None:
    page.locator("dialog[open] button[type=submit]").click()
    wait_for(page, "() => !document.querySelector('dialog[open]')")


def masks(given: Set, name: str) -> list[list[tuple[float, float]]]:
    entries = StreamDocument("", given.path.read_bytes()).sources()
    return [list(one) for one in next(entry for entry in entries if entry.name == name).zones.masks]


def note(page: Any) -> str:
    return str(page.locator("#stage-note").inner_text())


def opened(page: Any, name: str) -> None:
    row(page, name).locator(".edit").click()
    wait_for(page, "() => document.getElementById('still').dataset.shown")


def test_a_source_is_tested_added_paused_and_removed(browser: Browser, given: Set) -> None:
    with (
        HttpStream("mjpeg", [(320, 180)], user="operator", password="s3cret!") as stream,
        page_of(browser, given.server, "sources", expected=("422",)) as page,
    ):
        wait_for(page, "() => document.querySelectorAll('#sources > li').length === 2")
        assert page.locator("#state").inner_text() == "Saved in stream.toml"
        assert row(page, "dock").locator(".badge").inner_text() == "Paused"
        wait_for(page, "() => document.querySelector('#sources .badge').textContent === 'Live'")
        page.locator("#add-source").click()
        assert page.evaluate("() => document.activeElement.name") == "name"
        # Wrong input: a line at each field, and the focus on the first.
        page.locator("[name=name]").fill("dock")
        page.locator("[name=address]").fill("/etc/passwd")
        page.locator("dialog[open] button[type=submit]").click()
        wait_for(page, "() => document.getElementById('name-problem').textContent")
        assert page.locator("#name-problem").inner_text() == "is the name of another source"
        assert page.locator("#address-problem").inner_text().startswith("must be a camera, such as 0")
        assert page.locator("[name=address]").get_attribute("aria-invalid") == "true"
        assert page.evaluate("() => document.activeElement.name") == "name"
        # The test gives a reason, or a picture.
        page.locator("[name=address]").fill(stream.bare_address)
        page.locator("#test").click()
        wait_for(page, "() => document.getElementById('test-note').textContent.includes('cannot be read')")
        page.locator("[name=address]").fill(stream.address)
        page.locator("#test").click()
        wait_for(page, "() => document.getElementById('test-note').textContent === 'It works'")
        assert page.evaluate("() => document.getElementById('still').width") == 320
        page.locator("[name=name]").fill("gate <b>2")
        saved(page)
        assert page.evaluate("() => document.activeElement.id") == "add-source"
        gate = row(page, "gate <b>2")
        wait_for(page, "() => document.querySelectorAll('#sources .badge')[2].textContent === 'Live'")
        assert "http://***@127.0.0.1" in gate.inner_text()
        assert "s3cret" not in page.content()
        # By keyboard: pause, resume; the focus stays.
        gate.locator(".pause").press("Enter")
        wait_for(page, "() => document.querySelectorAll('#sources .badge')[2].textContent === 'Paused'")
        assert "gate <b>2" not in given.states()
        wait_for(page, "() => document.activeElement.textContent === 'Resume'")
        page.keyboard.press("Space")
        until(lambda: given.states().get("gate <b>2") == "running")
        # Renamed without typing the password again.
        opened(page, "gate <b>2")
        assert page.locator("[name=address]").input_value().startswith("http://***@")
        page.locator("[name=name]").fill("gate")
        saved(page)
        assert stream.address in given.path.read_text()
        page.on("dialog", lambda dialog: dialog.accept())
        row(page, "gate").locator(".remove").click()
        wait_for(page, "() => document.querySelectorAll('#sources > li').length === 2")
        assert given.path.read_text() == TEXT
        assert page.evaluate(NO_SIDEWAYS)


def test_nothing_of_a_source_is_shown_for_another_that_takes_its_name(browser: Browser, given: Set) -> None:
    shown = """s => {
      const card = document.querySelector(s), text = (place) => card.querySelector(place).textContent;
      const canvas = card.querySelector(".picture");
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return {
        label: text(".label"), confidence: text(".confidence"), bars: card.querySelectorAll(".bars li").length,
        frame: canvas.dataset.frame ?? null, box: card.querySelector(".overlay").dataset.box ?? null,
        dark: pixels.every((value) => value === 0),
      };
    }"""
    nothing = {"label": "\N{EN DASH}", "confidence": "", "bars": 0, "frame": None, "box": None, "dark": True}
    seen = "s => document.querySelector(s + ' .bars li') && document.querySelector(s + ' .picture').dataset.frame > 0"
    with (
        page_of(browser, given.server, expected=("willReadFrequently",)) as page,
        HttpStream("mjpeg", [(320, 180)]) as stream,
    ):
        wait_for(page, seen, card("yard"))
        assert page.evaluate(shown, card("yard"))["dark"] is False
        # No picture of it comes.
        assert given.send("PUT", "sources/0", {"name": "yard", "address": "rtsp://127.0.0.1:9/x"}).status == 200
        wait_for(page, "s => document.querySelector(s).dataset.state !== 'running'", card("yard"))
        until(lambda: page.evaluate(shown, card("yard")) == nothing)
        page.reload()
        wait_for(page, "s => document.querySelector(s)", card("yard"))
        page.wait_for_timeout(500)
        assert page.evaluate(shown, card("yard")) == nothing
        assert given.send("PUT", "sources/0", {"name": "yard", "address": stream.address}).status == 200
        wait_for(page, seen, card("yard"))
        assert page.evaluate("s => document.querySelector(s + ' .picture').width", card("yard")) == 320


def test_a_mask_is_drawn_with_the_mouse(browser: Browser, given: Set) -> None:
    until(lambda: given.states().get("yard") == "running")
    with page_of(browser, given.server, "sources") as page:
        page.wait_for_selector("#sources > li")
        opened(page, "yard")
        page.locator("[data-draw=mask]").click()
        box = page.locator("#stage").bounding_box()

        def at(x: float, y: float) -> tuple[float, float]:
            return box["x"] + x * box["width"], box["y"] + y * box["height"]

        for x, y in ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9)):
            page.mouse.click(*at(x, y))
        assert note(page).startswith("Corner 3 at 90 %, ")
        page.mouse.click(*at(0.1, 0.9))
        page.mouse.click(*at(0.105, 0.105))  # near the first corner: finished
        wait_for(page, "() => document.querySelectorAll('#areas li').length === 1")
        # A corner is dragged.
        page.mouse.move(*at(0.9, 0.9))
        page.mouse.down()
        page.mouse.move(*at(0.7, 0.8), steps=4)
        page.mouse.move(*at(0.5, 0.5), steps=4)
        page.mouse.up()
        saved(page)
        (mask,) = masks(given, "yard")
        assert np.abs(np.array(mask) - [[0.1, 0.1], [0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]).max() < 0.01
        assert "1 mask" in row(page, "yard").inner_text()

        # The picture is black there from now on, for everyone.
        def black() -> bool:
            answer = get(given.server, "/api/streams/yard/picture.jpg")
            if answer.status != 200:
                return False
            pixels = np.asarray(Image.open(io.BytesIO(answer.body)).convert("L"))
            height, width = pixels.shape
            return bool(
                (pixels[int(height * 0.15) : int(height * 0.4), int(width * 0.15) : int(width * 0.4)] < 12).all()
            )

        until(black)


def test_a_region_is_drawn_by_touch_on_a_phone(browser: Browser, given: Set) -> None:
    until(lambda: given.states().get("yard") == "running")
    size = {"width": 390, "height": 844}
    with page_of(browser, given.server, "sources", viewport=size, has_touch=True, is_mobile=True) as page:
        page.wait_for_selector("#sources > li")
        opened(page, "yard")
        page.locator("[data-draw=region]").tap()
        box = page.locator("#stage").bounding_box()
        for x, y in ((0.2, 0.2), (0.8, 0.2), (0.5, 0.8)):
            page.touchscreen.tap(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.locator("#finish").tap()
        assert page.locator("#areas .choose").all_inner_texts() == ["Region 1"]
        assert page.evaluate(NO_SIDEWAYS)
        saved(page)
        entry = StreamDocument("", given.path.read_bytes()).sources()[0]
        assert np.abs(np.array(entry.zones.regions[0]) - [[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]]).max() < 0.02


def test_a_mask_is_drawn_and_changed_by_keyboard_alone(browser: Browser, given: Set) -> None:
    until(lambda: given.states().get("yard") == "running")
    with page_of(browser, given.server, "sources", expected=("422",)) as page:
        page.wait_for_selector("#sources > li")
        row(page, "yard").locator(".edit").press("Enter")
        wait_for(page, "() => document.getElementById('still').dataset.shown")
        keys = page.keyboard.press
        page.locator("[data-draw=mask]").press("Enter")
        assert page.evaluate("() => document.activeElement.id") == "stage"
        keys("Enter")  # the middle
        for _ in range(4):
            keys("Shift+ArrowRight")
        keys("Enter")
        for _ in range(10):
            keys("ArrowDown")
        keys("Alt+ArrowDown")
        keys("Space")
        assert note(page) == "Corner 3 at 70 %, 60.1 %: press Finish to close it."
        keys("Enter")
        keys("Backspace")
        keys("Tab")  # over "Draw a region" and "Draw a mask"
        keys("Tab")
        keys("Tab")
        assert page.evaluate("() => document.activeElement.id") == "finish"
        keys("Enter")
        # The first corner has the focus: it is moved, one is added after it, and one is removed.
        assert page.evaluate("() => document.activeElement.ariaLabel") == "Corner 1 of Mask 1: 50 %, 50 %"
        keys("ArrowLeft")
        keys("+")
        assert page.evaluate("() => document.activeElement.ariaLabel") == "Corner 2 of Mask 1: 59.5 %, 50 %"
        keys("Shift+ArrowUp")
        keys("Tab")
        keys("Delete")
        assert page.locator("#areas input").input_value() == "0.49,0.5 0.595,0.45 0.7,0.601"
        keys("Delete")
        assert note(page) == "An area has at least 3 corners."
        # Escape ends a drawing, and not the dialog.
        page.locator("[data-draw=region]").press("Enter")
        keys("Enter")
        keys("Escape")
        assert note(page) == "Drawing cancelled."
        assert page.locator("#source-dialog").get_attribute("open") is not None
        # As numbers.
        numbers = page.locator("#areas input")
        numbers.fill("0,0 0.5,0 0.5")
        assert "write the corners as x,y" in page.locator("#areas .problem").inner_text()
        page.locator("dialog[open] button[type=submit]").press("Enter")
        assert page.locator("#source-problem").inner_text() == "Correct the corners first."
        numbers.fill("0,0 1,1 1,0 0,1")  # what only the server checks
        page.locator("dialog[open] button[type=submit]").press("Enter")
        wait_for(page, "() => document.getElementById('masks-problem').textContent.includes('cross or touch')")
        numbers.fill("0,0 0.5,0 0.5,0.25")
        page.locator("dialog[open] button[type=submit]").press("Enter")
        wait_for(page, "() => !document.querySelector('dialog[open]')")
        assert masks(given, "yard") == [[(0.0, 0.0), (0.5, 0.0), (0.5, 0.25)]]
        wait_for(page, "() => document.activeElement.ariaLabel === 'Edit yard'")
        # And away again.
        keys("Enter")
        page.locator("#areas .discard").press("Enter")
        page.locator("dialog[open] button[type=submit]").press("Enter")
        wait_for(page, "() => !document.querySelector('dialog[open]')")
        assert given.path.read_text() == TEXT


def test_rules_are_changed_on_the_page(browser: Browser, given: Set) -> None:
    with page_of(browser, given.server, "sources", expected=("422",)) as page:
        page.wait_for_selector("#rules > li")
        page.locator("#add-rule").click()
        page.locator("[name=label]").select_option("no_fight")
        page.locator("[name=threshold]").fill("1,5")
        page.locator("[name=for_s]").fill("soon")
        page.locator("dialog[open] button[type=submit]").click()
        assert page.locator("#for_s-problem").inner_text() == "must be a number"
        page.locator("[name=for_s]").fill("2.5")
        page.locator("dialog[open] button[type=submit]").click()
        wait_for(page, "() => document.getElementById('threshold-problem').textContent === 'must be at most 1'")
        assert page.locator("#for_s-problem").inner_text() == ""
        page.locator("[name=threshold]").fill("0.9")
        saved(page)
        assert row(page, "no_fight", "rules").locator(".about").inner_text() == "at 0.9 or above, for 2.5 s"
        row(page, "fight", "rules").locator(".edit").click()
        assert page.locator("[name=threshold]").input_value() == "0.6"
        page.locator("[name=cooldown_s]").fill("30")
        saved(page)
        rules = StreamDocument("", given.path.read_bytes()).rules()
        assert [(one.label, one.threshold, one.for_s, one.cooldown_s) for one in rules] == [
            ("fight", 0.6, 0.0, 30.0), ("no_fight", 0.9, 2.5, 0.0),
        ]  # fmt: skip
        page.on("dialog", lambda dialog: dialog.accept())
        row(page, "fight", "rules").locator(".remove").click()
        wait_for(page, "() => document.querySelectorAll('#rules > li').length === 1")


def test_changes_of_others_are_shown_and_not_overwritten(browser: Browser, given: Set) -> None:
    with page_of(browser, given.server, "sources", expected=("409",)) as page:
        page.wait_for_selector("#rules > li")
        row(page, "fight", "rules").locator(".edit").click()
        assert given.send("PUT", "events/0", {"label": "fight", "threshold": 0.7}).status == 200
        page.locator("[name=threshold]").fill("0.5")
        page.locator("dialog[open] button[type=submit]").click()
        wait_for(page, "() => document.getElementById('rule-problem').textContent.includes('changed meanwhile')")
        page.keyboard.press("Escape")
        wait_for(page, "() => document.querySelector('#rules .about').textContent.startsWith('at 0.7')")
        # Changed on disk: pausing is refused, and the file can be loaded.
        given.path.write_text(given.path.read_text().replace('"yard"', '"garden"'))
        row(page, "yard").locator(".pause").click()
        wait_for(page, "() => document.getElementById('state').textContent.includes('load it first')")
        page.locator("#reload").click()
        wait_for(page, "() => document.getElementById('changed').hidden")
        assert row(page, "garden").count() == 1
        until(lambda: set(given.states()) == {"garden"})


def test_without_permission_the_page_only_shows(browser: Browser, classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "stream.toml"
    path.write_text(TEXT)
    with configured(classifier, path, allowed=False) as made, page_of(browser, made.server, "sources") as page:
        page.wait_for_selector("#sources > li")
        assert page.locator("#sources-fixed").inner_text().startswith("Read only: start the server with --edit")
        assert (
            page.locator("#add-source, #add-rule, #sources .edit, #rules .remove").locator("visible=true").count() == 0
        )
    with configured(classifier, None) as made, page_of(browser, made.server, "sources") as page:
        wait_for(page, "() => !document.getElementById('sources-fixed').hidden")
        assert "--config FILE" in page.locator("#sources-fixed").inner_text()


def test_it_fits_any_width_and_every_control_has_a_name(browser: Browser, given: Set) -> None:
    for width in (320, 390, 860, 1440, 1920):
        with page_of(browser, given.server, "sources", viewport={"width": width, "height": 844}) as page:
            page.wait_for_selector("#sources > li")
            assert page.evaluate(NO_SIDEWAYS)
            page.locator("#add-source").click()
            inside = (
                "() => { const d = document.querySelector('dialog[open]'); return d.scrollWidth <= d.clientWidth; }"
            )
            assert page.evaluate(inside)
            nameless = page.evaluate(
                """() => [...document.querySelectorAll('button, input, [role=img], select, a')].filter((e) =>
                     e.checkVisibility() && !(e.ariaLabel || e.innerText.trim() || e.labels?.length))
                     .map((e) => e.outerHTML)"""
            )
            assert nameless == []

"""The live page for an operator: the wall of tiles, the chart, events that open, pictures of glimpses, lost sources."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import SourceError
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.preprocess import CropWindow
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve import ServeOptions, Server
from adafocus_edge.serve.pictures import GLIMPSE_WIDTH, encode_pixels, glimpse_pictures
from tests.conftest import ROOT
from tests.support.browser import NO_SIDEWAYS, Browser, card, page_of, wait_for
from tests.support.served import CALM, FIGHT, SHORT, WIDE, Served, ask, get, new_run, quick, running, until
from tests.support.streams import HttpStream

WALL = {"width": 1920, "height": 1080}
FIVE = [Source(f"c{number}", str(path)) for number, path in enumerate((FIGHT, CALM, SHORT, FIGHT, CALM))]
SHOWN = (
    "() => [...document.querySelectorAll('.card')].filter((one) => one.offsetParent).map((one) => one.dataset.source)"
)
HAS_PICTURE = "s => document.querySelector(s + ' .picture')?.dataset.frame > 0"


@pytest.fixture(scope="module")
def five(classifier: Classifier) -> Iterator[Server]:
    """A server of a run with five streams."""
    run = new_run(classifier, *FIVE)
    with running(run), Server(run, ServeOptions(port=0, picture_fps=5.0)) as server:
        yield server


@contextmanager
def requested(page: Any) -> Iterator[set[str]]:
    """Collect the names of the sources whose pictures a page requests during the block."""
    names: set[str] = set()

    def note(request: Any) -> None:
        if "/picture.jpg" in request.url:
            names.add(request.url.split("/")[-2])

    page.on("request", note)
    yield names
    page.remove_listener("request", note)


def wait_for_shown(page: Any, *names: str) -> None:
    wait_for(page, f"names => JSON.stringify(({SHOWN})()) === names", json.dumps(names, separators=(",", ":")))


# -- the wall ----------------------------------------------------------------------------------------------------------


def test_all_streams_fill_a_wide_screen_and_none_needs_scrolling(browser: Browser, five: Server) -> None:
    for size in (WALL, {"width": 1440, "height": 900}):
        with page_of(browser, five, viewport=size) as page:
            wait_for_shown(page, "c0", "c1", "c2", "c3", "c4")
            boxes = [page.locator(card(source.name)).bounding_box() for source in FIVE]
            area = page.locator("#streams").bounding_box()
            assert len({box["x"] for box in boxes}) == 3
            assert max(box["y"] + box["height"] for box in boxes) <= size["height"]
            assert area["width"] > 0.7 * size["width"]
            assert sum(box["width"] * box["height"] for box in boxes) > 0.75 * area["width"] * area["height"]
            assert page.evaluate(NO_SIDEWAYS)
            assert page.evaluate("() => document.documentElement.scrollHeight <= innerHeight")


def test_the_number_of_tiles_is_chosen_and_kept_and_streams_that_are_not_shown_cost_nothing(
    browser: Browser, five: Server
) -> None:
    with page_of(browser, five, viewport=WALL) as page:
        wait_for_shown(page, "c0", "c1", "c2", "c3", "c4")
        page.get_by_label("4", exact=True).focus()
        page.keyboard.press("Space")
        wait_for_shown(page, "c0", "c1", "c2", "c3")
        assert page.locator("#place").inner_text() == "Streams 1 to 4"
        assert page.get_by_role("button", name="Previous streams").is_disabled()
        page.get_by_role("button", name="Next streams").press("Enter")
        wait_for_shown(page, "c4")
        assert page.locator("#place").inner_text() == "Stream 5"
        wait_for(page, HAS_PICTURE, card("c4"))
        page.wait_for_timeout(300)  # a request that was under way
        with requested(page) as names:
            page.wait_for_timeout(1500)
        assert names == {"c4"}
        page.reload()
        wait_for_shown(page, "c0", "c1", "c2", "c3")
        assert page.get_by_label("4", exact=True).is_checked()
        page.get_by_label("16", exact=True).check(force=True)
        wait_for_shown(page, "c0", "c1", "c2", "c3", "c4")
        assert page.locator("#pager").is_hidden()
        four = page.locator(card("c0")).bounding_box()["width"]
        assert four < 0.26 * page.locator("#streams").bounding_box()["width"]
        page.set_viewport_size({"width": 390, "height": 844})  # two small columns instead of four
        assert page.locator(card("c0")).bounding_box()["width"] > 150
        assert page.evaluate(NO_SIDEWAYS)


def test_one_stream_fills_the_window_and_the_screen_and_only_its_pictures_come(browser: Browser, five: Server) -> None:
    with page_of(browser, five, viewport=WALL) as page:
        wait_for(page, HAS_PICTURE, card("c2"))
        page.locator(f"{card('c2')} .enlarge").press("Enter")
        wait_for_shown(page, "c2")
        assert page.locator("header.top").is_hidden()
        assert page.locator(card("c2")).bounding_box()["width"] > 1880
        assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Reduce"
        page.wait_for_timeout(300)
        with requested(page) as names:
            page.wait_for_timeout(1500)
        assert names == {"c2"}
        full = page.locator(f"{card('c2')} .fullscreen")
        full.press("Enter")
        wait_for(page, "() => document.fullscreenElement !== null")
        wait_for(page, "() => document.body.classList.contains('full')")
        assert full.get_attribute("aria-label") == "Leave full screen"
        full.press("Enter")
        wait_for(page, "() => document.fullscreenElement === null && !document.body.classList.contains('full')")
        page.keyboard.press("Escape")
        wait_for_shown(page, "c0", "c1", "c2", "c3", "c4")
        assert page.evaluate("() => document.activeElement.closest('.card')?.dataset.source") == "c2"


def test_every_control_is_reached_by_tab_and_shows_its_focus(browser: Browser, five: Server) -> None:
    with page_of(browser, five, viewport=WALL) as page:
        wait_for_shown(page, "c0", "c1", "c2", "c3", "c4")
        seen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    """() => {
                        const one = document.activeElement;
                        const shown = one.matches('.segments input') ? one.nextElementSibling : one;
                        const style = getComputedStyle(one.matches('#file') ? one.closest('.drop') : shown);
                        const name = one.id || one.getAttribute('aria-label') || one.textContent.trim() || one.tagName;
                        return [name, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1];
                    }"""
                )
            )
            if seen[-1][0] in ("results", "BODY"):
                break
        names = [name for name, _ in seen]
        order = ["Skip to the streams", "Live", "Events", "API", "Full screen", "Pause the picture", "Enlarge", "file",
                 "camera", "events"]  # fmt: skip
        assert [names.index(name) for name in order] == sorted(names.index(name) for name in order), names
        assert names.count("Enlarge") == 5
        assert names.count("Confidence of c0 over time") == 1
        assert [name for name, visible in seen if not visible and name != "BODY"] == []


def test_without_streams_the_page_says_how_to_add_one(browser: Browser, classifier: Classifier) -> None:
    with quick(classifier) as server, page_of(browser, server) as page:
        page.get_by_role("heading", name="No streams").wait_for()
        assert "adafocus-edge serve yard=rtsp://" in page.locator("#nothing").inner_text()
        assert page.locator("#wall-tools").is_hidden()


def test_the_pages_share_their_links_and_the_theme(browser: Browser, five: Server) -> None:
    with page_of(browser, five, "docs", color_scheme="light") as page:
        page.get_by_text("Dark", exact=True).click()
        dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        for path, name in (("/", "Live"), ("/docs", "API")):
            page.goto(f"{five.url.rstrip('/')}{path}")
            assert page.locator(".pages a").all_inner_texts() == ["Live", "Events", "Sources", "API"]
            assert page.locator(".pages [aria-current=page]").inner_text() == name
            assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == dark


# -- the chart and events ----------------------------------------------------------------------------------------------

CHART = f"{card('entrance')} .chart"
VALUE = "s => document.querySelector(s)?.getAttribute('aria-valuetext')"


def test_the_chart_shows_values_under_the_pointer_and_by_keyboard(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server, viewport=WALL) as page:
        wait_for(page, f"s => / \\d+ %, .*\\d+ %$/.test(({VALUE})(s) ?? '')", CHART)
        chart = page.locator(CHART)
        assert chart.get_attribute("aria-valuetext").startswith("Now: ")
        readout = page.locator(f"{CHART} .readout")
        assert readout.is_hidden()
        box = chart.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 20)
        readout.wait_for()
        shown = readout.inner_text().split("\n")
        assert shown[0].count(":") == 2
        assert {"fight", "no_fight"} <= set(shown)
        assert sum(int(line.split()[0]) for line in shown if line.endswith(" %")) in (99, 100, 101)
        page.mouse.move(5, 5)
        readout.wait_for(state="hidden")

        page.locator(f"{card('entrance')} .enlarge").focus()
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.className").startswith("chart")
        newest = page.evaluate(VALUE, CHART)
        readout.wait_for()
        older = newest
        for _ in range(30):  # several glimpses fall into one second
            page.keyboard.press("ArrowLeft")
            if (older := page.evaluate(VALUE, CHART))[:8] != newest[:8]:
                break
        assert older[:8] != newest[:8]
        assert readout.inner_text().startswith(older[:8])
        page.keyboard.press("End")
        wait_for(page, f"([s, old]) => !({VALUE})(s).startsWith(old)", [CHART, older[:8]])
        page.keyboard.press("Home")
        assert int(chart.get_attribute("aria-valuenow")) < 0
        assert page.evaluate(VALUE, CHART)[:8] not in (newest[:8], older[:8])
        page.keyboard.press("Escape")
        readout.wait_for(state="hidden")


def test_the_chart_begins_again_where_the_clock_was_set_back(browser: Browser, served: Served) -> None:
    script = """async () => {
      const { Curve } = await import("/page/curve.js");
      const element = document.createElement("div");
      element.innerHTML = "<canvas></canvas><div class='readout'></div>";
      const curve = new Curve(element, "a", () => {});
      const times = [7200, 7201, 7200.5, 3601, 3602];
      return times.map((t) => { curve.add({ t, top: [] }); return curve.points.length; });
    }"""
    with page_of(browser, served.server) as page:
        assert page.evaluate(script) == [1, 2, 3, 1, 2]


def test_an_event_opens_from_the_list_and_from_the_chart(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server, viewport=WALL) as page:
        page.wait_for_selector("#events .open")
        page.locator("#events .open").last.press("Enter")
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        title = page.locator("#viewer-title").inner_text()
        assert title.split(", ", 1)[0] in ("fight", "no_fight")
        assert "peak" in page.locator("#viewer-facts").inner_text()
        assert "--events DIR" in page.locator("#viewer-note").inner_text()
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        assert page.evaluate("() => document.activeElement.closest('#events') !== null")

        wait_for(page, f"s => document.querySelector(s) && ({VALUE})(s)", CHART)
        page.locator(f"{card('entrance')} .enlarge").focus()
        page.keyboard.press("Tab")

        def opened() -> bool:
            page.keyboard.press("End")
            for _ in range(240):
                if "; event " in page.evaluate(VALUE, CHART):
                    break
                page.keyboard.press("ArrowLeft")
            page.keyboard.press("Enter")
            page.wait_for_timeout(500)
            return dialog.is_visible()

        until(opened)  # again where the event under way ends just before Enter
        assert page.locator("#viewer-title").inner_text().endswith(", entrance")
        page.get_by_role("button", name="Show the stream").click()
        dialog.wait_for(state="hidden")


@contextmanager
def serving(*words: object) -> Iterator[SimpleNamespace]:
    """Run the command line's server in a process of its own; its ``url`` is in what it yields."""
    command = [sys.executable, "-m", "adafocus_edge", "serve", *map(str, words), "--port", "0", "--json", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ) as process:
        try:
            assert process.stdout is not None
            yield SimpleNamespace(url=json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


def test_an_event_of_the_archive_shows_its_picture_and_then_its_clip(browser: Browser, tmp_path: Path) -> None:
    arguments = ("--event", "fight=0.6", "--events", tmp_path / "events", "--pre-roll", 1, "--post-roll", 1)
    with (
        serving(f"entrance={FIGHT}", "--glimpse-fps", 4, *arguments) as server,
        page_of(browser, server, viewport=WALL) as page,  # type: ignore[arg-type]
    ):
        page.locator("#events .open").first.click(timeout=60_000)
        page.wait_for_selector("#viewer img, #viewer video")
        wait_for(
            page,
            "() => document.querySelector('#viewer img')?.naturalWidth > 0 || document.querySelector('#viewer video')",
        )
        wait_for(page, "() => document.querySelector('#viewer video')?.readyState >= 1")
        assert page.locator("#viewer video").evaluate("one => one.duration") > 1
        assert page.locator("#viewer-facts").inner_text().count("peak") == 1
        page.get_by_role("link", name="Judge it in the archive").click()
        page.wait_for_selector("#viewer[open] [data-mark=right]")
        assert page.locator("#viewer-title").inner_text() == "fight, entrance"


# -- glimpses of an upload ---------------------------------------------------------------------------------------------


def test_pictures_of_glimpses_are_the_frames_that_the_model_saw(served: Served, classifier: Classifier) -> None:
    content = SHORT.read_bytes()
    plain = ask(served.server, "POST", "/api/classify?name=fi013.mp4", content).json
    assert set(plain["steps"][0]) == {"step", "frame_index", "time_s", "patch", "label", "class_id", "confidence"}
    found = ask(served.server, "POST", "/api/classify?name=fi013.mp4&frames=1", content).json
    clip, spec = Source("clip", str(SHORT)).open_clip(), classifier.model.spec
    frames = dict(clip.select(sorted(step["frame_index"] for step in found["steps"]), lambda rgb: rgb.copy()))
    for step, without in zip(found["steps"], plain["steps"], strict=True):
        jpeg, box = step.pop("picture"), step.pop("box")
        assert step == without
        frame = frames[step["frame_index"]]
        height, width = frame.shape[:2]
        with Image.open(io.BytesIO(base64.b64decode(jpeg))) as picture:
            assert picture.size == (min(width, GLIMPSE_WIDTH), picture.height)
            shown = np.asarray(picture.resize((width, height))).astype(int)
        assert np.abs(shown - frame).mean() < 6
        window = CropWindow.of(height, width, spec.frame_size, spec.fit)
        y, x, side = step["patch"]
        top, left, bottom, right = window.source_box(y, x, side, side)
        assert np.allclose(box, [left / width, top / height, right / width, bottom / height], atol=1e-4)


@pytest.mark.parametrize("aspect", [Fraction(1, 65535), Fraction(65535)])
def test_a_file_that_claims_an_absurd_aspect_gets_a_small_picture(aspect: Fraction) -> None:
    with Image.open(io.BytesIO(encode_pixels(np.zeros((90, 160, 3), np.uint8), aspect, 480))) as picture:
        assert picture.width <= 480
        assert picture.height <= 8 * 480


def test_reading_glimpses_again_ends_when_it_is_cancelled(served: Served) -> None:
    source = Source("wide", str(WIDE))
    result = served.run.submit_clip(source).result(60)
    cancel = threading.Event()
    assert len(glimpse_pictures(source, result, served.run.spec, cancel)) == served.run.spec.segments
    cancel.set()
    with pytest.raises(SourceError, match="wide: cancelled"):
        glimpse_pictures(source, result, served.run.spec, cancel)


def test_an_upload_shows_what_the_model_looked_at(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server) as page:
        page.wait_for_selector("#results li")
        page.set_input_files("#file", str(SHORT))
        wait_for(page, "n => document.querySelectorAll('.upload .steps li').length === n", served.run.spec.segments)
        urls = page.locator(".upload .steps canvas").evaluate_all("all => all.map((one) => one.toDataURL())")
        pictures = []
        for url in urls:
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
                pictures.append(np.asarray(image.convert("RGB")).astype(int))
        for picture in pictures:
            assert picture.std() > 20  # a picture, not an empty square
            assert (np.abs(picture - (255, 176, 0)).max(axis=-1) < 20).sum() > 100  # with the patch
        assert any(np.abs(picture - pictures[0]).mean() > 2 for picture in pictures[1:])
        glimpse = page.get_by_role("button", name="Glimpse 2 of")
        glimpse.press("Enter")
        page.get_by_role("dialog").wait_for()
        assert page.locator("#viewer-title").inner_text() == "fi013.mp4"
        assert page.locator("#viewer-facts").inner_text().startswith("Glimpse 2 of")
        assert page.locator("#viewer canvas").evaluate("one => one.width") == 960
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="hidden")
        assert page.evaluate("() => document.activeElement.closest('.steps') !== null")


# -- lost sources ------------------------------------------------------------------------------------------------------


def test_attempts_at_a_lost_source_share_one_row(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server) as page:
        rows = page.evaluate(
            """async () => {
                const { Events } = await import("/page/lists.js");
                const list = document.body.appendChild(document.createElement("ol"));
                const events = new Events(list, { labels: [] });
                const say = (source, notice, text, wall_s) => events.notice({ source, notice, text, wall_s });
                say("gate", "lost", "gate: no answer; retrying in 1 s", 0);
                say("yard", "lost", "yard: no answer; retrying in 1 s", 1);
                say("gate", "lost", "gate: no answer; retrying in 2 s", 2);
                say("gate", "reconnected", "gate: connected again", 3);
                say("gate", "lost", "gate: no answer; retrying in 1 s", 4);
                return [...list.children].map(({ children: [where, , text] }) => [where.textContent, text.textContent]);
            }"""
        )
    assert rows == [
        ["gate", "Lost: no answer; retrying in 1 s"],
        ["gate", "Reconnected: connected again"],
        ["yard", "Lost: no answer; retrying in 1 s"],
        ["gate", "Lost: no answer; retrying in 2 s"],
    ]


def test_a_lost_source_is_grey_and_dated_after_a_reload(browser: Browser, classifier: Classifier) -> None:
    with HttpStream("mjpeg", [(320, 180)]) as stream:
        sources = [Source("gate", stream.address, live=True), Source("entrance", str(FIGHT))]
        run = LiveRun(classifier, sources, LiveOptions(CaptureOptions(4.0, realtime=True, loop=True, patient=True)))
        with running(run), quick(classifier, run) as server, page_of(browser, server, viewport=WALL) as page:
            gate = card("gate")
            wait_for(page, "s => document.querySelector(s + ' .bars li')", gate)
            stream.kill()
            wait_for(page, "s => document.querySelector(s).classList.contains('stale')", gate)
            page.reload()
            wait_for(page, HAS_PICTURE, gate)
            wait_for(page, "s => document.querySelector(s).classList.contains('stale')", gate)
            note = r"/^Last picture \d\d:\d\d:\d\d, \d+(\.\d)? (s|min) ago$/"
            wait_for(page, f"s => {note}.test(document.querySelector(s + ' .note').innerText)", gate)
            dated = "s => document.querySelector(s + ' .standing').innerText.startsWith('as of ')"
            wait_for(page, dated, gate)
            assert (
                float(page.evaluate("s => getComputedStyle(document.querySelector(s + ' .picture')).opacity", gate))
                < 0.5
            )
            assert "lost" in page.locator("#wall-tally").inner_text()

            def dated_alike() -> bool:
                seen_at = get(server, "/api/status").json["sources"][0]["last_seen_at"]
                shown = page.locator(f"{gate} .standing").inner_text().split()[2].rstrip(",")
                clock = "at => new Date(at).toLocaleTimeString('en-GB', { hour12: false })"
                return bool(shown == page.evaluate(clock, seen_at))

            until(dated_alike)  # a frame that waited may be seen late
            stream.restart()
            wait_for(page, "s => !document.querySelector(s).classList.contains('stale')", gate)
            wait_for(page, "s => document.querySelector(s + ' .note').hidden", gate)

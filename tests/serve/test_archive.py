"""The archive of events over HTTP and on its page: what is listed, played, marked, deleted, and refused."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adafocus_edge.live.event_store import EventStore, StoredEvent
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve import ServeOptions, Server
from tests.support.browser import NO_SIDEWAYS, Browser, page_of, wait_for
from tests.support.kept import CLIP, COUNT, PICTURE, Kept
from tests.support.live_parts import WALL_S
from tests.support.served import BEARER, ODD_NAME, TOKEN, ask, get, new_run, running


def marked(kept: Kept, number: int, body: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    from urllib.parse import quote

    return ask(kept.server, "PUT", f"/api/archive/{quote(kept.key(number))}/mark", content)


def test_events_are_listed_played_marked_and_deleted(kept: Kept) -> None:
    from urllib.parse import quote

    first = get(kept.server, "/api/archive").json
    assert (first["total"], len(first["events"])) == (COUNT, 30)
    assert first["events"][0]["key"] == kept.key(COUNT - 1)
    assert first["events"][0]["ended_at"] is None
    assert (first["sources"], first["labels"]) == (sorted(["gate", ODD_NAME]), ["fight"])
    assert first["classes"] == ["fight", "fall", "no_fight"]
    rest = get(kept.server, f"/api/archive?before={quote(first['events'][-1]['key'])}").json
    assert [one["key"] for one in rest["events"]] == [kept.key(number) for number in range(9, -1, -1)]
    since = "2023-11-14T22:13:25Z"  # WALL_S + 5
    few = get(kept.server, f"/api/archive?source=gate&since={since}&min_peak=0.7&limit=3").json
    assert (few["total"], [one["peak"] for one in few["events"]]) == (15, [0.98, 0.96, 0.94])
    key = quote(kept.key(7))
    whole = get(kept.server, f"/api/archive/{key}/clip.mp4")
    assert (whole.status, whole.headers["content-type"], whole.body) == (200, "video/mp4", CLIP.read_bytes())
    part = get(kept.server, f"/api/archive/{key}/clip.mp4", Range="bytes=100-199")
    assert (part.status, part.body) == (206, CLIP.read_bytes()[100:200])
    saved = get(kept.server, f"/api/archive/{key}/clip.mp4?download=1")
    assert saved.headers["content-disposition"] == 'attachment; filename="e7.mp4"'
    assert get(kept.server, f"/api/archive/{key}/picture.jpg").body == PICTURE.read_bytes()
    assert get(kept.server, f"/api/archive/{key}").json["source"] == ODD_NAME

    assert marked(kept, 7, {"mark": "right"}).json["mark"] == "right"
    assert marked(kept, 8, {"mark": "wrong", "correct": "fall"}).json["correct"] == "fall"
    assert marked(kept, 9, {"mark": "wrong"}).json["mark"] == "wrong"
    assert marked(kept, 10, {"mark": "right"}).status == 200
    assert marked(kept, 10, {"mark": None}).json["mark"] is None
    assert get(kept.server, "/api/archive?mark=any").json["total"] == 3
    listed = get(kept.server, "/api/archive/training.csv")
    assert listed.headers["content-disposition"] == 'attachment; filename="training.csv"'
    rows = list(csv.DictReader(io.StringIO(listed.body.decode())))
    assert rows == [
        {"video": "e7.mp4", "class": "fight", "source": ODD_NAME},
        {"video": "e8.mp4", "class": "fall", "source": "gate"},
    ]
    assert ask(kept.server, "DELETE", f"/api/archive/{key}").status == 204
    assert ask(kept.server, "DELETE", f"/api/archive/{key}").status == 404
    assert get(kept.server, f"/api/archive/{key}/clip.mp4").status == 404
    assert not kept.store.path("e7.mp4").exists()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=0", "limit must be 1 to 200"),
        ("limit=x", "limit must be 1 to 200"),
        ("since=yesterday", "since must be a time"),
        ("until=9999999-01-01", "until must be a time"),
        ("min_peak=2", "min_peak must be 0 to 1"),
        ("min_peak=nan", "min_peak must be 0 to 1"),
        ("mark=perhaps", "mark must be right, wrong, any or none"),
    ],
)
def test_what_cannot_be_asked_is_refused(kept: Kept, query: str, words: str) -> None:
    answer = get(kept.server, f"/api/archive?{query}")
    assert answer.status == 400
    assert words in answer.error


def test_marks_that_make_no_sense_are_refused(kept: Kept) -> None:
    for body, words in (
        (b"", "not a mark"),
        ({"mark": "maybe"}, "not a mark"),
        ({"mark": "right", "who": "me"}, "not a mark"),
        ({"mark": "wrong", "correct": "dance"}, "dance: no class of the model"),
        (b"\xff\xfe{}", "not a mark"),
    ):
        answer = marked(kept, 1, body)
        assert answer.status == 400, body
        assert words in answer.error
    assert marked(kept, 1, b" " * 5000).status == 413
    assert marked(kept, 99, {"mark": "right"}).status == 404
    assert ask(kept.server, "PUT", "/api/archive/x/mark", b"{}", Origin="https://elsewhere.example").status == 403
    assert marked(kept, 1, {"mark": "wrong", "correct": "fight"}).status == 400
    assert get(kept.server, "/api/archive?before=nosuch").status == 400
    # A link in another site's page is followed; another site's page does not load it.
    from urllib.parse import quote

    clip = f"/api/archive/{quote(kept.key(1))}/clip.mp4"
    elsewhere = {"Sec_Fetch_Site": "cross-site"}
    assert get(kept.server, clip, Sec_Fetch_Mode="navigate", **elsewhere).status == 200
    assert get(kept.server, clip, Sec_Fetch_Mode="no-cors", **elsewhere).status == 403
    assert ask(kept.server, "DELETE", clip[:-9], Sec_Fetch_Mode="navigate", **elsewhere).status == 403
    outside = get(kept.server, "/api/archive/..%2F..%2Fetc/clip.mp4")
    assert outside.status == 404


def test_without_an_archive_the_page_says_how_to_get_one(browser: Browser, classifier: Classifier) -> None:
    run = new_run(classifier)
    with running(run), Server(run, ServeOptions(port=0)) as server:
        answer = get(server, "/api/archive")
        assert answer.status == 404
        assert answer.error == "no archive of events: start the server with --events DIR"
        with page_of(browser, server, "events", expected=("404",)) as page:
            wait_for(page, "() => document.getElementById('tally').textContent.includes('--events DIR')")


def test_the_archive_needs_the_token(classifier: Classifier, tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events")
    run = new_run(classifier)
    with running(run), Server(run, ServeOptions(port=0, token=TOKEN), archive=store) as server:
        assert get(server, "/api/archive").status == 401
        assert get(server, "/api/archive", **BEARER).status == 200
        assert (get(server, "/events").status, get(server, "/events").headers["location"]) == (303, "/login")
    store.close()


def test_a_person_judges_events_on_the_page(browser: Browser, kept: Kept) -> None:
    with page_of(browser, kept.server, "events") as page:
        page.wait_for_selector("#archive li")
        assert page.locator("#archive li").count() == 30
        assert page.locator("#tally").inner_text() == f"{COUNT} events"
        page.locator("#more").click()
        wait_for(page, f"() => document.querySelectorAll('#archive li').length === {COUNT}")
        # The picture is shown, and the clip plays.
        wait_for(page, "() => document.querySelector('#archive img').naturalWidth > 0")
        page.locator("#archive .open").nth(1).click()
        wait_for(page, "() => document.getElementById('player').readyState >= 2")
        assert page.locator("#viewer-title").inner_text() == "fight, gate"
        page.locator("#viewer [data-mark=wrong]").click()
        wait_for(page, "() => !document.getElementById('correct-label').hidden")
        page.locator("#correct").select_option("fall")
        wait_for(page, "() => document.querySelectorAll('#archive .mark')[1].textContent === 'wrong: fall'")
        event = kept.store.get(kept.key(COUNT - 2))
        assert event is not None
        assert (event.mark, event.correct) == ("wrong", "fall")
        # By keyboard: the next one, right, and back to the list.
        page.locator("#older").press("Enter")
        wait_for(page, "name => document.getElementById('viewer-title').textContent === name", f"fight, {ODD_NAME}")
        page.locator("#viewer [data-mark=right]").press("Space")
        wait_for(page, "() => document.querySelectorAll('#archive .mark')[2].textContent === 'right'")
        page.keyboard.press("Escape")
        wait_for(page, "() => !document.getElementById('viewer').open")
        wait_for(page, "key => document.activeElement.closest('li')?.dataset.key === key", kept.key(COUNT - 3))
        # The filter finds it.
        page.locator("select[name=mark]").select_option("right")
        wait_for(page, "() => document.getElementById('tally').textContent === '1 event'")
        # A link to an event opens it, wherever it is in the list, which stays without gaps.
        page.goto(f"{kept.server.url}events#{kept.key(0)}")
        page.reload()
        wait_for(page, "() => document.getElementById('viewer').open")
        assert page.locator("#viewer-title").inner_text() == "fight, gate"
        page.keyboard.press("Escape")
        page.locator("#more").click()
        wait_for(page, f"() => document.querySelectorAll('#archive li').length === {COUNT}")
        page.evaluate("key => { location.hash = encodeURIComponent(key); }", kept.key(0))
        wait_for(page, "() => document.getElementById('viewer').open")
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator("#delete").click()
        wait_for(page, "() => !document.getElementById('viewer').open")
        assert kept.store.get(kept.key(0)) is None
    for width in (390, 1920):
        for scheme in ("light", "dark"):
            size = {"width": width, "height": 900}
            with page_of(browser, kept.server, "events", viewport=size, color_scheme=scheme) as page:
                page.wait_for_selector("#archive li")
                assert page.evaluate(NO_SIDEWAYS)


def test_files_of_an_event_that_is_deleted_are_not_asked_for(browser: Browser, kept: Kept) -> None:
    """The browser's console would show the errors."""
    from playwright.sync_api import Error

    with page_of(browser, kept.server, f"events#{kept.key(5)}") as page:
        held: list[Any] = []

        def hold(request: Any) -> None:
            held.append(request)

        page.route(re.compile("fight-3/(clip|picture)"), hold)
        wait_for(page, "() => document.getElementById('viewer').open")
        page.evaluate("key => { location.hash = encodeURIComponent(key); }", kept.key(3))
        wait_for(page, "() => document.getElementById('player').src.includes('fight-3')")
        while len(held) < 2:
            page.wait_for_timeout(10)
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator("#delete").click()
        wait_for(page, "() => !document.getElementById('viewer').open")
        for request in held:
            with suppress(Error):  # the page does not ask any more
                request.continue_()
        page.wait_for_timeout(200)
    assert kept.store.get(kept.key(3)) is None


def test_an_event_that_cannot_be_deleted_stays_in_the_player(browser: Browser, kept: Kept) -> None:
    with page_of(browser, kept.server, "events", expected=("503",)) as page:
        page.locator("#archive .open").nth(1).click()
        wait_for(page, "() => document.getElementById('player').readyState >= 2")
        page.on("dialog", lambda dialog: dialog.accept())
        refusal = {"status": 503, "body": '{"error": "disk is full"}'}
        page.route(re.compile(f"fight-{COUNT - 2}$"), lambda request: request.fulfill(**refusal))
        page.locator("#delete").click()
        wait_for(page, "() => document.getElementById('problem').textContent === 'disk is full'")
        wait_for(page, "() => document.getElementById('player').readyState >= 2")
        shown = "() => document.querySelectorAll('#archive img')[1].naturalWidth > 0"
        wait_for(page, shown)
        # Or its picture comes back alone, if the answer comes after the player was closed.
        held: list[Any] = []

        def hold(request: Any) -> None:
            held.append(request)

        page.route(re.compile(f"fight-{COUNT - 2}$"), hold)
        page.locator("#delete").click()
        while not held:
            page.wait_for_timeout(10)
        page.keyboard.press("Escape")
        wait_for(page, "() => !document.querySelectorAll('#archive img')[1].hasAttribute('src')")
        held[0].fulfill(**refusal)
        wait_for(page, shown)
        assert not page.evaluate("() => document.getElementById('player').hasAttribute('src')")
    assert kept.store.get(kept.key(COUNT - 2)) is not None


def test_judging_goes_on_where_a_judged_event_leaves_the_list(browser: Browser, kept: Kept) -> None:
    with page_of(browser, kept.server, "events") as page:
        page.locator("select[name=mark]").select_option("none")
        page.locator("#archive .open").nth(3).click()
        page.locator("#viewer [data-mark=right]").click()
        wait_for(page, "key => !document.querySelector(`[data-key='${key}']`)", kept.key(COUNT - 4))
        for by, number in (("older", 5), ("newer", 3)):
            page.locator(f"#{by}").click()
            wait_for(page, "key => decodeURIComponent(location.hash) === `#${key}`", kept.key(COUNT - number))


def test_the_minutes_that_are_chosen_count_whole(browser: Browser, kept: Kept) -> None:
    with page_of(browser, kept.server, "events", timezone_id="UTC") as page:
        for name in ("since", "until"):  # all events started from 22:13:20 to 22:13:59
            page.locator(f"input[name={name}]").fill("2023-11-14T22:13")
        wait_for(page, "text => document.getElementById('tally').textContent === text", f"{COUNT} events")
        page.locator("input[name=until]").fill("2023-11-14T22:12")
        wait_for(page, "() => document.getElementById('tally').textContent === 'No event matches.'")


def test_the_api_is_described_on_a_page(browser: Browser, kept: Kept) -> None:
    with page_of(browser, kept.server, "docs") as page:
        page.wait_for_selector("#operations details")
        described = get(kept.server, "/api/openapi.json").json
        count = sum(len(methods) for methods in described["paths"].values())
        assert page.locator("#operations details").count() == count + len(described["components"]["schemas"])
        mark = page.locator("details", has_text="Say whether an event is right or wrong")
        mark.locator("summary").press("Enter")
        assert "Judgement" in mark.inner_text()
        assert "the body is too large" in mark.inner_text()
        assert page.evaluate(NO_SIDEWAYS)
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate(NO_SIDEWAYS)


def test_a_new_event_appears_by_itself(browser: Browser, kept: Kept) -> None:
    with page_of(browser, kept.server, "events") as page:
        page.wait_for_selector("#archive li")
        kept.store.add(StoredEvent("new-one", "gate", "fight", WALL_S + 99, peak=0.9))
        wait_for(page, "() => document.querySelector('#archive li').dataset.key === 'new-one'")
        assert page.locator("#tally").inner_text() == f"{COUNT + 1} events"
        # More than a page at once, and one that is deleted elsewhere.
        for number in range(35):
            kept.store.add(StoredEvent(f"many-{number}", "gate", "fight", WALL_S + 200 + number, peak=0.9))
        wait_for(page, "() => document.querySelector('#archive li').dataset.key === 'many-34'")
        kept.store.delete("many-33")
        wait_for(page, "() => !document.querySelector('[data-key=many-33]')")
        assert page.locator("#archive li").nth(1).get_attribute("data-key") == "many-32"

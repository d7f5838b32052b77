"""Sources and event rules over HTTP: what is changed, checked, refused, kept, and written to the file."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve.stream_file import StreamDocument, editing, write
from tests.conftest import ROOT
from tests.live.test_copy import served as sent_once
from tests.support.configured import TEXT, Set, configured
from tests.support.served import BEARER, FIGHT, TOKEN, Answer, ask, get, until
from tests.support.streams import HttpStream, free_port

DARK = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
CORNER = [[0.0, 0.0], [0.4, 0.0], [0.0, 0.4]]


@pytest.fixture(scope="module")
def steady(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Set]:
    """One that no test changes."""
    path = tmp_path_factory.mktemp("steady") / "stream.toml"
    path.write_text(TEXT)
    with configured(classifier, path) as made:
        yield made
    assert path.read_text() == TEXT


def test_what_is_configured_is_shown_without_secrets(steady: Set) -> None:
    shown = steady.get()
    assert shown["file"] == "stream.toml"
    assert (shown["sources_fixed"], shown["rules_fixed"], shown["changed"], shown["problem"]) == (None,) * 2 + (
        False,
        None,
    )
    assert [(one["name"], one["paused"], one["running"]) for one in shown["sources"]] == [
        ("yard", False, ["yard"]), ("dock", True, []),
    ]  # fmt: skip
    assert shown["sources"][1]["address"] == "rtsp://***@127.0.0.1:9/stream1?token=***"
    assert shown["rules"] == [{"label": "fight", "threshold": 0.6, "for_s": 0.0, "cooldown_s": 0.0}]
    assert shown["classes"] == ["fight", "no_fight"]


def test_sources_are_added_changed_paused_and_removed_while_others_run_on(given: Set) -> None:
    until(lambda: given.states().get("yard") == "running")
    with HttpStream("mjpeg", [(320, 180)], user="operator", password="s3cret!") as stream:
        body = {"name": "gate", "address": stream.address}
        added = given.send("POST", "sources", body)
        assert added.status == 200, added.body
        assert [one["name"] for one in added.json["sources"]] == ["yard", "dock", "gate"]
        until(lambda: given.states().get("gate") == "running")
        shown = added.json["sources"][2]["address"]
        assert shown.startswith("http://***@127.0.0.1:")

        # Another name, and a mask: the password is neither shown nor typed again, and kept.
        body = {"name": "gate 2", "address": shown, "masks": [DARK], "regions": [CORNER]}
        assert given.send("PUT", "sources/2", body).json["sources"][2]["masks"] == [DARK]
        until(lambda: given.states() == {"yard": "running", "gate 2": "running"})
        picture = until(
            lambda: (found := get(given.server, "/api/streams/gate%202/picture.jpg")).status == 200 and found
        )
        assert np.asarray(Image.open(io.BytesIO(picture.body))).max() < 8
        assert stream.address in given.path.read_text()
        # Another path of the same host: it is still kept.
        body = {"name": "gate 2", "address": f"{shown}?size=2"}
        assert given.send("PUT", "sources/2", body).status == 200
        assert f"{stream.address}?size=2" in given.path.read_text()
        assert given.send("PUT", "sources/2", {"name": "gate 2", "address": shown}).status == 200
        until(lambda: given.states().get("gate 2") == "running")

        assert given.send("PUT", "sources/2", {"name": "gate 2", "paused": True}).json["sources"][2]["paused"]
        assert set(given.states()) == {"yard"}
        assert given.send("PUT", "sources/2", {"name": "gate 2"}).status == 200
        until(lambda: given.states().get("gate 2") == "running")
        assert given.send("DELETE", "sources/2").status == 200
        assert set(given.states()) == {"yard"}
    yard = given.run.status().sources[0]
    assert yard.reconnects == 0
    assert given.path.read_text() == TEXT  # to the last comment


def test_rules_are_added_changed_and_removed(given: Set) -> None:
    answer = given.send("PUT", "events/0", {"label": "fight", "threshold": 0.01, "cooldown_s": 3})
    assert answer.json["rules"] == [{"label": "fight", "threshold": 0.01, "for_s": 0.0, "cooldown_s": 3.0}]
    assert "threshold = 0.01  # not too low\n" in given.path.read_text()
    until(lambda: get(given.server, "/api/events").json["events"])
    assert len(given.send("POST", "events", {"label": "no_fight"}).json["rules"]) == 2
    assert [rule["label"] for rule in given.send("DELETE", "events/0").json["rules"]] == ["no_fight"]
    assert given.send("DELETE", "events/0").json["rules"] == []
    assert "[[event]]" not in given.path.read_text()
    assert "[webhooks]  # of another program" in given.path.read_text()
    assert len(given.send("POST", "events", {"label": "fight"}).json["rules"]) == 1


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"name": " ", "address": "0"}, {"name": "must not be empty"}),
        ({"name": "a/b", "address": "0"}, {"name": "must not contain = or /"}),
        ({"name": "yard", "address": "0"}, {"name": "is the name of another source"}),
        ({"name": "dock", "address": ""}, {"name": "is the name of another source", "address": "must not be empty"}),
        ({"name": "x"}, {"address": "must not be empty"}),
        ({"name": "x", "address": "/etc/passwd"}, {"address": "must be a camera, such as 0"}),
        ({"name": "x", "address": "all.streams"}, {"address": "must be a camera, such as 0"}),
        ({"name": "x", "address": "*.mp4"}, {"address": "must be a camera, such as 0"}),
        ({"name": "x", "address": "file:///etc/passwd"}, {"address": "must be a camera, such as 0"}),
        ({"name": "x", "address": "/dev/video0/../../etc/passwd"}, {"address": "must be a camera, such as 0"}),
        ({"name": "x", "address": "http://host/clip.mp4"}, {"address": "is the address of a video file"}),
        ({"name": "x", "address": "rtsp://***@host/1"}, {"address": "replace ***"}),
        ({"name": "x", "address": "rtsp://host/\n1"}, {"address": "must have at most 2048 characters, all printable"}),
        (
            {"name": "x", "address": "0", "masks": [[[0, 0], [1, 1], [1, 0], [0, 1]]]},
            {"masks": "mask 1: sides 1 and 3"},
        ),
        ({"name": "x", "address": "0", "regions": [[[0, 0], [2, 1], [1, 0]]]}, {"regions": "must be at most 1"}),
        ({"name": "x", "address": "0", "regions": [[[0, 0], [1, 1]]]}, {"regions": "of length >= 3"}),
        ({"name": 3, "address": "0"}, {"name": "Expected `str`, got `int`"}),
    ],
)
def test_wrong_sources_are_refused_with_a_line_for_each_field(steady: Set, body: Any, fields: Any) -> None:
    answer = steady.send("POST", "sources", body)
    assert answer.status == 422
    assert set(answer.json["fields"]) == set(fields)
    for field, words in fields.items():
        assert words in answer.json["fields"][field]
        assert field in answer.json["error"]
    assert steady.path.read_text() == TEXT


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"label": "dance"}, "label", "dance: is not a class of the model"),
        ({"label": "fight", "threshold": 0}, "threshold", "must be more than 0"),
        ({"label": "fight", "threshold": 1.5}, "threshold", "must be at most 1"),
        ({"label": "fight", "for_s": -1}, "for_s", "must be at least 0"),
        ({"label": "fight", "cooldown_s": "long"}, "cooldown_s", "Expected `float`, got `str`"),
    ],
)
def test_wrong_rules_are_refused(steady: Set, body: Any, field: str, words: str) -> None:
    answer = steady.send("POST", "events", body)
    assert (answer.status, list(answer.json["fields"])) == (422, [field])
    assert words in answer.json["fields"][field]
    assert steady.path.read_text() == TEXT


def test_a_password_goes_to_no_other_host(given: Set) -> None:
    shown = given.get()["sources"][1]["address"]
    for address in (
        shown.replace("127.0.0.1", "127.0.0.2"),
        shown.replace(":9/", ":99/"),
        shown.replace("rtsp", "rtmp"),
        shown.replace("127.0.0.1:9", "127.0.0.1:9.example.com"),
        shown.replace("127.0.0.1:9", "127.0.0.1:9@example.com"),
        shown.replace("/stream1", "/stream2"),  # the token is hidden, too
    ):
        answer = given.send("PUT", "sources/1", {"name": "dock", "address": address})
        assert answer.status == 422, address
        assert "replace *** by what it stands for" in answer.json["fields"]["address"]
        tested = ask(given.server, "POST", "/api/config/test", json.dumps({"number": 1, "address": address}))
        assert tested.status == 422
    assert given.send("PUT", "sources/1", {"name": "dock 2", "address": shown, "paused": True}).status == 200
    assert "rtsp://operator:s3cret!@127.0.0.1:9/stream1?token=abc" in given.path.read_text()
    bare = shown.replace("***", "new", 1).replace("***", "now")
    assert given.send("PUT", "sources/1", {"name": "dock 2", "address": bare, "paused": True}).status == 200
    assert '"rtsp://new@127.0.0.1:9/stream1?token=now"  # the pier' in given.path.read_text()


def test_malformed_requests_are_refused(steady: Set) -> None:
    for body, status in ((b"", 400), (b"{", 400), (b"[]", 422), (b"\xff", 400), (b" " * 300_000, 413)):
        assert ask(steady.server, "POST", "/api/config/sources", body).status == status, body[:9]
    assert steady.send("PUT", "sources/9", {"name": "x", "address": "0"}).status == 404
    assert steady.send("PUT", "sources/x", {"name": "x", "address": "0"}).status == 404
    assert steady.send("DELETE", "events/7").status == 404
    assert steady.send("DELETE", "sources/-1").status == 404
    assert ask(steady.server, "DELETE", "/api/config/sources/0").error.startswith("version is missing")
    other = ask(steady.server, "POST", "/api/config/sources", b"{}", Origin="https://elsewhere.example")
    assert other.status == 403
    assert steady.path.read_text() == TEXT


def test_a_source_is_tested_by_a_picture_or_a_reason(given: Set) -> None:
    def tested(**body: Any) -> Answer:
        return ask(given.server, "POST", "/api/config/test", json.dumps(body))

    until(lambda: given.states().get("yard") == "running")
    shown = tested(number=0)
    assert (shown.status, shown.headers["content-type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(shown.body)).size == (456, 256)
    with HttpStream("mjpeg", [(320, 180)], user="operator", password="s3cret!") as stream:
        assert Image.open(io.BytesIO(tested(address=stream.address, name="gate").body)).size == (320, 180)
        wrong = tested(address=stream.bare_address, name="gate")
        assert (wrong.status, wrong.json["fields"]) == (422, {})
        assert wrong.json["error"].startswith("gate: cannot be read (")
        # A mask that is saved also covers the picture to draw on.
        assert given.send("POST", "sources", {"name": "gate", "address": stream.address, "masks": [DARK]}).status == 200
        for paused in (False, True):
            body = {"name": "gate", "masks": [DARK], "paused": paused}
            assert given.send("PUT", "sources/2", body).status == 200
            picture = tested(number=2, address=stream.address)
            assert np.asarray(Image.open(io.BytesIO(picture.body))).max() < 8
    gone = tested(address="rtsp://operator:s3cret!@127.0.0.1:9/x")
    assert gone.json["error"] == "source: cannot be read (Connection refused)"
    assert tested(number=7).status == 404
    assert tested(address="/etc/passwd").status == 422


def brightest(answer: Answer) -> int:
    assert answer.status == 200, answer.body
    return int(np.asarray(Image.open(io.BytesIO(answer.body))).max())


def test_no_picture_of_a_test_lacks_a_mask(classifier: Classifier, path: Path) -> None:
    def tested(**body: Any) -> Answer:
        return ask(made.server, "POST", "/api/config/test", json.dumps(body))

    whole = "0,0 1,0 1,1 0,1"
    with HttpStream("mjpeg", [(320, 180)]) as stream:
        unnamed = f'\n[[source]]\naddress = "{stream.bare_address}"\n'
        path.write_text(TEXT + unnamed)
        # Masks of the command line: of a source that is read, that is paused, and that has another name in the form.
        with configured(classifier, path, mask=[f"yard={whole}", f"dock={whole}"]) as made:
            until(lambda: made.run.newest("yard"))
            assert brightest(tested(number=0)) < 8
            assert brightest(tested(number=0, name="garden")) < 8
            assert brightest(tested(number=1, address=stream.bare_address)) < 8
            assert brightest(tested(number=2)) > 100
        # A source without a name is the one that is read, with its masks, whoever asks.
        with configured(classifier, path, mask=[f"{stream.bare_address}={whole}"]) as made:
            frame = until(lambda: made.run.newest(stream.bare_address))
            assert not frame.to_rgb().any()
            assert brightest(tested(number=2)) < 8
            assert brightest(tested(address=stream.bare_address)) < 8
        # Masks that someone wrote into the file, and that are not loaded yet.
        with configured(classifier, path) as made:
            path.write_text(TEXT.replace('name = "yard"', f'name = "yard"\nmasks = [{DARK}]'))
            until(lambda: made.run.newest("yard"))
            assert brightest(tested(number=0)) < 8


def test_a_source_that_is_read_is_not_opened_a_second_time_for_a_test(classifier: Classifier, path: Path) -> None:
    with sent_once(FIGHT, "mpegts") as address:
        path.write_text(f'source = ["{address}"]\n')
        with configured(classifier, path) as made:
            until(lambda: made.run.newest(address))
            for body in ({"number": 0}, {"address": address, "name": "gate"}):
                assert brightest(ask(made.server, "POST", "/api/config/test", json.dumps(body))) > 100


@pytest.mark.parametrize("paused", [False, True])
def test_no_source_takes_the_name_of_one_without_a_name(classifier: Classifier, path: Path, paused: bool) -> None:
    unnamed = "rtsp://127.0.0.1:9/x"
    path.write_text('source = ["0"]\n')
    with configured(classifier, path) as made:
        answer = made.send("POST", "sources", {"name": "camera 0", "address": unnamed, "paused": paused})
        assert (answer.status, answer.json["fields"]) == (422, {"name": "is the name of another source"})
        assert path.read_text() == 'source = ["0"]\n'
        assert set(made.states()) == {"camera 0"}
        for entries in (
            '"0", "0"',
            f'"0", {{name = "camera 0", address = "{unnamed}", paused = {str(paused).lower()}}}',
        ):
            path.write_text(f"source = [{entries}]\n")
            refused = ask(made.server, "POST", "/api/config/reload")
            assert (refused.status, refused.json["fields"]) == (422, {"name": "two sources are named camera 0"})
        path.write_text('source = ["~nosuchuser/x"]\n')
        refused = ask(made.server, "POST", "/api/config/reload")
        assert (refused.status, refused.json["error"].partition(":")[0]) == (422, "~nosuchuser/x")
        path.write_text("")
        assert ask(made.server, "POST", "/api/config/reload").status == 200
        assert made.send("POST", "sources", {"name": "~x", "address": unnamed}).status == 200
        assert set(made.states()) == {"~x"}


def test_of_changes_at_the_same_time_none_is_lost(given: Set) -> None:
    version = given.get()["version"]
    statuses: list[int] = []

    def add(name: str, base: str | None) -> None:
        while True:
            for_s = float(name) + (10.0 if base is None else 0.0)  # no rule may be there twice
            body = {"version": base or given.get()["version"], "label": "fight", "for_s": for_s}
            status = ask(given.server, "POST", "/api/config/events", json.dumps(body)).status
            statuses.append(status)
            if base is not None or status != 409:
                return

    for base, wanted in ((version, 1), (None, 8)):
        threads = [threading.Thread(target=add, args=(str(number), base)) for number in range(wanted and 8)]
        statuses.clear()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses.count(200) == wanted
        assert set(statuses) <= {200, 409}
    rules = StreamDocument("", given.path.read_bytes()).rules()
    assert sorted(rule.for_s for rule in rules[2:]) == [10.0 + number for number in range(8)]
    assert given.get()["rules"] == [
        {"label": rule.label, "threshold": rule.threshold, "for_s": rule.for_s, "cooldown_s": rule.cooldown_s}
        for rule in rules
    ]


def test_what_someone_wrote_into_the_file_is_not_overwritten_but_loaded(given: Set) -> None:
    changed = TEXT.replace('name = "yard"', 'name = "garden"') + "# a note\n"
    given.path.write_text(changed)
    shown = given.get()
    assert (shown["changed"], shown["problem"]) == (True, None)
    answer = given.send("POST", "events", {"label": "fight"})
    assert (answer.status, answer.error) == (
        409, "stream.toml was changed on disk: load it first, then change it here",
    )  # fmt: skip
    assert given.path.read_text() == changed
    assert set(given.states()) == {"yard"}
    assert ask(given.server, "POST", "/api/config/reload").json["changed"] is False
    assert set(given.states()) == {"garden"}
    assert given.send("POST", "events", {"label": "fight"}).status == 200
    assert "# a note" in given.path.read_text()

    for broken, words in (
        ("[[source]", "stream.toml: not TOML"),
        ("[[source]]\nname = 'x'\n", "address is missing in [[source]]"),
        ("event = ['dance']\n", "event dance: unknown class"),
        ("[[source]]\nname='a'\naddress='0'\n" * 2, "two sources are named a"),
    ):
        given.path.write_text(broken)
        refused = ask(given.server, "POST", "/api/config/reload")
        assert refused.status == 422
        assert words in refused.json["error"]
        assert set(given.states()) == {"garden"}
        assert given.get()["changed"]
    given.path.unlink()
    assert "cannot be read (No such file" in given.get()["problem"]
    version = {"version": "x", "label": "fight"}
    answer = ask(given.server, "POST", "/api/config/events", json.dumps(version))
    assert answer.status == 500
    assert "stream.toml: cannot be read (No such file or directory)" in answer.error


def test_masks_are_refused_where_packets_are_copied(classifier: Classifier, path: Path, tmp_path: Path) -> None:
    with configured(classifier, path, record=tmp_path / "rec", record_mode="copy") as made:
        answer = made.send("PUT", "sources/0", {"name": "yard", "masks": [CORNER]})
        assert answer.status == 422
        assert "its masks cannot be applied to copied packets" in answer.json["error"]
        assert made.send("PUT", "sources/0", {"name": "yard", "regions": [CORNER]}).status == 200
    assert "masks" not in path.read_text()


def test_changes_need_permission(classifier: Classifier, path: Path) -> None:
    body = {"label": "fight"}
    with configured(classifier, None) as made:
        assert made.get()["file"] is None
        assert made.send("POST", "events", body).error.startswith("start the server with --config FILE and --edit")
    with configured(classifier, path, allowed=False) as made:
        refused = [made.send("POST", "events", body), made.send("DELETE", "sources/0"), made.send("POST", "reload")]
        for answer in (*refused, ask(made.server, "POST", "/api/config/test", b"{}")):
            assert (answer.status, answer.error.partition(" to ")[0]) == (403, "start the server with --edit")
        assert made.get()["sources_fixed"] == made.get()["rules_fixed"]
    with configured(classifier, path, overridden=["event"]) as made:
        assert made.get()["sources_fixed"] is None
        assert made.send("POST", "events", body).error.startswith("given on the command line")
        assert made.send("PUT", "sources/0", {"name": "yard", "masks": [CORNER]}).status == 200
    with configured(classifier, path, overridden=["source"]) as made:
        assert made.send("DELETE", "sources/0").status == 403
        assert made.send("POST", "events", body).status == 200
    with configured(classifier, path, token=TOKEN) as made:
        assert get(made.server, "/api/config").status == 401
        assert ask(made.server, "POST", "/api/config/reload").status == 401
        assert "the same rule twice" in made.send("POST", "events", body, **BEARER).json["error"]
        assert made.send("POST", "events", {"label": "fight", "for_s": 3}, **BEARER).status == 200
        assert (get(made.server, "/sources").status, get(made.server, "/sources").headers["location"]) == (
            303,
            "/login",
        )


def test_options_of_the_command_line_still_count(classifier: Classifier, path: Path, tmp_path: Path) -> None:
    mask = ["yard=0,0 1,0 1,1 0,1"]
    with configured(classifier, path, snapshots=tmp_path, mask=mask) as made:
        answer = made.send("DELETE", "events/0")
        assert answer.status == 422
        assert answer.json["error"] == "--snapshots: needs --event, which defines the events to save"
        # Without its name it would lose its mask, and a restart would refuse the option.
        for answer, what in (
            (made.send("PUT", "sources/0", {"name": "garden"}), "renamed"),
            (made.send("DELETE", "sources/0"), "removed"),
        ):
            assert (answer.status, answer.json["fields"]) == (
                422, {"name": f"yard cannot be {what}: --mask yard=... names it: remove that option first"},
            )  # fmt: skip
        assert made.path.read_text() == TEXT
        for paused in (True, False):
            assert made.send("PUT", "sources/0", {"name": "yard", "paused": paused}).status == 200
            assert ("yard" in made.states()) is not paused
        made.path.write_text(made.path.read_text().replace('"yard"', '"garden"'))
        refused = ask(made.server, "POST", "/api/config/reload")
        assert (refused.status, "no source is named 'yard'" in refused.json["error"]) == (422, True)
        made.path.write_text(made.path.read_text().replace('"garden"', '"yard"'))
        assert made.send("PUT", "sources/0", {"name": "yard", "regions": [CORNER]}).status == 200
        until(lambda: made.states().get("yard") == "running")
        frame = until(lambda: made.run.newest("yard"))
        assert not frame.to_rgb().any()  # masked by the option, still


def test_there_is_a_limit_of_sources(given: Set) -> None:
    for number in range(4):
        assert given.send("POST", "sources", {"name": f"s{number}", "address": "rtsp://127.0.0.1:9/x"}).status == 200
    answer = given.send("POST", "sources", {"name": "s4", "address": "rtsp://127.0.0.1:9/x"})
    assert (answer.status, answer.json["error"]) == (
        422, "5 sources are the most that can run now: restart to add more",
    )  # fmt: skip
    assert (
        given.send("POST", "sources", {"name": "s4", "address": "rtsp://127.0.0.1:9/x", "paused": True}).status == 200
    )


# -- the file ----------------------------------------------------------------------------------------------------------


def test_permissions_and_links_of_the_file_stay(path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    with editing(link) as content:
        document = StreamDocument(link.name, content)
        document.change("event", None, {"label": "no_fight"})
        write(link, document.content)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert len(StreamDocument("", path.read_bytes()).rules()) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", '[[source]]\nname = "new"\naddress = "0"\n'),
        ("x = 1\n", 'x = 1\n\n[[source]]\nname = "new"\naddress = "0"\n'),
        ("source = []\nx = 1\n", 'x = 1\n\n[[source]]\nname = "new"\naddress = "0"\n'),
        ('source = ["a=1"] # old\n', 'source = ["a=1", {name = "new", address = "0"}] # old\n'),
        ('[[event]]\nlabel = "x"\n', '[[event]]\nlabel = "x"\n[[source]]\nname = "new"\naddress = "0"\n'),
    ],
)
def test_a_source_is_added_to_any_form_of_file(text: str, wanted: str) -> None:
    document = StreamDocument("", text.encode())
    document.change("source", None, {"name": "new", "address": "0", "paused": None})
    assert document.content.decode().replace("\n\n", "\n") == wanted.replace("\n\n", "\n")
    entries = StreamDocument("", document.content).sources()
    assert [entry.argument for entry in entries][-1] == "new=0"


COMMENTED = """\
# The gateway.

# the yard camera
[[source]]
name = "yard"
address = "0"  # USB

# the gate camera: insurance
[[source]]
name = "gate"
address = \"\"\"
[[source]]
\"\"\"

# rules
[[event]]
label = "fight"
"""


def test_comments_stay_where_they_were() -> None:
    """tomlkit takes those above a table for the end of the one before."""
    masked = StreamDocument("", COMMENTED.encode())
    masked.change("source", 0, {"fps": 5})
    assert masked.content.decode() == COMMENTED.replace("# USB\n", "# USB\nfps = 5\n")
    more = StreamDocument("", COMMENTED.encode())
    more.change("source", None, {"name": "new", "address": "1"})
    assert more.content.decode() == COMMENTED.replace(
        '"""\n\n# rules', '"""\n\n[[source]]\nname = "new"\naddress = "1"\n\n# rules'
    )
    one = StreamDocument("", COMMENTED.encode())
    one.remove("source", 0)
    assert one.content.decode() == COMMENTED.replace('[[source]]\nname = "yard"\naddress = "0"  # USB\n', "")
    one.remove("source", 0)
    # A comment on what is gone is not one on what follows.
    assert one.content.decode() == (
        '# The gateway.\n\n# the yard camera\n\n# the gate camera: insurance\n\n# rules\n[[event]]\nlabel = "fight"\n'
    )
    one.remove("event", 0)
    assert (one.sources(), one.rules()) == ([], [])
    close = StreamDocument("", b'# a\n[[source]]\nname = "a"\n# b\n[[source]]\nname = "b"\n[source.more]\nx = 1\n')
    close.remove("source", 0)
    assert close.content == b'# a\n\n# b\n[[source]]\nname = "b"\n[source.more]\nx = 1\n'
    close.remove("source", 0)
    assert close.content == b"# a\n\n# b\n"


def test_a_source_that_is_a_text_becomes_a_table_when_it_is_changed() -> None:
    document = StreamDocument("", b'source = [\n  "yard=0", # mine\n  "1",\n]\n')
    document.change("source", 0, {"name": "yard", "address": "0", "masks": [CORNER]})
    entries = StreamDocument("", document.content).sources()
    assert [(entry.name, entry.address, len(entry.zones.masks)) for entry in entries] == [
        ("yard", "0", 1),
        (None, "1", 0),
    ]
    assert b"# mine" in document.content


CHANGES = """
import sys
from pathlib import Path
from adafocus_edge.serve.stream_file import StreamDocument, editing, write
from tests.support.dies import die_at
path = Path(sys.argv[1])
seen = die_at(str(path.parent), int(sys.argv[2]))
with editing(path) as content:
    document = StreamDocument(path.name, content)
    document.change("event", None, {"label": "no_fight"})
    write(path, document.content)
print(len(seen))
"""


def test_a_kill_while_writing_leaves_the_file_whole(path: Path) -> None:
    path.chmod(0o640)
    wrote = False
    for number in range(1, 30):
        before = path.read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", CHANGES, str(path), str(number)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        after = path.read_bytes()
        if done.returncode == 0:
            wrote = True
            assert after != before
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        rules = [len(StreamDocument("", content).rules()) for content in (before, after)]
        assert rules[1] - rules[0] in (0, 1)
        assert after.startswith(TEXT.encode()[:80])
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert wrote
    assert number > 4, "it was killed at several places"
    assert [entry.name for entry in path.parent.iterdir()] == ["stream.toml"]  # no draft, no lock


@contextmanager
def served(path: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "adafocus_edge", "serve", "--config", str(path), "--edit", "--port", str(port)]
    process = subprocess.Popen([*command, "--threads", "1", "-q"], cwd=ROOT, env=dict(os.environ))

    def up() -> bool:
        assert process.poll() is None
        try:
            return asked(port, "GET", "/healthz")[0] == 200
        except OSError:
            return False

    try:
        until(up)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def asked(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_restart_has_the_sources_that_were_set_even_after_a_kill(tmp_path: Path) -> None:
    path, port = tmp_path / "stream.toml", free_port()
    path.write_text(f"# mine\nloop = true\n[[source]]\nname = 'yard'\naddress = '{FIGHT}'\n")
    with served(path, port) as process:
        shown = asked(port, "GET", "/api/config")[1]
        changes = [
            ("PUT", "sources/0", {"name": "yard", "masks": [CORNER], "regions": [DARK]}),
            ("POST", "sources", {"name": "dock", "address": "rtsp://a:b@127.0.0.1:9/x"}),
            ("POST", "sources", {"name": "roof", "address": "rtsp://a:b@127.0.0.1:9/y", "paused": True}),
            ("POST", "events", {"label": "fight", "threshold": 0.123, "for_s": 1.5, "cooldown_s": 20}),
        ]
        for method, place, body in changes:
            status, shown = asked(port, method, f"/api/config/{place}", {"version": shown["version"], **body})
            assert status == 200, shown
        names = {source["name"] for source in asked(port, "GET", "/api/status")[1]["sources"]}
        assert names == {"yard", "dock"}
        process.kill()
    with served(path, port):
        again = asked(port, "GET", "/api/config")[1]
        assert again == shown
        assert {source["name"] for source in asked(port, "GET", "/api/status")[1]["sources"]} == names
    assert path.read_text().startswith("# mine\nloop = true\n")


def test_edit_needs_a_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "adafocus_edge", "serve", "--edit", "--port", "0", "-q"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2, "error: --edit: needs --config FILE, which the page changes; an empty file will do\n",
    )  # fmt: skip

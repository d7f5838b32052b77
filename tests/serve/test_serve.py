"""The web page and its API: access, responses, limits, shutdown; and the page in a real browser."""

from __future__ import annotations

import asyncio
import base64
import gc
import http.client
import io
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import SourceError, UsageError
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import LiveFrame, Notice
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.images import read_image
from adafocus_edge.media.preprocess import CropWindow
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve import ServeOptions, Server, app, check_exposure, guard, pictures, schemas, uploads
from adafocus_edge.serve import board as boards
from adafocus_edge.serve import server as servers
from adafocus_edge.serve.cameras import MAX_BYTES, check_jpeg, decode_jpeg
from adafocus_edge.serve.forms import FormFile
from adafocus_edge.serve.metrics import exposition
from adafocus_edge.serve.pictures import encode
from adafocus_edge.serve.uploads import file_name
from tests.conftest import ROOT
from tests.support.browser import NO_SIDEWAYS, Browser, card, page_of, wait_for
from tests.support.live_parts import live_frame
from tests.support.live_parts import look as seen
from tests.support.served import (
    BEARER,
    CALM,
    FIGHT,
    ODD_NAME,
    SHORT,
    TOKEN,
    Answer,
    Reported,
    Served,
    ask,
    get,
    new_run,
    quick,
    running,
    until,
)
from tests.support.streams import HttpStream, free_port, need


def jpeg(width: int = 320, height: int = 240, shade: int = 90, **more: Any) -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(written, "JPEG", **more)
    return written.getvalue()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder for temporary files of uploads."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# -- host and token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_no_token(host: str) -> None:
    check_exposure(ServeOptions(host))
    check_exposure(ServeOptions(host, token="short"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "camera.example", "localhost.example"])
def test_other_machines_need_a_token_that_cannot_be_guessed(host: str) -> None:
    with pytest.raises(UsageError, match=r"can be reached from other machines: add --token"):
        check_exposure(ServeOptions(host))
    with pytest.raises(UsageError, match=r"the token has 15 characters, but .* needs at least 16"):
        check_exposure(ServeOptions(host, token="x" * 15))
    check_exposure(ServeOptions(host, token="x" * 16))


@pytest.mark.parametrize("token", ["", "with\nline", "schlüssel-schlüssel", " begins-with-a-space", "x" * 513])
def test_a_token_must_fit_a_header(token: str) -> None:
    with pytest.raises(UsageError, match="the token must"):
        check_exposure(ServeOptions(token=token))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"host": " "}, "host is empty"),
        ({"port": 65536}, "port 65536: must be 1 to 65535"),
        ({"port": -1}, "port -1"),
        ({"max_upload_mb": 0}, "max_upload_mb 0: must be at least 1"),
        ({"max_cameras": -1}, "max_cameras -1: must be at least 0"),
        ({"picture_fps": 0}, "picture_fps 0: must be 0.1 to 60"),
        ({"picture_width": 4}, "picture_width 4: must be 16 to 8192 pixels"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServeOptions(**wrong)


def test_a_port_that_is_taken_is_told_in_one_line(classifier: Classifier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^port {port} of 127\.0\.0\.1 is already in use: choose another with --port"
        ):
            Server(new_run(classifier), ServeOptions(port=port)).__enter__()


@pytest.mark.parametrize(
    ("host", "message"),
    [("203.0.113.7", "--host 203.0.113.7: not an address of this machine"), ("no-such-host.invalid", "unknown host")],
)
def test_a_host_that_cannot_be_had_is_told_in_one_line(classifier: Classifier, host: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Server(new_run(classifier), ServeOptions(host, 0, TOKEN)).__enter__()


def test_an_open_door_is_refused_before_anything_listens(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="add --token"):
        Server(new_run(classifier), ServeOptions("0.0.0.0", 0))


# -- status and results ------------------------------------------------------------------------------------------------


def test_the_status_is_that_of_the_run_with_the_crop(served: Served) -> None:
    status = get(served.server, "/api/status").json
    assert status["model"] == served.run.status().to_json()["model"]
    assert [source["name"] for source in status["sources"]][:2] == ["entrance", ODD_NAME]
    assert status["sources"][0]["state"] == "running"
    assert status["sources"][0]["crop"] == [0, 0, 1, 1]  # the default model sees the whole picture, squashed
    assert abs(status["now_s"] - time.time()) < 60


def test_results_and_events_are_the_newest_first(served: Served) -> None:
    results = until(lambda: (found := get(served.server, "/api/results").json["results"])[3:] and found)
    times = [entry["wall_s"] for entry in results if entry["source"] == "entrance"]
    assert times == sorted(times, reverse=True)
    assert {"label", "confidence", "top", "steps", "latency_ms", "backend", "variant", "cut"} <= set(results[0])
    only = get(served.server, f"/api/results?limit=1&source={quote(ODD_NAME, safe='')}").json["results"]
    assert [entry["source"] for entry in only] == [ODD_NAME]
    found = until(lambda: (told := get(served.server, "/api/events").json)["events"] and told)
    assert found["events"][0]["event"] in ("start", "end")
    assert found["events"][0]["start_wall_s"] <= found["events"][0]["wall_s"]
    for entry in found["notices"]:
        assert entry["text"].startswith(entry["source"])


@pytest.mark.parametrize("limit", ["0", "-1", "201", "many", "1e2", "", "9" * 30, "٣"])
@pytest.mark.parametrize("path", ["/api/results", "/api/events"])
def test_a_limit_is_checked(served: Served, path: str, limit: str) -> None:
    answer = get(served.server, f"{path}?limit={quote(limit)}")
    assert (answer.status, answer.error) == (400, "limit must be 1 to 200")


def test_metrics_are_what_prometheus_reads(served: Served) -> None:
    def read() -> tuple[dict[str, float], Answer]:
        answer = get(served.server, "/metrics")
        values = {}
        for family in text_string_to_metric_families(answer.body.decode()):
            for sample in family.samples:
                key = sample.name + json.dumps(sample.labels, sort_keys=True)
                assert key not in values, "the same series twice"
                values[key] = sample.value
        return values, answer

    values, answer = read()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    status = served.run.status().to_json()
    source = json.dumps({"source": "entrance"})
    for name in ("frames", "glimpses", "dropped", "damaged", "reconnects", "windows"):
        assert 0 <= values[f"adafocus_{name}_total{source}"] <= status["sources"][0][name]
    assert values[f"adafocus_frames_total{source}"] > 0
    for quantile in ("0.5", "0.95", "0.99"):
        labels = json.dumps({"quantile": quantile, "source": ODD_NAME})
        assert 0 < values[f"adafocus_latency_seconds{labels}"] < 60
    assert values["adafocus_up{}"] == 1
    assert values['adafocus_source_state{"source": "entrance", "state": "running"}'] == 1
    assert values['adafocus_listener_dropped_total{"listener": "web page"}'] == 0
    assert any(name.startswith("adafocus_build_info") and '"backend": "onnxruntime-cpu"' in name for name in values)
    later, _ = read()
    assert later[f"adafocus_frames_total{source}"] >= values[f"adafocus_frames_total{source}"]


def test_readings_of_the_device_become_metrics() -> None:
    listener = schemas.Listener(name="out.jsonl", waiting=1, handled=2, dropped=3, failed=4, dropping=False)
    status = schemas.Status(
        sources=[], listeners=[listener, listener], alive=True, stalled_s=0.0, uptime_s=1.0, now_s=0.0,
        model={"backend": "b", "variant": "v"},
        sensors={"temperature_c": 61.5, "power_w": 7.25, "power_of": "module", "gpu_power_w": None, "fan_rpm": 900},
    )  # fmt: skip
    text = exposition(status, {}).decode()
    assert "adafocus_temperature_celsius 61.5" in text
    assert "adafocus_power_watts 7.25" in text
    assert 'adafocus_sensor{name="fan_rpm"} 900.0' in text
    assert 'adafocus_listener_dropped_total{listener="out.jsonl"} 6.0' in text
    assert "power_of" not in text


class StalledRun(LiveRun):
    """A run whose model hangs."""

    stalled_s: ClassVar[float] = 31.0

    def status(self) -> Any:
        return replace(super().status(), alive=True, stalled_s=self.stalled_s)


class BrokenRun(LiveRun):
    """A run whose status cannot be read."""

    def status(self) -> Any:
        raise RuntimeError(f"secret {ROOT}")


def test_health_is_200_while_the_run_moves(served: Served) -> None:
    answer = get(served.server, "/healthz")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_health_is_503_when_it_does_not(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    with quick(classifier) as server:  # a run that nobody started
        assert (get(server, "/healthz").status, get(server, "/healthz").json) == (503, {"status": "failing"})
    with quick(classifier, new_run(classifier, kind=StalledRun)) as server:
        assert get(server, "/healthz").status == 503
        monkeypatch.setattr(StalledRun, "stalled_s", 29.0)
        assert get(server, "/healthz").status == 200
    with quick(classifier, new_run(classifier, kind=BrokenRun)) as server:
        assert get(server, "/healthz").json == {"status": "failing"}


def test_what_goes_wrong_inside_is_told_to_the_owner_and_not_to_visitors(classifier: Classifier) -> None:
    told = Reported()
    with Server(new_run(classifier, kind=BrokenRun), ServeOptions(port=0), told) as server:
        answer = get(server, "/api/status")
        assert (answer.status, answer.error) == (500, "internal server error")
        assert answer.headers["content-security-policy"]
        until(lambda: told)
    assert told == [f"web page: RuntimeError: secret {ROOT}"]


# -- access ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}", "127.0.0.2:99"])
def test_names_of_this_machine_are_fine(served: Served, host: str) -> None:
    assert get(served.server, "/api/status", Host=host.format(port=served.server.port)).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::1", "0.0.0.0", "evil\\@127.0.0.1"],
)
@pytest.mark.parametrize("path", ["/", "/api/status", "/metrics", "/page/main.js"])
def test_another_name_for_this_machine_is_refused(served: Served, host: str, path: str) -> None:
    answer = get(served.server, path, Host=host)
    assert answer.status == 403
    assert "other host names need a token" in answer.error


def test_servers_side_by_side_leave_the_log_as_it_was(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to end must not restore what the second found."""
    log = logging.getLogger("uvicorn")
    monkeypatch.setattr(log, "handlers", [])  # as if no other test's server ran
    monkeypatch.setattr(log, "propagate", True)
    with ExitStack() as later:
        with Server(new_run(classifier), ServeOptions(port=0)):
            later.enter_context(Server(new_run(classifier), ServeOptions(port=0)))
        assert not log.propagate
    assert (log.propagate, log.handlers) == (True, [])


def test_a_request_of_two_lengths_is_refused_and_the_last_of_its_connection(served: Served) -> None:
    hidden = f"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1:{served.server.port}\r\n\r\n"
    head = f"POST /logout HTTP/1.1\r\nHost: 127.0.0.1:{served.server.port}\r\nContent-Length: {len(hidden) + 5}\r\n"
    with socket.create_connection(("127.0.0.1", served.server.port), 30) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}".encode())
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_probes_may_call_it_what_they_want(served: Served) -> None:
    assert get(served.server, "/healthz", Host="10.1.2.3:8765").status == 200


SENDS = [
    ("POST", "/api/classify"),
    ("POST", "/api/cameras"),
    ("POST", "/api/cameras/x/frame"),
    ("DELETE", "/api/cameras/x"),
    ("POST", "/logout"),
]


@pytest.mark.parametrize(("method", "path"), SENDS)
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost:{port}", "http://[", "file://"]
)
def test_other_pages_may_not_send(served: Served, method: str, path: str, origin: str) -> None:
    answer = ask(served.server, method, path, Origin=origin.format(port=served.server.port))
    assert (answer.status, answer.error) == (403, "requests from pages of other sites are not allowed")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    "path", ["/api/status", "/api/live", "/metrics", "/page/main.js", "/api/streams/entrance/picture.jpg"]
)
def test_other_pages_may_not_read(served: Served, path: str, site: str) -> None:
    assert get(served.server, path, Sec_Fetch_Site=site).status == 403
    assert get(served.server, "/", Sec_Fetch_Site=site).status == 200  # a link from elsewhere


def test_our_own_page_and_programs_may_send(served: Served) -> None:
    own = f"http://127.0.0.1:{served.server.port}"
    assert ask(served.server, "DELETE", "/api/cameras/x", Origin=own, Sec_Fetch_Site="same-origin").status == 404
    assert ask(served.server, "DELETE", "/api/cameras/x").status == 404
    # Behind a proxy that ends TLS.
    there = {"Host": "localhost", "Origin": "https://localhost"}
    assert ask(served.server, "DELETE", "/api/cameras/x", **there).status == 404


@pytest.mark.parametrize(
    "path",
    ["/", "/page/main.js", "/api/status", "/nowhere", "/metrics", "/healthz", "/api/streams/entrance/picture.jpg"],
)
def test_every_answer_carries_the_headers(served: Served, path: str) -> None:
    answer = get(served.server, path)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == ("no-cache" if path == "/page/main.js" else "no-store")
    assert "server" not in answer.headers


def test_nothing_of_the_page_comes_from_elsewhere(served: Served) -> None:
    page = get(served.server, "/").body.decode()
    assert "<title>AdaFocus Edge</title>" in page
    for path in (ROOT / "adafocus_edge" / "serve" / "page").iterdir():
        content = path.read_text()
        assert "innerHTML" not in content, path
        assert not re.search(r"https?:|[\"'(]//", content.replace("http://www.w3.org/2000/svg", "")), path


def test_files_of_the_page_are_kept_by_browsers_while_they_are_the_same(served: Served) -> None:
    first = get(served.server, "/page/style.css")
    assert first.headers["content-type"] == "text/css; charset=utf-8"
    again = get(served.server, "/page/style.css", If_None_Match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/app.py", "index.html", "login.html", "%00"])
def test_only_files_of_the_page_are_served(served: Served, name: str) -> None:
    assert get(served.server, f"/page/{name}").status == 404


def test_wrong_methods_and_addresses_are_told_in_one_line(served: Served) -> None:
    assert get(served.server, "/nowhere").error == "not found"
    assert (ask(served.server, "POST", "/api/status").status, ask(served.server, "PUT", "/").status) == (405, 405)
    assert ask(served.server, "GET", "/api/classify").error == "method GET is not allowed here"


def test_without_a_token_there_is_no_login(served: Served) -> None:
    for method in ("GET", "POST"):
        answer = ask(served.server, method, "/login")
        assert (answer.status, answer.headers["location"]) == (303, "/")


@pytest.fixture
def locked(classifier: Classifier) -> Iterator[Server]:
    with quick(classifier, token=TOKEN) as server:
        yield server


LOCKED = [
    ("GET", "/api/status"),
    ("GET", "/api/results"),
    ("GET", "/api/events"),
    ("GET", "/api/live"),
    ("GET", "/metrics"),
    ("GET", "/page/main.js"),
    ("GET", "/nowhere"),
    ("GET", "/api/streams/a/video.mjpeg"),
    *SENDS,
]


@pytest.mark.parametrize(("method", "path"), LOCKED)
def test_with_a_token_nothing_is_told_without_it(locked: Server, method: str, path: str) -> None:
    answer = ask(locked, method, path)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert ask(locked, method, path, Cookie=f"{guard.COOKIE}=guess").status == 401
    assert ask(locked, method, path, Cookie=f"{guard.COOKIE}={TOKEN}").status == 401


def test_the_token_opens_everything(locked: Server) -> None:
    for path in ("/", "/api/status", "/metrics", "/page/main.js"):
        assert get(locked, path, **BEARER).status == 200
    assert get(locked, "/api/status", Authorization=f"bearer {TOKEN}").status == 200
    assert get(locked, "/api/status", Host="camera.example", **BEARER).status == 200  # nothing to rebind to


def test_health_and_the_login_page_need_no_token(locked: Server) -> None:
    assert get(locked, "/healthz").json == {"status": "failing"}
    answer = get(locked, "/")
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    page = get(locked, "/login")
    assert page.status == 200
    assert b'type="password"' in page.body
    for name in ("style.css", "theme.js", "icon.svg"):
        assert get(locked, f"/page/{name}").status == 200


def sign_in(server: Server, token: str, **headers: str) -> Answer:
    return ask(server, "POST", "/login", urlencode({"token": token}), **headers)


def test_a_login_gives_a_cookie_that_is_not_the_token(locked: Server) -> None:
    answer = sign_in(locked, TOKEN)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie, *settings = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(settings)
    assert "Secure" not in settings
    assert TOKEN not in cookie
    assert get(locked, "/api/status", Cookie=cookie).status == 200
    assert get(locked, "/", Cookie=f"other=1; odd; {cookie}").status == 200
    assert sign_in(locked, TOKEN).headers["set-cookie"].split(";")[0] != cookie
    assert ask(locked, "POST", "/logout", Cookie=cookie).headers["location"] == "/login"
    assert get(locked, "/api/status", Cookie=cookie).status == 401


def test_behind_tls_the_cookie_is_for_tls_only(locked: Server) -> None:
    answer = sign_in(locked, TOKEN, Origin="https://camera.example", Host="camera.example")
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_a_login_ends(classifier: Classifier) -> None:
    with quick(classifier, token=TOKEN, session_s=0.3) as server:
        cookie = sign_in(server, TOKEN).headers["set-cookie"].split(";")[0]
        until(lambda: get(server, "/api/status", Cookie=cookie).status == 401)


def test_wrong_tokens_are_slowed_down(locked: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(guard.TRIES):
        answer = sign_in(locked, "guess")
        assert (answer.status, b"Wrong token." in answer.body) == (401, True)
    assert sign_in(locked, TOKEN).status == 429  # or guessing would only have to be fast
    answer = get(locked, "/api/status", **BEARER)
    assert (answer.status, int(answer.headers["retry-after"]) <= 61) == (429, True)
    monkeypatch.setattr(guard, "TRIES_S", 0.0)
    assert get(locked, "/api/status", **BEARER).status == 200


def test_wrong_bearers_count_as_well(locked: Server) -> None:
    for _ in range(guard.TRIES):
        assert get(locked, "/metrics", Authorization="Bearer guess").error == "wrong token"
    assert get(locked, "/metrics", Authorization="Bearer guess").status == 429


@pytest.mark.parametrize("body", ["", "token=", "token", "other=1", "x" * 5000, "token=%ff%fe", "token=a&token=b"])
def test_odd_logins_are_refused(locked: Server, body: str) -> None:
    assert ask(locked, "POST", "/login", body).status == 401


def test_a_login_that_does_not_end_is_let_go(locked: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LOGIN_WITHIN_S", 0.2)
    with closing(socket.create_connection(("127.0.0.1", locked.port), timeout=20)) as connection:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntoken=")
        assert b"408" in connection.recv(100)


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", REQUEST[:9], REQUEST + REQUEST[:9]])
def test_who_asks_for_nothing_is_let_go(locked: Server, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "HEAD_WITHIN_S", 0.3)
    with closing(socket.create_connection(("127.0.0.1", locked.port), timeout=20)) as connection:
        connection.sendall(sent)
        with suppress(ConnectionResetError):
            while connection.recv(1000):
                pass


def test_who_goes_on_asking_is_kept(locked: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "HEAD_WITHIN_S", 1.0)
    with closing(http.client.HTTPConnection("127.0.0.1", locked.port, timeout=20)) as connection:
        connection.connect()
        kept = connection.sock
        for _ in range(20):
            connection.request("GET", "/healthz")
            assert b"failing" in connection.getresponse().read()
            time.sleep(0.1)
        assert connection.sock is kept


def test_sessions_and_tries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_SESSIONS", 3)
    monkeypatch.setattr(guard, "MAX_ADDRESSES", 2)
    sessions, tries = guard.Sessions(60.0), guard.Tries()
    names = [sessions.open() for _ in range(5)]
    assert [sessions.holds(name) for name in names] == [False, False, True, True, True]
    for address in "abcde":
        tries.failed(address)
    assert len(tries._of) == 2
    for _ in range(guard.TRIES_OF_ALL):
        tries.failed("f")
    assert tries.wait_s("somebody else") > 0


def test_all_interfaces_are_served_with_a_token(classifier: Classifier) -> None:
    with quick(classifier, host="0.0.0.0", token=TOKEN) as server:
        assert get(server, "/api/status", Host=socket.gethostname(), **BEARER).status == 200
        assert server.url == f"http://{socket.gethostname()}:{server.port}/"
    with quick(classifier, host="localhost") as server:
        assert server.url == f"http://localhost:{server.port}/"


# -- live data ---------------------------------------------------------------------------------------------------------


@contextmanager
def listening(server: Server, path: str = "/api/live", **headers: str) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as answer:
            yield answer


def events_of(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """Read server-sent events; a comment comes as the kind ``:``."""
    kind, data = "", ""
    while line := answer.readline().decode():
        if line.startswith("event: "):
            kind = line[7:].strip()
        elif line.startswith("data: "):
            data = line[6:]
        elif line.startswith(":"):
            yield ":", line[1:].strip()
        elif not line.strip() and kind:
            yield kind, json.loads(data)
            kind = ""


def test_live_data_begins_with_all_that_is_known_and_goes_on(served: Served) -> None:
    with listening(served.server) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        told: dict[str, list[Any]] = {}
        for kind, entry in events_of(answer):
            told.setdefault(kind, []).append(entry)
            if {"look", "window", "status"} <= set(told) and len(told["look"]) > 8:
                break
    hello = told["hello"][0]
    assert next(iter(told)) == "hello"
    assert set(hello["curves"]) == {"entrance", ODD_NAME}
    assert hello["windows"]
    assert hello["looks"]
    assert hello["camera_fps"] == 10  # motion over 0.1 s
    assert hello["most_cameras"] == 4
    assert "token" not in json.dumps(hello).lower()
    for look in told["look"]:
        left, top, right, bottom = look["box"]
        side = served.run.spec.patch_size / served.run.spec.frame_size
        assert 0 <= left < right <= 1.0001
        assert 0 <= top < bottom <= 1.0001
        assert right - left == pytest.approx(side, abs=1e-3)
        assert left == pytest.approx(look["patch"][1] / served.run.spec.frame_size, abs=1e-3)
        assert top == pytest.approx(look["patch"][0] / served.run.spec.frame_size, abs=1e-3)
    times = [look["wall_s"] for look in told["look"] if look["source"] == "entrance"]
    assert times == sorted(times)
    assert times[0] > max(point["t"] for point in hello["curves"]["entrance"]), "told twice"


@pytest.mark.parametrize(("width", "height"), [(456, 256), (256, 456), (320, 240), (1920, 1080)])
def test_boxes_of_a_model_that_crops_are_where_its_crop_lies(
    classifier: Classifier, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(classifier, Source("a", str(FIGHT)))
    run.spec = replace(run.spec, fit="crop")
    status = run.status()
    status.sources[0] = replace(status.sources[0], width=width, height=height)
    monkeypatch.setattr(run, "status", lambda: status)

    async def made() -> tuple[Any, Any]:
        board = boards.Board(run, ServeOptions(), asyncio.get_running_loop())
        crop = board.refresh().sources[0].crop
        box = board._box((width, height), 24, 48, 128)
        board.close()
        return crop, box

    crop, box = asyncio.run(made())
    window = CropWindow.of(height, width, 224)
    for found, square in ((crop, (0, 0, 224, 224)), (box, (24, 48, 128, 128))):
        top, left, bottom, right = window.source_box(*square)
        assert found == pytest.approx([left / width, top / height, right / width, bottom / height], abs=1e-4)
    short = (crop[3] - crop[1]) if width > height else (crop[2] - crop[0])
    assert short == pytest.approx(224 / 256)


def test_a_curve_begins_again_where_the_clock_was_set_back(classifier: Classifier) -> None:
    run = new_run(classifier, Source("a", str(FIGHT)))

    async def made() -> Any:
        board = boards.Board(run, ServeOptions(), asyncio.get_running_loop())
        for index, wall_s in enumerate((7200.0, 7201.0, 3601.0, 3602.0)):
            board.process(seen(live_frame("a", index, float(index), wall_s=wall_s)))
        board.close()
        return board._hello()["curves"]

    assert [point["t"] for point in asyncio.run(made())["a"]] == [3601.0, 3602.0]


def test_a_quiet_connection_is_kept_open(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "KEEP_ALIVE_S", 0.4)
    monkeypatch.setattr("adafocus_edge.serve.app.BEAT_S", 60.0)
    with quick(classifier) as server, listening(server) as answer:
        kinds = [kind for kind, _ in zip(events_of(answer), range(3), strict=False)]
        assert [kind for kind, _ in kinds] == ["hello", ":", ":"]


def test_watchers_have_a_limit(classifier: Classifier) -> None:
    with quick(classifier, max_viewers=1) as server:
        with listening(server) as answer:
            assert next(events_of(answer))[0] == "hello"
            refused = get(server, "/api/live")
            assert (refused.status, refused.error) == (503, "1 clients are connected already")
        until(lambda: ask(server, "GET", "/metrics").body.count(b"adafocus_web_watchers 0.0"))
        with listening(server) as answer:
            assert next(events_of(answer))[0] == "hello"


def test_who_reads_too_slowly_loses_the_oldest() -> None:
    async def slow() -> tuple[bytes, int, bytes]:
        watcher = boards.Watcher(since=2, waiting=3)
        for number in range(10):
            watcher.enqueue(number, b"%d" % number)
        return await watcher.take(1.0), watcher.dropped, await watcher.take(0.01)

    assert asyncio.run(slow()) == (b"789", 4, b"")


def test_heads_of_endless_answers_end(served: Served) -> None:
    for path in ("/api/live", "/api/streams/entrance/video.mjpeg"):
        answer = ask(served.server, "HEAD", path)
        assert (answer.status, answer.body) == (200, b"")


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_of_the_newest_frame_and_not_too_wide(served: Served) -> None:
    address = f"/api/streams/{quote(ODD_NAME, safe='')}/picture.jpg"
    first = get(served.server, address)
    assert (first.status, first.headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(first.body)) as image:
        assert image.size == (960, 540)
        image.load()
    later = until(
        lambda: (a := get(served.server, address)).headers["x-frame-index"] != first.headers["x-frame-index"] and a
    )
    assert int(later.headers["x-frame-index"]) > int(first.headers["x-frame-index"])
    with Image.open(io.BytesIO(get(served.server, "/api/streams/entrance/picture.jpg").body)) as image:
        assert image.size == (456, 256)


def test_a_picture_that_is_known_is_not_sent_again(classifier: Classifier) -> None:
    run = new_run(classifier, Source("a", str(FIGHT)))
    with quick(classifier, run) as server:
        assert get(server, "/api/streams/a/picture.jpg").error == "a: no picture yet"
        assert get(server, "/api/streams/a/picture.jpg?after=-1").status == 204
        run._sources["a"].capture.newest = still_frame(7)
        assert get(server, "/api/streams/a/picture.jpg?after=6").status == 200
        answer = get(server, "/api/streams/a/picture.jpg?after=7")
        assert (answer.status, answer.body, answer.headers["x-frame-index"]) == (204, b"", "7")


def still_frame(index: int) -> LiveFrame:
    return LiveFrame("a", index, time.monotonic(), 0.0, time.time(), lambda: np.full((90, 160, 3), 80, np.uint8))


@pytest.mark.parametrize("name", ["nobody", "entrance/", "", "..", "%2e%2e"])
def test_pictures_of_nobody_are_told(served: Served, name: str) -> None:
    for kind in ("picture.jpg", "video.mjpeg"):
        assert get(served.server, f"/api/streams/{name}/{kind}").status == 404


def test_pictures_are_made_once_for_all_who_look_and_never_for_nobody(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(frame: LiveFrame, widest: int) -> bytes:
        made.append(frame.index)
        return encode(frame, widest)

    monkeypatch.setattr(pictures, "encode", counted)
    run = new_run(classifier, Source("a", str(FIGHT)))
    with quick(classifier, run, picture_fps=0.1) as server:
        run._sources["a"].capture.newest = still_frame(1)
        assert made == []
        answers: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: answers.append(get(server, "/api/streams/a/picture.jpg"))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run._sources["a"].capture.newest = still_frame(2)  # within the ten seconds of one picture
        answers.append(get(server, "/api/streams/a/picture.jpg"))
    assert made == [1]
    assert len({answer.body for answer in answers}) == 1


def test_video_comes_part_by_part(served: Served) -> None:
    with listening(served.server, "/api/streams/entrance/video.mjpeg") as answer:
        assert answer.headers["content-type"] == "multipart/x-mixed-replace; boundary=picture"
        shown = []
        for _ in range(3):
            assert answer.readline() == b"--picture\r\n"
            assert answer.readline() == b"Content-Type: image/jpeg\r\n"
            length = int(answer.readline().split(b":")[1])
            assert answer.readline() == b"\r\n"
            shown.append(answer.read(length))
            assert answer.readline() == b"\r\n"
            with Image.open(io.BytesIO(shown[-1])) as image:
                image.load()
    assert len(set(shown)) == 3, "the picture stands still"


def test_videos_have_a_limit(classifier: Classifier) -> None:
    run = new_run(classifier, Source("a", str(FIGHT)))
    with quick(classifier, run, max_viewers=1) as server:
        run._sources["a"].capture.newest = still_frame(1)
        with listening(server, "/api/streams/a/video.mjpeg") as answer:
            answer.readline()
            assert get(server, "/api/streams/a/video.mjpeg").status == 503
        until(lambda: b"adafocus_web_videos 0.0" in get(server, "/metrics").body)


# -- files -------------------------------------------------------------------------------------------------------------


def send(server: Server, body: Any, name: str, **headers: str) -> Answer:
    return ask(server, "POST", "/api/classify", body, X_File_Name=quote(name), **headers)


def test_a_file_is_classified_as_on_the_command_line(served: Served, classifier: Classifier, temporary: Path) -> None:
    answer = send(served.server, SHORT.read_bytes(), "Überwachung 1.mp4")
    assert answer.status == 200, answer.body
    found = answer.json
    with load_model(read_bundle(default_bundle()), "auto", "onnxruntime-cpu", 1) as model:
        expected, _ = Classifier(model, classifier.classes, top_k=2, schedule="stream").classify(
            Source("x", str(SHORT))
        )
    assert found["source"] == "Überwachung 1.mp4"
    assert found["label"] == expected.top[0].label
    assert found["confidence"] == pytest.approx(expected.top[0].confidence, abs=1e-3)
    assert [step["frame_index"] for step in found["steps"]] == [step.frame_index for step in expected.steps]
    assert list(temporary.iterdir()) == []


def test_a_name_may_stand_in_the_address_and_a_body_may_come_in_parts(served: Served, temporary: Path) -> None:
    content = SHORT.read_bytes()
    parts = iter([content[start : start + 7000] for start in range(0, len(content), 7000)])
    answer = ask(served.server, "POST", f"/api/classify?name={quote('../../etc/clip.mp4', safe='')}", parts)
    assert (answer.status, answer.json["source"]) == (200, "clip.mp4")
    assert list(temporary.iterdir()) == []


CUT = SHORT.read_bytes()[:20_000]


@pytest.mark.parametrize(
    ("name", "content", "status", "message"),
    [
        ("note.txt", b"hello", 415, "note.txt: not a video file name; it must end in one of "),
        ("picture.jpg", jpeg(), 415, "picture.jpg: not a video file name"),
        ("no-suffix", b"hello", 415, "no-suffix: not a video file name"),
        ("", b"hello", 400, "the file has no name"),
        ("empty.mp4", b"", 400, "empty.mp4: the file is empty"),
        ("noise.mp4", bytes(range(256)) * 40, 422, "noise.mp4: not a video that can be read"),
        ("cut.mp4", CUT, 422, "cut.mp4: "),
        ("really-a-picture.mp4", jpeg(), 422, "really-a-picture.mp4: not a video"),
        ("text.mp4", b"just a few words that say nothing" * 9, 422, "text.mp4: the file holds text, not a video"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:/etc/passwd\n", 422, "list.mp4: the file"),
        ("join.mkv", b"ffconcat version 1.0\nfile '/etc/passwd'\n", 422, "join.mkv: the file holds text, not a video"),
        ("dash.webm", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:"></MPD>' * 9, 422, "dash.webm: the file"),
    ],
)  # fmt: skip
def test_what_is_no_video_is_told_by_the_senders_name(
    served: Served, temporary: Path, name: str, content: bytes, status: int, message: str
) -> None:
    answer = send(served.server, content, name)
    assert answer.status == status, answer.body
    assert answer.error.startswith(message)
    assert str(temporary) not in answer.error
    assert "adafocus-upload" not in answer.error
    assert list(temporary.iterdir()) == []


def test_a_file_that_lists_another_of_this_machine_is_not_followed(served: Served, temporary: Path) -> None:
    shutil.copy(FIGHT, temporary / "other.mp4")
    # What is not ASCII keeps it from looking like text.
    answer = send(served.server, "ffconcat version 1.0\n# é\nfile other.mp4\n".encode(), "list.mp4")
    assert answer.status == 422, answer.body
    assert answer.error.startswith("list.mp4: not a video")


def test_names_are_shown_in_one_line() -> None:
    assert file_name("C:\\clips\\a b.mp4") == "a b.mp4"
    assert file_name("/etc/\x00pass\r\nwd\u202e.mp4") == "passwd.mp4"
    assert file_name("x" * 300 + ".mp4").endswith("x....mp4")
    assert len(file_name("x" * 300 + ".mp4")) <= 120
    assert file_name("..") == ".."


def test_a_file_that_is_too_large_is_refused_while_it_comes(
    classifier: Classifier, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "DRAIN_S", 1.0)
    with quick(classifier, max_upload_mb=1) as server:
        content = bytes(range(256)) * 8000
        told = send(server, content, "long.mp4")
        assert (told.status, told.error) == (413, "long.mp4: larger than 1 MB, the maximum; send a shorter clip")
        untold = send(
            server, iter([content[start : start + 50_000] for start in range(0, len(content), 50_000)]), "long.mp4"
        )
        assert untold.status == 413
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
            head = "POST /api/classify?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"
            connection.sendall(head.encode())
            assert b"413" in connection.recv(100)
    assert list(temporary.iterdir()) == []


def half_upload(server: Server, name: str = "half.mp4") -> socket.socket:
    """Send the beginning of a file only."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST /api/classify?name={name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    connection.sendall(head.encode() + CUT)
    return connection


def test_two_files_at_a_time(served: Served, temporary: Path) -> None:
    with closing(half_upload(served.server)), closing(half_upload(served.server)):
        until(lambda: len(list(temporary.iterdir())) == 2)
        answer = send(served.server, SHORT.read_bytes(), "third.mp4")
        assert answer.status == 429
        assert answer.error == "third.mp4: 2 files are being classified already; try again later"
        assert answer.headers["retry-after"] == "5"
    until(lambda: list(temporary.iterdir()) == [])  # both senders are gone
    assert until(lambda: (a := send(served.server, SHORT.read_bytes(), "third.mp4")).status == 200 and a)


def test_a_sender_that_says_nothing_is_let_go(served: Served, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SILENCE_S", 0.2)
    with closing(half_upload(served.server)) as connection:
        assert b"408" in connection.recv(100)
    until(lambda: list(temporary.iterdir()) == [])


class WatchedRun(LiveRun):
    """A run that keeps the cancel event of the last clip."""

    def submit_clip(self, source: Source, cancel: threading.Event | None = None) -> Any:
        self.cancel = cancel
        return super().submit_clip(source, cancel)


def test_a_sender_that_is_gone_is_not_waited_for(classifier: Classifier, temporary: Path) -> None:
    run = new_run(classifier, kind=WatchedRun)  # stands still: nothing is ever classified
    with quick(classifier, run) as server:
        content = SHORT.read_bytes()
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
            head = (
                f"POST /api/classify?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            connection.sendall(head.encode() + content)
            until(lambda: hasattr(run, "cancel"))
        until(run.cancel.is_set)
        until(lambda: list(temporary.iterdir()) == [])


def test_no_room_beside_the_live_sources_is_told(classifier: Classifier, temporary: Path) -> None:
    run = LiveRun(classifier, [], LiveOptions(max_guests=0))
    with quick(classifier, run) as server:
        answer = send(server, SHORT.read_bytes(), "a.mp4")
        assert answer.status == 429
        assert "try again later" in answer.error
        assert ask(server, "POST", "/api/cameras").status == 429
    assert list(temporary.iterdir()) == []


# -- forms -------------------------------------------------------------------------------------------------------------


BOUNDARY = "----boundary 7"


def form(*parts: tuple[str, bytes], end: bytes = b"--\r\n", before: bytes = b"") -> bytes:
    """Encode a form of parts, each with the rest of its Content-Disposition after ``form-data;``."""
    whole = before
    for head, content in parts:
        whole += f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
    return whole + f"--{BOUNDARY}".encode() + end


def send_form(server: Server, body: Any, query: str = "", boundary: str = f'"{BOUNDARY}"') -> Answer:
    kind = f"multipart/form-data; boundary={boundary}"
    return ask(server, "POST", f"/api/classify{query}", body, Content_Type=kind)


FILE = 'name="file"; filename="{}"'


def test_a_file_in_a_form_is_classified_as_by_itself(served: Served, temporary: Path) -> None:
    content = SHORT.read_bytes()
    alone = send(served.server, content, "clip.mp4").json
    field = ('name="note"', b"from the gate")
    for body in (
        form((FILE.format("clip.mp4"), content)),
        form(field, (FILE.format("C:/clips/clip.mp4"), content), field),
        form((FILE.format("clip.mp4"), content), before=b"a preamble\r\n", end=b"--\r\nand an epilogue"),
    ):
        answer = send_form(served.server, body)
        assert answer.status == 200, answer.body
        assert (answer.json["source"], answer.json["label"]) == ("clip.mp4", alone["label"])
        assert answer.json["confidence"] == pytest.approx(alone["confidence"], abs=1e-3)
    assert send_form(served.server, form((FILE.format(""), content)), "?name=a.mp4").json["source"] == "a.mp4"
    assert send_form(served.server, form((FILE.format("Übung 1.mp4"), content))).json["source"] == "Übung 1.mp4"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_form_may_come_in_pieces_of_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of a boundary within the file belongs to the file."""
    content = b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n\r" + bytes(range(256)) * 2 + b"\r\n--\r\n-"
    body = form(('name="a"', b"1"), (FILE.format("x.mp4"), content), ('name="b"', b"2"))

    async def read() -> tuple[str, bytes]:
        async def coming() -> Any:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        found = FormFile(f'multipart/form-data; charset=utf-8; boundary="{BOUNDARY}"', coming())
        return await found.name(), b"".join([piece async for piece in found.content()])

    assert asyncio.run(read()) == ("x.mp4", content)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (form((FILE.format("a.mp4"), b"x"), (FILE.format("b.mp4"), b"y")), 400, "the form has more than one file"),
        (form(('name="file"', b"no file name")), 400, "the form has no file: send it as `curl -F file=@clip.mp4`"),
        (form(), 400, "the form has no file"),
        (form((FILE.format(""), b"x")), 400, "the file has no name"),
        (form((FILE.format("a.mp4"), b"x"), end=b""), 400, "the form is incomplete: its last boundary is missing"),
        (form((FILE.format("a.mp4"), SHORT.read_bytes()))[:-9], 400, "the form is incomplete"),
        (b"", 400, "the form is incomplete"),
        (b"no form at all", 400, "the form is incomplete"),
        (form((FILE.format("a.mp4"), b"")), 400, "a.mp4: the file is empty"),
        (form((FILE.format("a.txt"), b"x" * 200_000)), 415, "a.txt: not a video file name"),
        (form((FILE.format("a.mp4"), b"just words")), 422, "a.mp4: the file holds text, not a video"),
        (
            form(('name="a"', b"x" * 1_100_000), (FILE.format("a.mp4"), b"x")),
            413,
            "the form has more than 1 MB in addition to its file",
        ),
        (form(*[('name="a"', b"x")] * 40), 400, "the form has too many parts, or too long ones"),
        (
            form((FILE.format("a.mp4") + "\r\nContent-Transfer-Encoding: base64", b"eA==")),
            400,
            "the file has a Content-Transfer-Encoding",
        ),
        (b"--" + BOUNDARY.encode() + b"\r\nwithout a colon\r\n\r\nx", 400, "the form cannot be parsed"),
    ],
)
def test_a_form_that_cannot_be_taken_is_refused_in_one_line(
    served: Served, temporary: Path, body: bytes, status: int, message: str
) -> None:
    answer = send_form(served.server, body)
    assert answer.status == status, answer.body
    assert answer.error.startswith(message)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("boundary", ['""', "x" * 300, '"ü"'])
def test_a_form_without_a_boundary_is_refused(served: Served, boundary: str) -> None:
    answer = send_form(served.server, form((FILE.format("a.mp4"), b"x")), boundary=boundary)
    assert answer.status == 400
    assert answer.error.startswith("the form's Content-Type has no valid boundary")


def test_a_file_in_a_form_is_limited_as_one_by_itself(classifier: Classifier, temporary: Path) -> None:
    content = bytes(range(256)) * 8000
    with quick(classifier, max_upload_mb=1) as server:
        told = send_form(server, form((FILE.format("long.mp4"), content)))
        assert (told.status, told.error) == (413, "the file: larger than 1 MB, the maximum; send a shorter clip")
        little = send_form(server, form((FILE.format("long.mp4"), content[:1_000_001])))
        assert (little.status, little.error) == (413, "long.mp4: larger than 1 MB, the maximum; send a shorter clip")
        untold = send_form(server, iter([form((FILE.format("long.mp4"), content))]))
        assert (untold.status, untold.error) == (413, "long.mp4: larger than 1 MB, the maximum; send a shorter clip")
    assert list(temporary.iterdir()) == []


def test_curl_sends_a_file_in_a_form(served: Served, temporary: Path) -> None:
    need("curl")
    url = f"{served.server.url}api/classify"
    done = subprocess.run(
        ["curl", "-sS", "-F", f"file=@{SHORT}", url], capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert found["source"] == SHORT.name
    assert found["label"] in ("fight", "no_fight")
    many = ["curl", "-sS", "-F", f"a=@{SHORT}", "-F", f"b=@{CALM}", "-w", "%{http_code}", url]
    done = subprocess.run(many, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == '{"error":"the form has more than one file: send one at a time"}400'
    assert list(temporary.iterdir()) == []


# -- browser cameras ---------------------------------------------------------------------------------------------------


def clip_jpegs(path: Path, count: int) -> list[bytes]:
    from adafocus_edge.media.video_file import VideoFile

    made = []
    for index, rgb in VideoFile(str(path)).frames():
        written = io.BytesIO()
        Image.fromarray(rgb).save(written, "JPEG")
        made.append(written.getvalue())
        if index + 1 == count:
            break
    return made


def push(server: Server, camera: str, body: bytes, **headers: str) -> Answer:
    return ask(server, "POST", f"/api/cameras/{camera}/frame", body, **{"Content_Type": "image/jpeg", **headers})


def test_a_camera_becomes_a_source_with_results_and_ends(served: Served) -> None:
    opened = ask(served.server, "POST", "/api/cameras")
    assert opened.status == 201
    camera, name = opened.json["id"], opened.json["source"]
    frames = clip_jpegs(FIGHT, 40)
    for number in range(200):
        assert push(served.server, camera, frames[number % 40]).status == 204
        time.sleep(0.05)
        if served.run.latest(name) is not None and number > 10:
            break
    source = next(s for s in get(served.server, "/api/status").json["sources"] if s["name"] == name)
    assert (source["width"], source["height"], source["state"]) == (456, 256, "running")
    assert get(served.server, f"/api/streams/{quote(name)}/picture.jpg").status == 200
    assert ask(served.server, "DELETE", f"/api/cameras/{camera}").status == 204
    until(lambda: all(s["name"] != name for s in get(served.server, "/api/status").json["sources"]))
    assert push(served.server, camera, frames[0]).status == 404
    assert ask(served.server, "DELETE", f"/api/cameras/{camera}").error == "no such camera: it is already closed"


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"no picture", {}, 422, "the picture cannot be decoded as JPEG"),
        (jpeg()[:900], {}, 422, "the picture cannot be decoded as JPEG"),
        (b"", {}, 422, "the picture cannot be decoded as JPEG"),
        (jpeg(8, 8), {}, 422, "the picture has 8 x 8 pixels"),
        (jpeg(4000, 1000), {}, 422, "the picture has 4000 x 1000 pixels"),
        (jpeg(), {"Content_Type": "image/png"}, 415, "Content-Type must be image/jpeg"),
        (jpeg() + bytes(MAX_BYTES), {}, 413, "the picture is larger than 2 MB"),
    ],
)
def test_only_pictures_are_taken_from_a_camera(
    classifier: Classifier, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    with quick(classifier) as server:
        camera = ask(server, "POST", "/api/cameras").json["id"]
        answer = push(server, camera, body, **headers)
        assert (answer.status, answer.error.startswith(message)) == (status, True), answer.body
        assert push(server, camera, jpeg()).status == 204


def test_a_png_in_disguise_is_no_jpeg() -> None:
    written = io.BytesIO()
    Image.new("RGB", (64, 64)).save(written, "PNG")
    with pytest.raises(ValueError, match="cannot be decoded as JPEG"):
        check_jpeg(written.getvalue())


def scanned(times: int) -> bytes:
    """Make a JPEG with many additional scans of ten bytes each."""
    return jpeg(progressive=True)[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * times + b"\xff\xd9"


def test_a_picture_that_is_made_to_take_time_is_refused(tmp_path: Path) -> None:
    assert check_jpeg(scanned(10)) == (320, 240)
    with pytest.raises(ValueError, match="too many scans"):
        check_jpeg(scanned(200))
    (tmp_path / "frame.jpg").write_bytes(scanned(200))
    with pytest.raises(SourceError, match="scans"):
        read_image(tmp_path / "frame.jpg")


def test_a_camera_that_is_held_upright_is_seen_upright() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    content = jpeg(64, 32, exif=turned)
    assert check_jpeg(content) == (32, 64)
    assert decode_jpeg(content).shape == (64, 32, 3)


def test_a_picture_that_was_overtaken_is_left_out(classifier: Classifier) -> None:
    run = new_run(classifier)
    with quick(classifier, run) as server:
        opened = ask(server, "POST", "/api/cameras").json
        for number, shade in ((5, 10), (3, 250)):
            assert push(server, opened["id"], jpeg(shade=shade), X_Frame_Number=str(number)).status == 204
        newest = until(lambda: run.newest(opened["source"]))
        assert newest.to_rgb().mean() < 50


def test_silent_cameras_are_closed(classifier: Classifier) -> None:
    run = new_run(classifier)
    with running(run), quick(classifier, run, camera_idle_s=0.2) as server:
        camera = ask(server, "POST", "/api/cameras").json
        until(lambda: any(s.name == camera["source"] for s in run.status().sources))
        until(lambda: all(s.name != camera["source"] for s in run.status().sources))
        assert push(server, camera["id"], jpeg()).error == "no such camera: it was closed, or was idle for too long"


def test_cameras_have_a_limit(classifier: Classifier) -> None:
    with quick(classifier, max_cameras=1) as server:
        first = ask(server, "POST", "/api/cameras")
        refused = ask(server, "POST", "/api/cameras")
        assert (refused.status, refused.error) == (
            429,
            "1 browser cameras are open already, the maximum: close one first",
        )
        assert ask(server, "DELETE", f"/api/cameras/{first.json['id']}").status == 204
        assert ask(server, "POST", "/api/cameras").status == 201
    with quick(classifier, max_cameras=0) as server:
        assert ask(server, "POST", "/api/cameras").error == "browser cameras are disabled on this server"


# -- shutdown ----------------------------------------------------------------------------------------------------------


def open_files() -> set[str]:
    """Return open sockets, event loops and temporary files, but no videos, which another run opens and closes."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(entry.readlink())
            if "adafocus-upload" in target or not target.startswith(("/", "pipe:")):
                found.add(f"{entry.name if target.startswith('anon') else ''} {target}")
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_closing_ends_every_connection_thread_and_file(classifier: Classifier, temporary: Path) -> None:
    run = new_run(classifier, Source("a", str(FIGHT)))
    run._sources["a"].capture.newest = still_frame(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    gc.collect()
    threads, files = set(threading.enumerate()), open_files()
    server = Server(run, ServeOptions(port=0, picture_width=8192))
    with server:
        assert {number: signal.getsignal(number) for number in handlers} == handlers
        connections = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(4)]
        live, video, lazy, _ = connections
        live.sendall(b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        video.sendall(b"GET /api/streams/a/video.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in live.recv(20)
        assert b"200" in video.recv(20)
        connections.append(half_upload(server))
        camera = ask(server, "POST", "/api/cameras").json["source"]
        # One that asks for large pictures without reading any: what is to be sent piles up in the server.
        noise = np.random.default_rng(0).integers(0, 255, (3000, 4000, 3), np.uint8)
        run._sources["a"].capture.newest = replace(still_frame(2), to_rgb=lambda: noise)
        lazy.sendall(b"GET /api/streams/a/picture.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
        assert lazy.recv(1)
        until(lambda: list(temporary.iterdir()))
    assert server._thread is None
    until(
        lambda: (
            set(threading.enumerate()) - threads <= {t for t in threading.enumerate() if t.name.startswith("capture")}
        )
    )
    for connection in connections:
        connection.settimeout(10)
        with closing(connection), pytest.raises(ConnectionError):
            while connection.recv(1 << 20):
                pass
            raise ConnectionResetError  # an orderly end is as good
    assert list(temporary.iterdir()) == []
    run._sources[camera].capture.close()
    gc.collect()
    until(lambda: (gc.collect(), open_files() <= files)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    server.close()  # again


def test_the_listener_is_taken_from_the_run(classifier: Classifier) -> None:
    run = new_run(classifier)
    with quick(classifier, run):
        assert [listener.name for listener in run.status().listeners] == ["web page"]
    assert run.status().listeners == []


def test_a_server_that_cannot_start_says_so(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LiveRun, listener: Any) -> None:
        raise RuntimeError("no listeners today")

    from adafocus_edge.errors import AdaFocusError

    monkeypatch.setattr(LiveRun, "listen", refuse)
    with pytest.raises(AdaFocusError, match=r"did not start \(RuntimeError: no listeners today\)"):
        Server(new_run(classifier), ServeOptions(port=0)).__enter__()


# -- the page in a browser ---------------------------------------------------------------------------------------------


def has_colour(page: Any, selector: str, red: int, green: int, blue: int) -> bool:
    """Return whether a canvas has pixels of about this colour."""
    url = page.locator(selector).evaluate("canvas => canvas.toDataURL('image/png')")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        pixels = np.asarray(image.convert("RGBA")).astype(int)
    near = np.abs(pixels[..., :3] - (red, green, blue)).max(axis=-1) < 30
    return bool((near & (pixels[..., 3] > 200)).sum() > 50)


def test_the_page_shows_what_is_seen(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server) as page:
        page.wait_for_selector(card("entrance"))
        assert page.locator(".card").count() >= 2
        # The picture moves.
        wait_for(page, "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", card("entrance"))
        first = page.locator(f"{card('entrance')} .picture").evaluate("c => c.toDataURL()")
        wait_for(
            page, "([s, u]) => document.querySelector(s + ' .picture').toDataURL() !== u", [card("entrance"), first]
        )
        # The patch is drawn over it, where the server says.
        wait_for(page, "s => document.querySelector(s + ' .overlay')?.dataset.box", card("entrance"))
        box = [
            float(side) for side in page.locator(f"{card('entrance')} .overlay").get_attribute("data-box").split(",")
        ]
        assert all(-0.001 <= side <= 1.001 for side in box)
        until(lambda: has_colour(page, f"{card('entrance')} .overlay", 255, 176, 0))
        # Bars, verdict and counters.
        wait_for(page, "s => document.querySelectorAll(s + ' .bars li').length === 2", card("entrance"))
        labels = page.locator(f"{card('entrance')} .bars .class span").all_inner_texts()
        assert labels == ["fight", "no_fight"]
        assert page.locator(f"{card('entrance')} .verdict .label").inner_text() in labels
        before = page.locator(f"{card('entrance')} .bars").inner_text()
        wait_for(page, "([s, t]) => document.querySelector(s + ' .bars').innerText !== t", [card("entrance"), before])
        wait_for(
            page, "s => parseFloat(document.querySelector(s + ' [data-counter=p50]').innerText) > 0", card("entrance")
        )
        wait_for(
            page,
            "s => parseFloat(document.querySelector(s + ' [data-counter=fps_in]').innerText) > 0",
            card("entrance"),
        )
        assert page.locator(f"{card('entrance')} .badge").inner_text() == "Live"
        # What was seen before is there at once, and its end goes on.
        page.wait_for_selector("#results li")
        page.wait_for_selector("#events li[data-event]")
        count = page.locator("#results li").count()
        wait_for(page, "n => document.querySelectorAll('#results li').length > n", count)
        wait_for(page, "s => document.querySelector(s + ' .chart')?.ariaValueText?.includes('fight')", card("entrance"))
        assert "onnxruntime-cpu" in page.locator("#facts").inner_text()
        assert page.evaluate(NO_SIDEWAYS)


def test_names_are_text_and_nothing_else(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server) as page:
        wait_for(page, "() => document.querySelectorAll('.card .picture[data-frame]').length >= 2")
        assert ODD_NAME in page.locator(".card .name").all_inner_texts()
        assert page.locator(".card .name b, #results b, #events b").count() == 0


def test_the_theme_is_chosen_and_kept(browser: Browser, served: Served) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    with page_of(browser, served.server, color_scheme="dark") as page:
        dark = page.evaluate(ground)
        page.locator("#theme").get_by_text("Light", exact=True).click()
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == light
        assert page.locator("#theme input[value=light]").is_checked()
        page.locator("#theme").get_by_text("Auto", exact=True).click()
        assert page.evaluate(ground) == dark
        page.emulate_media(color_scheme="light")
        assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [320, 390, 768, 1100, 1920])
def test_it_fits_any_width(browser: Browser, served: Served, width: int) -> None:
    with page_of(browser, served.server, viewport={"width": width, "height": 844}) as page:
        page.wait_for_selector("#results li")
        wait_for(page, "s => document.querySelector(s + ' .bars li')", card("entrance"))
        assert page.evaluate(NO_SIDEWAYS)
        page.set_input_files("#file", str(SHORT))
        page.wait_for_selector(".upload .steps")
        assert page.evaluate(NO_SIDEWAYS)


def test_a_stream_is_enlarged_and_paused_by_keyboard(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server, reduced_motion="reduce") as page:
        wait_for(page, "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", card("entrance"))
        enlarge = page.locator(f"{card('entrance')} .enlarge")
        enlarge.focus()
        page.keyboard.press("Enter")
        assert "large" in page.locator(card("entrance")).get_attribute("class")
        assert enlarge.get_attribute("aria-pressed") == "true"
        wide = page.locator(card("entrance")).bounding_box()["width"]
        page.keyboard.press("Escape")
        assert "large" not in page.locator(card("entrance")).get_attribute("class")
        assert page.locator(card("entrance")).bounding_box()["width"] < wide
        page.locator(f"{card('entrance')} .stage").click()
        assert "large" in page.locator(card("entrance")).get_attribute("class")

        pause = page.locator(f"{card('entrance')} .pause")
        pause.focus()
        page.keyboard.press("Space")
        assert pause.get_attribute("aria-label") == "Resume the picture"
        assert page.locator(f"{card('entrance')} .note").inner_text() == "Picture paused"
        page.wait_for_timeout(300)  # a picture that was under way
        shown = page.locator(f"{card('entrance')} .picture").get_attribute("data-frame")
        page.wait_for_timeout(700)
        assert page.locator(f"{card('entrance')} .picture").get_attribute("data-frame") == shown
        page.keyboard.press("Space")
        wait_for(
            page, "([s, n]) => document.querySelector(s + ' .picture').dataset.frame !== n", [card("entrance"), shown]
        )


def test_every_control_has_a_name(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server) as page:
        page.wait_for_selector("#results li")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, [role=img], select, a')].filter((e) =>
                 !(e.ariaLabel || e.innerText.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
        )
        assert nameless == []
        for _ in range(3):
            page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement !== document.body")


def test_a_file_is_classified_in_the_page(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server) as page:
        page.wait_for_selector("#results li")
        page.set_input_files("#file", str(SHORT))
        page.wait_for_selector(".upload .steps")
        assert page.locator(".upload .name").inner_text() == "fi013.mp4"
        assert page.locator(".upload .verdict .label").inner_text() in ("fight", "no_fight")
        wait_for(page, "n => document.querySelectorAll('.upload .steps li').length === n", served.run.spec.segments)
        assert page.locator(".upload .bars li").count() == 2
        page.get_by_text("Close").click()
        assert page.locator(".upload").count() == 0


def test_a_file_that_is_none_is_told_in_the_page(browser: Browser, served: Served, tmp_path: Path) -> None:
    broken = tmp_path / "holiday <i>.mp4"
    broken.write_bytes(bytes(range(256)) * 40)
    with page_of(browser, served.server, expected=["422", "415"]) as page:
        page.wait_for_selector("#results li")
        page.set_input_files("#file", str(broken))
        page.wait_for_selector(".upload [role=alert]")
        assert page.locator(".upload .problem").inner_text().startswith("holiday <i>.mp4: not a video that can be read")
        other = tmp_path / "note.txt"
        other.write_text("hello")
        page.set_input_files("#file", str(other))
        wait_for(
            page, "() => document.querySelector('.upload .problem')?.innerText.startsWith('note.txt: not a video')"
        )


def test_a_file_is_dropped_anywhere(browser: Browser, served: Served) -> None:
    content = base64.b64encode(SHORT.read_bytes()).decode()
    with page_of(browser, served.server) as page:
        page.wait_for_selector("#results li")
        page.evaluate(
            """(content) => {
                 const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                 const data = new DataTransfer();
                 data.items.add(new File([bytes], 'dropped.mp4'));
                 for (const kind of ['dragenter', 'dragover', 'drop'])
                   document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true }));
               }""",
            content,
        )
        page.wait_for_selector(".upload .steps")
        assert page.locator(".upload .name").inner_text() == "dropped.mp4"


def test_the_browsers_camera_becomes_a_source(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server, permissions=["camera"]) as page:
        page.wait_for_selector("#results li")
        page.click("#camera")
        wait_for(page, "() => document.querySelector('#camera-note').innerText.startsWith('Streaming as')")
        name = page.locator("#camera-note").inner_text().split("“")[1].split("”")[0]
        wait_for(page, "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", card(name))
        wait_for(page, "s => document.querySelector(s + ' .bars li')", card(name))
        assert page.locator("#camera").inner_text() == "Stop the camera"
        # Until a whole window of it was seen.
        wait_for(page, "n => [...document.querySelectorAll('#results .where')].some((e) => e.innerText === n)", name)
        page.click("#camera")
        page.wait_for_selector(card(name), state="detached")
        assert page.locator("#camera").inner_text() == "Use this browser\u2019s camera"
    until(lambda: all(s.name != name for s in served.run.status().sources))


def test_a_camera_ends_with_its_page(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server, permissions=["camera"]) as page:
        page.wait_for_selector("#results li")
        page.click("#camera")
        wait_for(page, "() => document.querySelector('#camera-note').innerText.startsWith('Streaming as')")
        until(lambda: any(s.kind == "camera" for s in served.run.status().sources))
    until(lambda: all(s.kind != "camera" for s in served.run.status().sources))


def test_signing_in_and_out(browser: Browser, classifier: Classifier) -> None:
    run = new_run(classifier, Source("entrance", str(FIGHT)))
    with (
        running(run),
        quick(classifier, run, token=TOKEN) as server,
        page_of(browser, server, expected=["401"]) as page,
    ):
        assert page.url.endswith("/login")
        page.fill("#token", "guess")
        page.click("button[type=submit]")
        assert page.locator("[role=alert]").inner_text() == "Wrong token."
        page.fill("#token", TOKEN)
        page.click("button[type=submit]")
        wait_for(page, "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", card("entrance"))
        assert TOKEN not in str(page.context.cookies())
        assert page.evaluate("() => document.cookie") == ""
        assert "solo" in page.locator(card("entrance")).get_attribute("class")
        page.click("#sign-out button")
        page.wait_for_url("**/login")
        page.goto(server.url)
        assert page.url.endswith("/login")


def test_a_connection_that_is_lost_is_told_and_comes_back(browser: Browser, classifier: Classifier) -> None:
    run = new_run(classifier, Source("entrance", str(FIGHT)))
    port = free_port()
    with (
        running(run),
        Server(run, ServeOptions(port=port)) as first,
        page_of(browser, first, expected=["ERR_"]) as page,
    ):
        wait_for(page, "s => document.querySelector(s + ' .picture')?.dataset.frame > 0", card("entrance"))
        first.close()
        page.wait_for_selector("#banner:not([hidden])")
        assert "connection to the server is lost" in page.locator("#banner").inner_text()
        assert page.locator("#link").get_attribute("data-state") == "lost"
        with Server(run, ServeOptions(port=port)):
            page.wait_for_selector("#banner", state="hidden")
            shown = page.locator(f"{card('entrance')} .picture").get_attribute("data-frame")
            wait_for(
                page,
                "([s, n]) => document.querySelector(s + ' .picture').dataset.frame !== n",
                [card("entrance"), shown],
            )
            assert page.locator(".card").count() == 1


def test_a_source_that_is_lost_is_shown_with_its_text(browser: Browser, classifier: Classifier) -> None:
    run = LiveRun(
        classifier,
        [Source("gate", f"rtsp://127.0.0.1:{free_port()}/none", live=True)],
        LiveOptions(CaptureOptions(patient=True), max_guests=1),
    )
    with running(run), quick(classifier, run) as server, page_of(browser, server) as page:
        wait_for(page, "s => document.querySelector(s + ' .badge')?.innerText === 'Reconnecting'", card("gate"))
        assert "retrying in" in page.locator(f"{card('gate')} .trouble").inner_text()
        assert page.locator(f"{card('gate')} .note").inner_text() == "No picture yet"
        page.wait_for_selector("#events li.notice")


class _Late(Sink):
    """An output that blocks until ``go`` is set."""

    wants: ClassVar[tuple[type, ...]] = (LiveFrame,)
    unit = "frames"

    def __init__(self) -> None:
        self.go = threading.Event()
        super().__init__("videos", 2, print)

    def process(self, message: Any) -> None:
        self.go.wait()


def test_a_verdict_of_a_source_that_is_lost_is_faded_and_dated(browser: Browser, classifier: Classifier) -> None:
    with HttpStream("mjpeg", [(320, 180)]) as stream:
        sources = [Source("gate", stream.address, live=True), Source("entrance", str(FIGHT))]
        options = LiveOptions(CaptureOptions(4.0, realtime=True, loop=True, patient=True), max_guests=1)
        run = LiveRun(classifier, sources, options)
        with running(run), quick(classifier, run) as server, page_of(browser, server) as page:
            gate, shown = card("gate"), "s => getComputedStyle(document.querySelector(s + ' .verdict .label')).opacity"
            standing = f"{gate} .verdict .standing"
            wait_for(page, "s => ['settled', 'forming'].includes(document.querySelector(s)?.innerText)", standing)
            assert page.evaluate(shown, gate) == "1"
            stream.kill()
            wait_for(page, "s => document.querySelector(s).classList.contains('stale')", gate)
            until(lambda: float(page.evaluate(shown, gate)) < 0.5)
            wait_for(
                page,
                r"s => /^as of \d\d:\d\d:\d\d, \d+(\.\d)? s ago$/.test(document.querySelector(s).innerText)",
                standing,
            )
            picture = page.locator(f"{gate} .picture")
            until(lambda: "as of" in picture.get_attribute("aria-label"))  # not while a frame that waited is seen late
            until(lambda: has_colour(page, f"{gate} .overlay", 169, 177, 186))
            until(lambda: page.evaluate(shown, card("entrance")) == "1")
            until(lambda: [one["stale"] for one in get(server, "/api/status").json["sources"]] == [True, False])
            stream.restart()
            wait_for(page, "s => !document.querySelector(s).classList.contains('stale')", gate)
            until(lambda: page.evaluate(shown, gate) == "1")  # it fades in


def test_what_an_output_drops_is_on_the_page(browser: Browser, classifier: Classifier) -> None:
    run, late = new_run(classifier, Source("entrance", str(FIGHT))), _Late()
    run.listen(late)
    try:
        with running(run), quick(classifier, run) as server, page_of(browser, server) as page:
            wait_for(
                page, "() => / dropped and counting$/.test(document.querySelector('#outputs .alert .what')?.innerText)"
            )
            assert page.locator("#outputs .where").all_inner_texts() == ["videos"]
            page.wait_for_selector("#events li.notice:has-text('frames are dropped')")
            (told,) = [n for n in get(server, "/api/events").json["notices"] if n["notice"] == "dropping"]
            assert (told["source"], told["text"].partition(": ")[0]) == ("videos", "videos")
    finally:
        late.go.set()
        late.close()


def test_a_page_that_stays_open_keeps_no_more_events_than_it_shows(browser: Browser, served: Served) -> None:
    with page_of(browser, served.server) as page:
        kept, shown = page.evaluate(
            """async () => {
                const { Events } = await import("/page/lists.js");
                const list = document.body.appendChild(document.createElement("ol"));
                const events = new Events(list, { labels: [] });
                const entry = { label: "fight", source: "gate", event: "start", start_wall_s: 0 };
                for (let id = 0; id < 300; id++) events.event({ ...entry, id });
                return [events.rows.size, list.children.length];
            }"""
        )
    assert kept == shown == 100


def test_notices_of_each_kind_are_told(served: Served) -> None:
    text = f"{ODD_NAME}: something"
    for listener in served.run._listeners:
        if listener.name == "web page":
            listener.enqueue(Notice(ODD_NAME, "changed", text, time.time()))
    until(lambda: any(n["notice"] == "changed" for n in get(served.server, "/api/events").json["notices"]))

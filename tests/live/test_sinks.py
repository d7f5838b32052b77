"""Where live results go: a file that grows and rotates, snapshots, a webhook and a broker that fail and come back."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import AdaFocusError, MissingExtraError, UsageError
from adafocus_edge.live.sinks import results_file as sinks
from adafocus_edge.live.sinks.mqtt import Discovery, Mqtt, active_topic
from adafocus_edge.live.sinks.results_file import LIVE_CSV_COLUMNS, ResultsFile
from adafocus_edge.live.sinks.snapshots import Snapshots
from adafocus_edge.live.sinks.webhook import Webhook
from adafocus_edge.runtime.classifier import Guess
from tests.support.live_parts import SPEC, event, live_frame, look, notice, until, window

ROOT = Path(__file__).parents[2]
SECRETS = ("hunter2", "anna", "t0ken", "hook-id")


@pytest.fixture
def told():
    return []


@pytest.fixture
def sink(told):
    """Makes listeners that are closed after the test."""
    made = []

    def make(kind, *arguments, **options):
        made.append(kind(*arguments, told.append, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Files


def test_json_lines_are_appended_and_flushed(sink, tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    first = sink(ResultsFile, path)
    for message in (window(), event(), notice("failed"), look(live_frame()), live_frame()):
        first.enqueue(message)
    until(lambda: first.handled == 3)
    assert [line.get("event") or line.get("notice") or "window" for line in lines(path)] == [
        "window",
        "start",
        "failed",
    ]
    first.close()
    second = sink(ResultsFile, path, provisional=True, logits=True)
    second.enqueue(window())
    second.enqueue(look(live_frame()))
    second.close()
    found = lines(path)
    assert len(found) == 5
    assert "logits" not in found[0]["steps"][0]
    assert found[2]["error"] == "the camera is gone"
    assert found[3]["steps"][0]["logits"] == [0, 1, 2, 3]
    assert found[4]["provisional"]


def test_a_csv_has_one_header(sink, tmp_path):
    path = tmp_path / "results.CSV"
    for _ in range(2):
        listener = sink(ResultsFile, path, provisional=True)
        smoothed = replace(window(), smoothed=(Guess("mean", 7, 0.625),))
        told = (
            window(label='one, "two"'),
            event("end"),
            notice("failed"),
            notice("lost"),
            look(live_frame()),
            smoothed,
        )
        for message in told:
            listener.enqueue(message)
        listener.close()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert tuple(rows[0]) == LIVE_CSV_COLUMNS
    seen, ended, failed, lost, provisional, smoothed = rows[6:]
    assert [smoothed[name] for name in ("label", "smoothed_label", "smoothed_confidence")] == [
        "juggling",
        "mean",
        "0.625",
    ]
    assert seen["smoothed_label"] == ""
    assert (seen["label"], seen["event"], seen["backend"], seen["cut"]) == (
        'one, "two"',
        "",
        "onnxruntime-cpu",
        "False",
    )
    assert seen["at"] == "2023-11-14T22:13:20.000Z"
    assert (ended["event"], ended["confidence"], ended["start_s"], ended["end_s"]) == ("end", "0.9", "1.0", "4.0")
    assert (failed["event"], failed["error"]) == ("failed", "the camera is gone")
    assert (lost["event"], lost["error"], lost["text"]) == ("lost", "", "the camera is gone")
    assert (provisional["event"], provisional["latency_ms"], provisional["confidence"]) == (
        "provisional",
        "41.5",
        "0.75",
    )


def test_a_csv_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("source,label\na,b\n")
    with pytest.raises(UsageError, match=r"results\.csv: is a CSV with other columns"):
        ResultsFile(path, print)
    assert path.read_text() == "source,label\na,b\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_files_rotate_and_the_newest_stay(sink, tmp_path, name):
    listener = sink(ResultsFile, tmp_path / name, rotate_mb=0.002, keep=3)
    for number in range(1, 101):
        listener.enqueue(event(number=number))
    listener.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.1", f"{name}.2", f"{name}.3"]
    ids = []
    for part in (f"{name}.3", f"{name}.2", f"{name}.1", name):
        path = tmp_path / part
        assert path.stat().st_size <= 2000
        if name.endswith("csv"):
            with path.open(newline="") as file:
                ids += [row["at"] for row in csv.DictReader(file)]
        else:
            ids += [line["at"] for line in lines(path)]
    assert len(ids) > 15
    assert ids == sorted(ids), "nothing is lost in between"
    assert ids[-1] == event(number=100).to_json()["at"]


def test_a_line_torn_by_a_crash_stays_alone(sink, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"source": "a", "lab')
    listener = sink(ResultsFile, path)
    listener.enqueue(event())
    listener.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"source": "a", "lab'
    assert json.loads(whole)["event"] == "start"


def test_a_file_that_was_moved_away_is_begun_anew(sink, tmp_path):
    path = tmp_path / "a.csv"
    listener = sink(ResultsFile, path)
    listener.enqueue(event(number=1))
    until(lambda: listener.handled == 1)
    path.rename(tmp_path / "a.old")
    listener.enqueue(event(number=2))
    listener.close()
    assert [len(part.read_text().splitlines()) for part in (path, tmp_path / "a.old")] == [2, 2]


def test_a_link_stays_and_what_it_leads_to_rotates(sink, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real" / "a.jsonl")
    listener = sink(ResultsFile, tmp_path / "link.jsonl", rotate_mb=0.001, keep=1)
    for number in range(20):
        listener.enqueue(event(number=number))
    listener.close()
    assert (tmp_path / "link.jsonl").is_symlink()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["a.jsonl", "a.jsonl.1"]


def test_a_pipe_without_a_reader_holds_nobody_up(sink, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    listener = sink(ResultsFile, path, waiting=10)
    for number in range(30):
        listener.enqueue(event(number=number))
    assert listener.dropped >= 19
    with path.open("rb", buffering=0) as reader:
        until(lambda: not listener.waiting)
        listener.close()
        found = reader.read(100_000)
    assert 10 <= len(found.splitlines()) <= 11


FULL = """
import resource, sys, time
from pathlib import Path
from adafocus_edge.live.sinks import results_file as sinks
from tests.support.live_parts import event, until, window
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
sinks.RETRY_S = 0.05
told = []
listener = sinks.ResultsFile(Path(sys.argv[1]), told.append)
for number in range(100):
    listener.enqueue(event(number=number))
until(lambda: told)
time.sleep(0.3)
assert len(told) == 1, told
print(told[0])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
until(lambda: listener.handled == 100)
listener.close()
assert not listener.dropped and not listener.failed
"""


def test_lines_wait_until_a_full_disk_has_room_again(tmp_path):
    path = tmp_path / "a.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout == f"{path}: cannot be written (File too large): retrying every 0.05 s\n"
    assert [line["id"] for line in lines(path)] == list(range(100))


def test_a_run_that_ends_does_not_wait_for_a_full_disk(tmp_path, told):
    listener = ResultsFile(tmp_path / "a" / "b.jsonl", told.append)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").touch()
    for number in range(5):
        listener.enqueue(event(number=number))
    until(lambda: told)
    listener.close()
    assert not listener._thread.is_alive()
    assert listener.dropped == 5


def test_files_that_cannot_be_are_refused(tmp_path):
    for options, text in (
        ({"path": tmp_path}, "is a folder, not a file"),
        ({"rotate_mb": 0}, "rotate_mb must be more than 0 megabytes, not 0"),
        ({"keep": 0}, "keep must be at least 1 older file, not 0"),
    ):
        with pytest.raises(UsageError, match=text):
            ResultsFile(**{"path": tmp_path / "a", "report": print, **options})
    with pytest.raises(AdaFocusError, match="/proc/a: cannot be written"):
        ResultsFile(Path("/proc/a"), print)


# Snapshots


def test_an_events_start_is_saved_with_its_patch(sink, tmp_path):
    listener = sink(Snapshots, tmp_path, SPEC)
    listener.enqueue(event(label="fight / brawl", source="rtsp://***@10.0.0.1/a"))
    listener.enqueue(event("end"))
    listener.close()
    (path,) = tmp_path.iterdir()
    assert path.name == "rtsp_10.0.0.1_a-20231114-221321-fight_brawl.jpg"
    with Image.open(path) as image:
        assert image.size == (640, 480)
        seen = np.asarray(image).astype(int)
    assert np.abs(seen - (255, 176, 0)).sum(axis=2).min() < 60


def test_the_newest_snapshots_stay(sink, tmp_path):
    (tmp_path / "mine.jpg").touch()
    listener = sink(Snapshots, tmp_path, SPEC, keep=3, waiting=100)
    for number in range(8):
        listener.enqueue(event(number=number, wall_s=1.7e9 + number // 2))
    listener.close(30)
    assert listener.failed == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "camera_0-20231114-221322-juggling-2.jpg",
        "camera_0-20231114-221323-juggling-2.jpg",
        "camera_0-20231114-221323-juggling.jpg",
        "mine.jpg",
    ]


def test_no_run_replaces_the_snapshots_of_another(sink, tmp_path):
    """A clock that is set back, or begins at the same time at each start, repeats the names."""
    for _ in range(4):
        listener = sink(Snapshots, tmp_path, SPEC)
        listener.enqueue(event())
        listener.close(30)
    base = "camera_0-20231114-221321-juggling"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{base}-2.jpg", f"{base}-3.jpg", f"{base}-4.jpg", f"{base}.jpg",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_told_once(sink, told, tmp_path):
    folder = tmp_path / "a"
    listener = sink(Snapshots, folder, SPEC)
    folder.rmdir()
    folder.touch()
    for number in range(5):
        listener.enqueue(event(number=number))
    until(lambda: listener.handled == 5)
    assert len(told) == 1
    assert listener.failed == listener.dropped == 5
    folder.unlink()
    listener.enqueue(event(number=9))
    listener.close()
    assert len(list(folder.iterdir())) == 1
    for options, text in (
        ({"keep": 0}, "keep must be at least 1 snapshot, not 0"),
        ({"quality": 0}, "quality of a JPEG must be 1 to 95, not 0"),
    ):
        with pytest.raises(UsageError, match=text):
            Snapshots(tmp_path, SPEC, print, **options)


# Webhook


class Hook:
    """A server on this machine that answers as a test tells it to: a status, ``hang`` or ``cut``."""

    def __init__(self, answers: list, port: int = 0) -> None:
        self.answers = answers
        self.got: list[tuple[str, dict, dict]] = []
        hook = self
        self.go = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = hook.answers.pop(0) if hook.answers else 200
                if answer == "hang":
                    hook.go.wait(30)
                    return
                if answer == "cut":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                hook.got.append((self.path, dict(self.headers), body | {"answer": answer}))
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def end(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextmanager
def hooked(*answers, port: int = 0):
    hook = Hook(list(answers), port)
    try:
        yield hook
    finally:
        hook.end()


def test_events_are_posted_with_their_headers(sink, told):
    with hooked() as hook:
        url = f"http://anna:hun%40ter2@127.0.0.1:{hook.port}/hook-id/é?key=t0ken"
        plain = sink(Webhook, url)
        more = sink(Webhook, f"http://127.0.0.1:{hook.port}", windows=True, headers=["Authorization: Bearer t0ken"])
        for message in (event(), window(), event("end"), notice(), live_frame()):
            plain.enqueue(message)
            more.enqueue(message)
        plain.close()
        more.close()
    assert told == []
    mine = [entry for entry in hook.got if entry[0] != "/"]
    assert [(path, body["event"]) for path, _, body in mine] == [
        ("/hook-id/%C3%A9?key=t0ken", at) for at in ("start", "end")
    ]
    assert mine[0][1]["Authorization"] == "Basic YW5uYTpodW5AdGVyMg=="
    assert mine[0][1]["Content-Type"] == "application/json; charset=utf-8"
    others = [entry for entry in hook.got if entry[0] == "/"]
    assert [body.get("event") or body["label"] for _, _, body in others] == ["start", "juggling", "end"]
    assert others[0][1]["Authorization"] == "Bearer t0ken"
    assert plain.name == f"http://***@127.0.0.1:{hook.port}/..."


@pytest.mark.parametrize("trouble", [503, 408, 429, "cut", "hang"])
def test_what_fails_for_now_is_tried_again(sink, told, trouble):
    with hooked(trouble) as hook:
        listener = sink(Webhook, f"http://127.0.0.1:{hook.port}/hook-id", timeout_s=0.5)
        listener.enqueue(event(number=1))
        listener.enqueue(event(number=2))
        until(lambda: listener.handled == 2)
    assert [body["id"] for _, _, body in hook.got if body["answer"] == 200] == [1, 2]
    assert listener.failed == listener.dropped == 0
    assert len(told) == 1
    assert told[0].endswith(": retried until it is accepted")


@pytest.mark.parametrize("refusal", [400, 401, 404, 301, 307])
def test_what_is_refused_is_given_up_and_counted(sink, told, refusal):
    with hooked(refusal, refusal) as hook:
        listener = sink(Webhook, f"http://127.0.0.1:{hook.port}/hook-id?key=t0ken")
        for number in (1, 2, 3):
            listener.enqueue(event(number=number))
        listener.close()
    assert [body["answer"] for _, _, body in hook.got] == [refusal, refusal, 200]
    assert listener.failed == 2
    assert len(told) == 1
    assert f"refused with HTTP {refusal}" in told[0]
    assert not any(secret in told[0] for secret in SECRETS)


def test_a_server_that_dies_and_comes_back_gets_everything(sink, told):
    with hooked() as hook:
        listener = sink(Webhook, f"http://anna:hunter2@127.0.0.1:{hook.port}/hook-id?key=t0ken", waiting=5)
        listener.enqueue(event(number=1))
        until(lambda: listener.handled == 1)
    for number in range(2, 12):
        listener.enqueue(event(number=number))
    until(lambda: told)
    assert listener.dropped >= 4
    with hooked(port=hook.port) as back:
        until(lambda: listener.handled + listener.dropped == 11)
    ids = [body["id"] for _, _, body in back.got]
    assert ids[:5] == [2, 3, 4, 5, 6]
    assert told == [
        f"http://***@127.0.0.1:{hook.port}/...: cannot be reached (Connection refused): retried until it is accepted"
    ]


def test_the_end_does_not_wait_for_a_dead_server(told):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listener = Webhook(f"http://127.0.0.1:{free.getsockname()[1]}/", told.append)
        for number in range(20):
            listener.enqueue(event(number=number))
        until(lambda: told)
        listener.close(30)
    assert not listener._thread.is_alive()
    assert listener.dropped == 20


def test_an_address_that_cannot_be_is_refused_without_repeating_it():
    for url in (
        "ftp://anna:hunter2@host/hook-id",
        "hook-id?key=t0ken",
        "http://?key=t0ken",
        "http://anna:hunter2@host:port/hook-id",
        "http://anna:hunter2@host:99999/hook-id",
        "http://anna:hunter2@host/hook-id now",
        "http://[::1/hook-id",
        "http://a..b/hook-id",
        "http://host/hook-id\nX: y",
        "file:///etc/passwd",
        "",
    ):
        with pytest.raises(UsageError) as caught:
            Webhook(url, print)
        assert not any(secret in str(caught.value) for secret in SECRETS)
        assert "\n" not in str(caught.value)
    for header in ("t0ken", "Authorization t0ken", "A: t0ken\nB: t0ken", "A: t0ken\u20ac", ": t0ken", "A B: t0ken"):
        with pytest.raises(UsageError) as caught:
            Webhook("http://host/", print, headers=["A: b", header])
        assert "header 2" in str(caught.value)
        assert "t0ken" not in str(caught.value)


# MQTT

MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="needs the broker mosquitto: apt-get install mosquitto")


class Broker:
    """A real broker on this machine that can be killed and started again on the same port."""

    def __init__(self, folder: Path, *settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        self.config.write_text("\n".join([f"listener {self.port} 127.0.0.1", *settings]) + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        self.process = subprocess.Popen([MOSQUITTO, "-c", self.config], stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def broker(tmp_path):
    made = Broker(tmp_path, "allow_anonymous true")
    yield made
    made.kill()


class Subscriber:
    """Collects all messages of a broker."""

    def __init__(self, port: int, **options) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.got: list[tuple[str, str, bool]] = []
        session = options.get("session", "")
        self.client = Client(CallbackAPIVersion.VERSION2, session, clean_session=not session)
        if "login" in options:
            self.client.username_pw_set(*options["login"])
        if "ca" in options:
            self.client.tls_set(options["ca"])
        ready = threading.Event()
        self.client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_message = lambda _, __, m: self.got.append((m.topic, m.payload.decode(), m.retain))
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("localhost", port)
        self.client.loop_start()
        assert ready.wait(30)

    def topics(self) -> list[str]:
        return [topic for topic, _, _ in self.got]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()


@needs_broker
def test_topics_and_what_is_retained(broker, sink, told):
    with Subscriber(broker.port) as early:
        listener = sink(Mqtt, f"mqtt://127.0.0.1:{broker.port}/site/gate/")
        until(lambda: early.got)
        for message in (notice("connected", "a/b+#"), window("a/b+#"), event("start", 7, "a/b+#"), live_frame()):
            listener.enqueue(message)
        until(lambda: len(early.got) == 4)
        with Subscriber(broker.port) as late:
            until(lambda: len(late.got) == 2)
            assert sorted(late.topics()) == ["site/gate/a_b/status", "site/gate/online"]
            listener.close()
            until(lambda: ("site/gate/online", "0", False) in late.got)
        found = {topic: (payload, retained) for topic, payload, retained in early.got[:4]}
    assert found["site/gate/online"] == ("1", False)
    assert json.loads(found["site/gate/a_b/event"][0])["id"] == 7
    assert json.loads(found["site/gate/a_b/window"][0])["label"] == "juggling"
    assert json.loads(found["site/gate/a_b/status"][0])["notice"] == "connected"
    assert told == []
    assert listener.failed == listener.dropped == 0


@needs_broker
def test_home_assistant_finds_a_sensor_that_is_on_while_an_event_lasts(broker, sink, told):
    discovery = Discovery("homeassistant", ("juggling", "fall down"))
    listener = sink(Mqtt, f"mqtt://127.0.0.1:{broker.port}/site", discovery=discovery)
    active, falling = "site/gate_1/active/juggling", active_topic("site/gate_1", "fall down")
    with Subscriber(broker.port) as early:
        listener.enqueue(notice("connected", "gate 1"))
        listener.enqueue(event("start", 7, "gate 1"))
        until(lambda: (active, "ON", False) in early.got)
        with Subscriber(broker.port) as late:  # as Home Assistant after a restart
            until(lambda: len(late.got) == 7)
            kept = {topic: payload for topic, payload, retained in late.got if retained}
        listener.enqueue(event("end", 7, "gate 1"))
        until(lambda: (active, "OFF", False) in early.got[early.got.index((active, "ON", False)) :])
    configs = {topic: json.loads(payload) for topic, payload in kept.items() if topic.startswith("homeassistant/")}
    assert len(configs) == 2
    for topic in configs:
        assert re.fullmatch(r"homeassistant/binary_sensor/[a-zA-Z0-9_-]+/config", topic), topic
    (found,) = (one for one in configs.values() if one["name"] == "juggling")
    assert found["state_topic"] == active
    assert kept[active] == "ON"
    assert json.loads(kept[found["json_attributes_topic"]])["id"] == 7
    assert kept[falling] == "OFF"
    assert {one["topic"] for one in found["availability"]} == {"site/online", "site/gate_1/status"}
    assert found["device"]["name"] == "gate 1"
    assert told == []
    # Names that differ only in what a topic cannot hold stay apart, and so do rules of one label.
    sensors = {
        discovery.sensor("b", *pair, "x")[0] for pair in (("a-1", "l"), ("a_1", "l"), ("a-1", "ü"), ("a-1", "ö"))
    }
    assert len(sensors) == 4
    with Subscriber(broker.port) as early:
        for kind, number in (("start", 8), ("start", 9), ("end", 8)):
            listener.enqueue(event(kind, number, "gate 1"))
        until(lambda: sum(topic == f"{active}/event" and not kept for topic, _, kept in early.got) == 3)
        assert [body for topic, body, kept in early.got if topic == active and not kept][-1:] == ["ON"]
        listener.enqueue(event("end", 9, "gate 1"))
        until(lambda: [body for topic, body, kept in early.got if topic == active and not kept][-1:] == ["OFF"])
    for given, words in ((("home/+", ("a",)), "must be an MQTT topic"), (("homeassistant", ()), "needs --event")):
        with pytest.raises(UsageError, match=words):
            Discovery(*given)


@needs_broker
def test_a_broker_that_is_killed_and_comes_back_gets_the_events(broker, sink, told):
    listener = sink(Mqtt, f"mqtt://127.0.0.1:{broker.port}")
    with Subscriber(broker.port) as subscriber:
        listener.enqueue(notice("connected"))
        listener.enqueue(event(number=1))
        until(lambda: "adafocus/camera_0/event" in subscriber.topics())
    broker.kill()
    until(lambda: told)
    for number in range(2, 12):
        listener.enqueue(event(number=number))
        listener.enqueue(window())
    listener.enqueue(notice("lost"))
    until(lambda: listener.handled == 23)
    assert listener.dropped == 10, "windows are not kept"
    broker.start()
    with Subscriber(broker.port) as subscriber:
        until(lambda: {"adafocus/online", "adafocus/camera_0/status"} <= set(subscriber.topics()))
        listener.enqueue(event(number=12))
        until(lambda: any('"id": 12' in payload for _, payload, _ in subscriber.got))
    status = [payload for topic, payload, _ in subscriber.got if topic.endswith("status")]
    assert json.loads(status[-1])["notice"] == "lost"
    assert told[0] == f"mqtt://127.0.0.1:{broker.port}: the connection to the broker is lost: retrying"


@needs_broker
def test_a_full_queue_loses_neither_its_events_nor_the_state(tmp_path, sink, told):
    """The broker keeps the subscriber's session: that misses no event, in whatever order the two come back."""
    store = tmp_path / "kept"
    store.mkdir()
    broker = Broker(tmp_path, "allow_anonymous true", "persistence true", f"persistence_location {store}/", "user root")
    try:
        with Subscriber(broker.port, session="reader"):
            pass
        broker.process.terminate()  # it writes its sessions down
        broker.process.wait()
        listener = sink(Mqtt, f"mqtt://127.0.0.1:{broker.port}", waiting=20)
        until(lambda: told)
        for number in range(40):
            listener.enqueue(event(number=number))
            until(lambda: not listener.waiting)
        listener.enqueue(notice())
        until(lambda: listener.handled == 41)
        assert listener.dropped == 20
        broker.start()
        until(listener._client.is_connected)
        with Subscriber(broker.port, session="reader") as reader:
            until(lambda: reader.topics().count("adafocus/camera_0/event") >= 20)
            until(lambda: {"adafocus/online", "adafocus/camera_0/status"} <= set(reader.topics()))
        listener.close()
    finally:
        broker.kill()
    events = [json.loads(payload)["id"] for topic, payload, _ in reader.got if topic.endswith("event")]
    assert events == list(range(20))


@needs_broker
def test_a_run_that_is_killed_goes_offline(broker):
    script = (
        "import sys, time; from adafocus_edge.live.sinks.mqtt import Discovery, Mqtt, active_topic\n"
        f"Mqtt('mqtt://127.0.0.1:{broker.port}/x', print); time.sleep(600)"
    )
    with Subscriber(broker.port) as subscriber:
        with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as process:
            until(lambda: ("x/online", "1", False) in subscriber.got)
            process.kill()
        until(lambda: ("x/online", "0", False) in subscriber.got)


@needs_broker
def test_a_broker_that_hangs_holds_nobody_up(broker, told):
    import signal

    listener = Mqtt(f"mqtt://127.0.0.1:{broker.port}", told.append, waiting=20)
    until(listener._client.is_connected)
    broker.process.send_signal(signal.SIGSTOP)
    for number in range(200):
        listener.enqueue(event(number=number))
        until(lambda: not listener.waiting)
    until(lambda: listener.handled == 200)
    assert listener.dropped > 100
    listener.close(10)
    assert not listener._thread.is_alive()
    broker.process.send_signal(signal.SIGCONT)


# paho-mqtt leaves the socket of a handshake that failed to Python's garbage collection, which closes it at once.
@needs_broker
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_login_and_tls(tmp_path, sink, told):
    if shutil.which("openssl") is None:
        pytest.skip("needs a certificate: apt-get install openssl")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")  # fmt: skip
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "anna", "hunter2:@/"], check=True, capture_output=True)
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    broker = Broker(
        tmp_path,
        "user root",
        f"password_file {passwords}",
        f"certfile {tmp_path}/cert.pem",
        f"keyfile {tmp_path}/key.pem",
    )
    try:
        with Subscriber(broker.port, login=("anna", "hunter2:@/"), ca=str(tmp_path / "cert.pem")) as subscriber:
            place = f"localhost:{broker.port}"
            good = sink(Mqtt, f"mqtts://anna:hunter2%3A%40%2F@{place}/good", ca_file=tmp_path / "cert.pem")
            until(lambda: subscriber.got == [("good/online", "1", False)])
            assert good.name == f"mqtts://***@{place}"
            wrong = sink(Mqtt, f"mqtts://anna:hunter3@{place}/wrong", ca_file=tmp_path / "cert.pem")
            until(lambda: told)
            assert told == [f"mqtts://***@{place}: the broker refuses the connection (not authorized): retrying"]
            wrong.close()
            untrusted = sink(Mqtt, f"mqtts://anna:hunter2%3A%40%2F@{place}/untrusted")
            until(lambda: len(told) > 1)
            assert "cannot be reached" in told[1]
            untrusted.close(10)
            good.close()
            assert subscriber.topics().count("good/online") >= 1
    finally:
        broker.kill()


def test_brokers_that_cannot_be_are_refused_without_repeating_them(tmp_path, monkeypatch):
    for address in (
        "http://anna:hunter2@host", "mqtt://anna:hunter2@", "mqtt://anna:hunter2@host:x", "mqtt://host/a/#",
        "mqtt://host/a/+/b", "mqtt://host/a?t0ken", "mqtt://host/$SYS", "mqtt://host/" + "a" * 2000, "host:1883",
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            Mqtt(address, print)
        assert not any(secret in str(caught.value) for secret in SECRETS)
    with pytest.raises(UsageError, match="mqtts://"):
        Mqtt("mqtt://host", print, ca_file=tmp_path / "ca.pem")
    with pytest.raises(AdaFocusError, match=r"ca\.pem: cannot be read as certificates to trust"):
        Mqtt("mqtts://host", print, ca_file=tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text("not one")
    with pytest.raises(AdaFocusError, match=r"ca\.pem: cannot be read as certificates to trust"):
        Mqtt("mqtts://host", print, ca_file=tmp_path / "ca.pem")
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingExtraError, match=r"paho-mqtt.*adafocus-edge\[mqtt\]"):
        Mqtt("mqtt://host", print)


def test_trouble_that_comes_and_goes_is_told_once(told):
    from adafocus_edge.system.retention import FailureReporter

    outage = FailureReporter("x", told.append, settled_s=0.2)
    for _ in range(5):
        outage.failed("full")
        outage.worked()
    assert told == ["x: full"]
    time.sleep(0.2)
    outage.worked()
    outage.worked()
    assert told == ["x: full", "x: works again"]
    assert not outage.lasts
    outage.failed("full")
    assert len(told) == 3


def test_importing_is_light():
    script = (
        "import sys, adafocus_edge; print([m for m in ('paho', 'pygame', 'pynvml', 'av', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert sinks.RETRY_S > 1

"""A live run behind a real server, as the tests of the page and its API share it, and requests to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from adafocus_edge.live.events import EventRule
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve import ServeOptions, Server
from tests.conftest import CLIPS, ROOT

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi072.mp4"
CALM = ROOT / "tests" / "fights" / "no_fight" / "nofi018.mp4"
SHORT = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
WIDE = CLIPS / "people_1080p.mp4"
TOKEN = "a-token-that-nobody-guesses"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ODD_NAME = "yard / gate 2 <b>?#%&"
"""A source's name that does harm unless it is escaped in addresses and in the page."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        told = self.json
        assert list(told) == ["error"], told
        assert "\n" not in told["error"]
        assert "Traceback" not in told["error"]
        return str(told["error"])


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """Send one request; underscores in names of headers become dashes."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked=not isinstance(body, (bytes, str, type(None))))
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def get(server: Server, path: str, **headers: str) -> Answer:
    return ask(server, "GET", path, **headers)


def until(met: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Wait until a condition is met; return its value."""
    deadline = time.monotonic() + within_s
    while not (found := met()):
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.02)
    return found


def new_run(classifier: Classifier, *sources: Source, kind: type[LiveRun] = LiveRun, **more: Any) -> LiveRun:
    capture = CaptureOptions(glimpse_fps=more.get("glimpse_fps", 4.0), realtime=True, loop=more.get("loop", True))
    rules = (EventRule("fight", 0.6), EventRule("no_fight", 0.6))
    return kind(classifier, sources, LiveOptions(capture, rules=rules, max_guests=8))


@contextmanager
def running(run: LiveRun) -> Iterator[LiveRun]:
    """Run a live run in another thread during the test."""
    stop, failed = threading.Event(), []

    def work() -> None:
        try:
            run.run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="model")
    thread.start()
    try:
        yield run
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


class Reported(list[str]):
    """Lines that a server reported."""

    def __call__(self, line: str) -> None:
        self.append(line)


@dataclass(frozen=True)
class Served:
    run: LiveRun
    server: Server
    told: Reported


@contextmanager
def quick(classifier: Classifier, run: LiveRun | None = None, **options: Any) -> Iterator[Server]:
    """A server of a run that was not started, for tests that need no results."""
    with Server(run or new_run(classifier), ServeOptions(port=0, **options)) as server:
        yield server

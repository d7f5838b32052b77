"""The API's answers are those recorded in ``responses/`` before they had types, byte for byte."""

from __future__ import annotations

import http.client
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.live.messages import Drops, Event, LiveFrame, Notice, ProvisionalResult, Window
from adafocus_edge.live.run import LiveOptions, LiveRun, RunStatus
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier, Guess, Result, Step
from adafocus_edge.serve import ServeOptions, Server
from adafocus_edge.serve import board as boards

RECORDED = Path(__file__).parent / "responses"
NOW_S = 1_790_000_000.25
TOP = (Guess("fight", 0, 0.9999123456), Guess("no_fight", 1, 0.0000087654))
"""The second one is written with an exponent, as Python's json has it."""
ODD = "Höf / gate <2>"


def frame(source: str, index: int) -> LiveFrame:
    return LiveFrame(source, index, 5.0, index / 3, NOW_S + index / 3, lambda: np.zeros((90, 160, 3), np.uint8))


def step(number: int, time_s: float | None) -> Step:
    return Step(number, 3 * number, time_s, (24, 48, 128), TOP[number % 2], np.zeros(2, np.float32))


def result(source: str, *, timed: bool = True) -> Result:
    steps = tuple(step(number, number / 7 if timed else None) for number in range(3))
    span = (0.0, 10.123456) if timed else (None, None)
    return Result(source, *span, TOP, steps, not timed, 1234.56789, 12.0, "onnxruntime-cpu", "fp32", (1.5, 2.25, 3.125))


MESSAGES = (
    ProvisionalResult("entrance", frame("entrance", 1), step(0, 1 / 3), TOP, False, 17.12345),
    ProvisionalResult(ODD, frame(ODD, 2), step(1, 2 / 3), TOP[::-1], True, 18.0),
    Window("entrance", result("entrance"), None, NOW_S + 1, False),
    Window(ODD, result(ODD, timed=False), TOP, NOW_S + 2, True),
    Event("entrance", "start", 1, "fight", 1.0, None, 0.75, NOW_S + 3, frame("entrance", 9), (24, 48, 128)),
    Event("entrance", "end", 1, "fight", 1.0, 4.98765, 0.8765432, NOW_S + 6, frame("entrance", 18), (0, 0, 128)),
    Notice("entrance", "lost", "entrance: no answer; trying again in 2 s", NOW_S + 7),
    Notice(ODD, "failed", f"{ODD}: cannot be opened", NOW_S + 8),
    Drops("out.jsonl", "dropping", "out.jsonl: 7 of 9 messages in 4 s are dropped", NOW_S + 9),
)


def source(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "kind": "file", "state": "running", "text": "", "width": 456, "height": 256, "frames": 1234,
        "picked": 400, "glimpses": 390, "windows": 44, "dropped": 3, "damaged": 0, "reconnects": 1, "waiting": 2,
        "fps_in": 29.97, "fps_glimpsed": 4.0, "latency_ms": {"p50": 17.5, "p95": 21.0, "p99": 40.25}, "stale": False,
        "last_seen_at": "2026-09-21T14:13:20.250Z", "dropping": True, "last_frame_age_s": 0.033, **more,
    }  # fmt: skip


class RecordedRun(LiveRun):
    """A run whose state and whose result of a file are always the same."""

    def status(self) -> RunStatus:
        never = {"last_seen_at": None, "last_frame_age_s": None, "latency_ms": dict.fromkeys(("p50", "p95", "p99"))}
        sources = [source("entrance"), source(ODD, state="lost", text="lost", width=0, height=0, stale=True, **never)]
        listener = {"name": "web page", "waiting": 0, "handled": 9, "dropped": 0, "failed": 0, "dropping": False}
        sensors = {
            "temperature_c": 61.5, "power_w": 7.25, "power_of": "module", "gpu_temperature_c": None, "gpu_power_w": None
        }  # fmt: skip
        return RunStatus(
            3601.125, super().status().model, sources, [listener, {**listener, "name": "out.jsonl", "dropped": 4}],
            sensors, True, 0.012,
        )  # fmt: skip

    def submit_clip(self, source: Source, cancel: threading.Event | None = None) -> Future[Result]:
        del cancel
        done: Future[Result] = Future()
        done.set_result(result(source.address))
        return done


def ask(server: Server, method: str, path: str, body: bytes | None = None, lines: int | None = None) -> bytes:
    """Return the body of an answer, or the first lines of one that has no end."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request(method, path, body)
        with connection.getresponse() as answer:
            return answer.read() if lines is None else b"".join(answer.readline() for _ in range(lines))


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, bytes]]:
    """What a server answers before and after the run's messages, by name of the file that holds it."""
    bundle = read_bundle(default_bundle())
    with pytest.MonkeyPatch.context() as patch, load_model(bundle, "auto", "onnxruntime-cpu", 1) as model:
        patch.setattr(boards.time, "time", lambda: NOW_S)
        patch.setattr("adafocus_edge.serve.app.BEAT_S", 3600.0)
        run = RecordedRun(Classifier(model, bundle.classes, top_k=2), [Source("entrance", "a.mp4")], LiveOptions())
        with Server(run, ServeOptions(port=0)) as server:
            (board,) = run._listeners
            with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as watcher:
                watcher.request("GET", "/api/live")
                live = watcher.getresponse()
                first = b"".join(live.readline() for _ in range(5))  # of them the first two say when to come back
                for message in MESSAGES:
                    board.enqueue(message)
                happened = b"".join(live.readline() for _ in range(3 * len(MESSAGES)))
            while board.handled < len(MESSAGES):
                time.sleep(0.01)
            yield {
                "status.json": ask(server, "GET", "/api/status"),
                "results.json": ask(server, "GET", "/api/results"),
                "results_of_one.json": ask(server, "GET", "/api/results?source=entrance&limit=1"),
                "events.json": ask(server, "GET", "/api/events"),
                "result.json": ask(server, "POST", "/api/classify?name=clip.mp4", video_head()),
                "health.json": ask(server, "GET", "/healthz"),
                "live_first.txt": first,
                "live_then.txt": happened,
                "live_later.txt": ask(server, "GET", "/api/live", lines=5),
            }


def video_head() -> bytes:
    """Bytes that are not text, which is all that is checked before the run takes a file."""
    written = io.BytesIO()
    Image.new("RGB", (64, 64)).save(written, "JPEG")
    return written.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "status.json", "results.json", "results_of_one.json", "events.json", "result.json", "health.json",
        "live_first.txt", "live_then.txt", "live_later.txt",
    ],
)  # fmt: skip
def test_an_answer_is_as_it_was_recorded(answers: dict[str, bytes], name: str) -> None:
    assert answers[name] == (RECORDED / name).read_bytes()

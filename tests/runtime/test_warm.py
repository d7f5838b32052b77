"""Preparing a model before its sources start, and the watchdog that says why a live run sees nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.loaded import open_programs
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.errors import BackendError
from adafocus_edge.live.messages import Notice
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.live.watchdog import Activity, Watchdog
from adafocus_edge.media.sources import find_sources
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.runtime.glimpse import see_clip
from adafocus_edge.runtime.lanes import Lanes
from tests.backends.test_resident import FRAMES
from tests.conftest import CLIPS
from tests.support.live_parts import until

CLIP = CLIPS / "R6llTwEh07w.mp4"


@contextmanager
def on_host(path: Path) -> Iterator[Classifier]:
    """A classifier whose model is kept on the CPU under a GPU's rules."""
    bundle = read_bundle(path)

    def path_of(graph: str) -> Path:
        return bundle.graph_path("fp32", graph)

    with open_programs(
        bundle.spec, GRAPHS, lambda graph: OrtSession(path_of(graph)), path_of, HostDevice(),
        backend="host", variant="fp32",
    ) as model:  # fmt: skip
        yield Classifier(model, bundle.classes)


class Listening:
    """Keeps the messages of a run."""

    name = "kept"
    waiting = handled = dropped = failed = 0

    def __init__(self) -> None:
        self.told: list[Any] = []

    def enqueue(self, message: Any) -> None:
        self.told.append(message)

    def notices(self) -> list[str]:
        return [message.kind for message in self.told if isinstance(message, Notice)]


def slow_to_warm(classifier: Classifier, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Let each batch size take a while, as a search for convolution algorithms does; return the sizes made so far."""
    resident = classifier.model.resident
    assert resident is not None
    made: list[int] = []
    steps = resident.steps

    def slow(clips: int) -> Any:
        made.append(clips)
        time.sleep(seconds)
        return steps(clips)

    monkeypatch.setattr(resident, "steps", slow)
    return made


def test_a_run_loses_nothing_while_its_model_warms_up(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_host(small_bundle) as classifier:
        sizes = slow_to_warm(classifier, monkeypatch, 1.5)
        kept, lines = Listening(), []

        def report(line: str) -> None:
            lines.append(line)
            assert kept.told == []  # no source has started

        options = LiveOptions(CaptureOptions(2.0, realtime=True, loop=True), overlap=3)
        run = LiveRun(classifier, find_sources([f"film={CLIP}"]), options, [kept], report)
        run.run(threading.Event(), 6.0)
        status = run.status().sources[0]
        assert lines == [f"preparing batch {size} ..." for size in (3, 2, 1)]
        assert sizes == [3, 2, 1]
        assert status.picked >= 10
        assert status.dropped == 0
        assert status.glimpses >= status.picked - 2  # the last ones were under way


def test_a_run_that_is_told_to_stop_while_it_prepares_starts_nothing(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_host(small_bundle) as classifier:
        sizes = slow_to_warm(classifier, monkeypatch, 0.2)
        kept, stop = Listening(), threading.Event()
        run = LiveRun(
            classifier,
            find_sources([str(CLIP)]),
            LiveOptions(overlap=4),
            [kept],
            lambda _: stop.set() if sizes else None,
        )
        run.run(stop)
        assert sizes == [4, 2]  # stopped while it prepared the second
        assert kept.told == []
        assert not run.status().alive


def test_a_device_that_fails_while_it_prepares_ends_the_run(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_host(small_bundle) as classifier:

        def no_memory(_: int) -> Any:
            raise BackendError("CUDA failed while allocating: out of memory")

        monkeypatch.setattr(classifier.model.resident, "steps", no_memory)
        run = LiveRun(classifier, find_sources([str(CLIP)]), LiveOptions())
        with pytest.raises(BackendError, match="out of memory"):
            run.run(threading.Event())


def test_guests_that_come_while_the_model_warms_up_are_shown_and_nothing_of_them_is_dropped(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_host(small_bundle) as classifier:
        slow_to_warm(classifier, monkeypatch, 1.0)
        stop = threading.Event()
        run = LiveRun(classifier, [], LiveOptions(CaptureOptions(20.0), max_guests=2))
        feed = run.open_feed("visitor")
        thread = threading.Thread(target=run.run, args=(stop,))
        thread.start()
        grey = np.full((120, 160, 3), 90, np.uint8)
        while not run._ready.is_set():
            assert run.status().stalled_s == 0
            assert run.status().sources[0].dropped == 0
            feed.push(lambda: grey, 160, 120)
            time.sleep(0.05)
        before = run.status().sources[0]
        assert before.frames > 5
        assert before.picked <= 1

        def glimpsed() -> bool:
            feed.push(lambda: grey, 160, 120)
            return bool(run.status().sources[0].glimpses > 2)

        until(glimpsed)
        stop.set()
        thread.join()


def test_a_prepared_model_gives_what_a_new_one_gives(small_bundle: Path) -> None:
    with on_host(small_bundle) as classifier, on_host(small_bundle) as other:
        lines: list[str] = []
        classifier.prepare(lines.append)
        assert lines == ["preparing the model ..."]
        lanes, fresh = Lanes(classifier.model, 3), Lanes(other.model, 3)
        assert list(lanes.prepare()) == [3, 2, 1]
        loops = dict(lanes._loops)
        streams, others = [lanes.join() for _ in range(3)], [fresh.join() for _ in range(3)]
        assert lanes._loops == loops
        for step in range(4):
            found = lanes.step(dict.fromkeys(streams, FRAMES[step]))
            wanted = fresh.step(dict.fromkeys(others, FRAMES[step]))
            for stream, one in zip(streams, others, strict=True):
                assert np.array_equal(found[stream].logits, wanted[one].logits)
        for found_step, wanted_step in zip(
            see_clip(classifier.model, FRAMES), see_clip(other.model, FRAMES), strict=True
        ):
            assert np.array_equal(found_step.logits, wanted_step.logits)


# -- the watchdog -----------------------------------------------------------------------------------------------------


def silence(glimpses: int = 0, **more: Any) -> Activity:
    values: dict[str, Any] = {"step_s": 0.0, "frame_age_s": 0.1, "damaged": 0, "limit_s": 10.0}
    return Activity("gate", glimpses, **{**values, **more})


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"step_s": 9.0}, "the model has been computing one step for 9 s"),
        ({"frame_age_s": None}, "no frame received yet"),
        ({"frame_age_s": 8.0}, "no frame received for 8 s"),
        ({"damaged": 70}, "frames arrive, but 70 of them could not be decoded"),
        ({}, "frames arrive, but none of them reaches the model"),
    ],
)
def test_silence_is_reported_once_with_its_reason_and_so_is_its_end(known: dict[str, Any], reason: str) -> None:
    told: list[Notice] = []
    now: list[Activity] = []
    dog = Watchdog(lambda: now, told.append)
    for second, glimpses in enumerate([*[3] * 15, 4, 5, *[5] * 3]):
        now[:] = [silence(glimpses, **known)]
        dog.check(100.0 + second)
    assert [(notice.kind, notice.text) for notice in told] == [
        ("stalled", f"gate: no glimpse for 10 s: {reason}"),
        ("resumed", "gate: glimpsed again"),
    ]


def test_a_source_that_was_lost_has_its_whole_time_again() -> None:
    told: list[Notice] = []
    now: list[Activity] = []
    dog = Watchdog(lambda: now, told.append)
    for second in range(30):
        now[:] = [] if 8 <= second < 12 else [silence(3)]
        dog.check(100.0 + second)
    assert [notice.kind for notice in told] == ["stalled"]


def test_a_model_that_hangs_in_a_live_run_is_reported(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adafocus_edge.live import run as stream

    monkeypatch.setattr(stream, "SILENT_S", 3.0)
    monkeypatch.setattr(stream, "STALE_GLIMPSES", 0)
    with on_host(small_bundle) as classifier:
        kept, stop, release = Listening(), threading.Event(), threading.Event()
        options = LiveOptions(CaptureOptions(4.0, realtime=True, loop=True))
        run = LiveRun(classifier, find_sources([f"film={CLIP}"]), options, [kept])
        step = run._lanes.step

        def hang(frames: Any) -> Any:
            release.wait(60)
            return step(frames)

        monkeypatch.setattr(run._lanes, "step", hang)
        thread = threading.Thread(target=run.run, args=(stop,))
        thread.start()
        until(lambda: "stalled" in kept.notices())
        text = next(m.text for m in kept.told if isinstance(m, Notice) and m.kind == "stalled")
        assert "film: no glimpse for 3 s: the model has been computing one step for" in text
        release.set()
        until(lambda: "resumed" in kept.notices())
        stop.set()
        thread.join()

"""Live runs: which frames are glimpsed, windows that overlap, events, drops; real streams that are lost and found."""

from __future__ import annotations

import http.server
import io
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import BackendError, HasAnEndError, SourceError, UsageError
from adafocus_edge.live import capture as capturing
from adafocus_edge.live import meters, readers
from adafocus_edge.live.capture import Capture
from adafocus_edge.live.events import EventDetector, EventRule, Smoother
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Drops, Event, LiveFrame, Notice, ProvisionalResult, Window
from adafocus_edge.live.meters import DropMeter
from adafocus_edge.live.pacing import GlimpseSchedule
from adafocus_edge.live.readers import Feed
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CameraOptions, CaptureOptions, Printing
from adafocus_edge.live.status import ModelStatus, RunStatus, SourceStatus
from adafocus_edge.live.terminal import NoticeLogger, Printer, status_line, status_shown
from adafocus_edge.media.pictures import Picture
from adafocus_edge.media.preprocess import sample_indices
from adafocus_edge.media.sources import Source, find_sources, without_password
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.runtime.glimpse import GlimpseStream
from adafocus_edge.runtime.lanes import HostLanes
from adafocus_edge.system.backoff import Backoff
from adafocus_edge.system.sensors import Sensors
from adafocus_edge.system.timestamps import iso
from tests.conftest import CLIPS, ROOT, edge, one_line_error
from tests.support.diverged import copy_diverged
from tests.support.streams import Garbage, HttpStream, RtmpStream, RtspServer, UdpStream

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
CLIP = CLIPS / "R6llTwEh07w.mp4"
SMALL_PICTURE = (320, 180)


class Kept(Sink):
    """Keeps what it is told."""

    wants = (ProvisionalResult, Window, Event, Notice)
    needs_pixels = True

    def __init__(self) -> None:
        self.messages: list[Any] = []
        super().__init__("kept", 100_000, print)

    def process(self, message: Any) -> None:
        self.messages.append(message)

    def of(self, kind: type) -> list[Any]:
        return [message for message in list(self.messages) if isinstance(message, kind)]

    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.of(Notice)]


@contextmanager
def classifier_of(bundle: Path, **more: Any) -> Iterator[Classifier]:
    found = read_bundle(bundle)
    with load_model(found, "auto", "onnxruntime-cpu", 2) as model:
        yield Classifier(model, found.classes, top_k=2, **more)


def run_over(classifier: Classifier, sources: list[str], options: LiveOptions, **more: Any) -> tuple[Kept, LiveRun]:
    """A run until its sources have ended."""
    kept = Kept()
    run = LiveRun(classifier, find_sources(sources), options, [kept])
    run.run(threading.Event(), **more)
    kept.close()
    return kept, run


@contextmanager
def beside(run: LiveRun, kept: Kept) -> Iterator[None]:
    """Let a run go on beside the test; it must end when it is told to."""
    stop = threading.Event()
    thread = threading.Thread(target=run.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        kept.close()
        assert not thread.is_alive()


@contextmanager
def running(classifier: Classifier, sources: list[str], options: LiveOptions) -> Iterator[tuple[Kept, LiveRun]]:
    """A run beside the test."""
    kept = Kept()
    run = LiveRun(classifier, find_sources(sources), options, [kept])
    with beside(run, kept):
        yield kept, run


def until(true: Callable[[], Any], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost sources are tried again at once, and silence is noticed early."""
    monkeypatch.setattr(Backoff, "FIRST_S", 0.2)
    monkeypatch.setattr(Backoff, "MAX_S", 0.4)
    monkeypatch.setattr(readers, "SILENCE_S", 3.0)


def capture_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(capturing.CAPTURE_THREAD)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- which frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [8, 16])
@pytest.mark.parametrize("fps", [24.0, 30000 / 1001, 25.0, 15.5])
def test_a_window_over_a_whole_file_takes_the_frames_that_classify_takes(segments: int, fps: float) -> None:
    for count in range(segments, 400):
        due = GlimpseSchedule(segments * fps / count)
        picked = [index for index in range(count) if due.is_now(index, fps, index / fps)]
        assert picked == sample_indices(count, segments)


def test_a_live_source_is_glimpsed_in_the_middle_of_each_period() -> None:
    due = GlimpseSchedule(2.0)
    times = np.arange(0, 5, 1 / 30)
    picked = [time for time in times if due.is_now(None, 0.0, time)]
    np.testing.assert_allclose(picked, np.arange(0.25, 5, 0.5), atol=1 / 30)
    late = GlimpseSchedule(2.0)  # what was missed is not made up for
    assert [late.is_now(None, 0.0, time) for time in (0.1, 3.0, 3.01, 3.2, 3.3)] == [False, True, False, False, True]


# -- lanes and windows -------------------------------------------------------------------------------------------------


def test_lanes_that_share_frames_see_what_each_alone_would(small_bundle: Path) -> None:
    found = read_bundle(small_bundle)
    frames = np.random.default_rng(3).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    with load_model(found, "auto", "onnxruntime-cpu", 2) as model:
        lanes = HostLanes(model)
        first, second, other = lanes.join(), lanes.join(), lanes.join()
        alone = {lane: GlimpseStream(model) for lane in (first, second, other)}
        for number, frame in enumerate(frames):
            given = {first: frame}
            if number >= 3:
                given[second] = frame  # began later, sees the same
            if number % 2:
                given[other] = frames[-1 - number]
            if number == 5:
                lanes.restart(first)
                alone[first].reset()
            seen = lanes.step(given)
            assert set(seen) == set(given)
            for lane, glimpse in seen.items():
                expected = alone[lane].see([given[lane]])
                assert np.array_equal(glimpse.origins, expected.origins)
                np.testing.assert_allclose(glimpse.logits, expected.logits, atol=1e-5)
        lanes.leave(second)
        assert lanes.streams == (first, other)


def test_states_over_one_frame_share_its_glance_and_equal_patches(small_bundle: Path) -> None:
    found = read_bundle(small_bundle)
    rows: dict[str, list[int]] = {"glancer": [], "focuser": []}
    with load_model(found, "auto", "onnxruntime-cpu", 2) as model:
        for graph, counted in rows.items():
            session = getattr(model, graph)
            run = session.run

            def counting(feeds: Any, run: Any = run, counted: list[int] = counted) -> Any:
                counted.append(len(feeds["frame"]))
                return run(feeds)

            session.run = counting
        lanes = HostLanes(model)
        frame = np.full((224, 224, 3), 90, np.uint8)
        seen = lanes.step({lanes.join(): frame for _ in range(4)})
    places = {tuple(glimpse.origins[0]) for glimpse in seen.values()}
    assert rows == {"glancer": [1], "focuser": [len(places)]}


def test_no_graph_is_given_more_at_once_than_is_good_for_it(small_bundle: Path) -> None:
    """ONNX Runtime keeps for ever what its largest batch needed: the step of a hundred sources must not need more."""
    found = read_bundle(small_bundle)
    frames = np.random.default_rng(4).integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)
    with load_model(found, "auto", "onnxruntime-cpu", 2) as model:
        lanes = HostLanes(model)
        joined = [lanes.join() for _ in range(12)]
        given = {lane: frames[number // 2] for number, lane in enumerate(joined)}
        alone = [GlimpseStream(model).see([frame]) for frame in frames]
        most = 0
        for graph in GRAPHS:
            session = getattr(model, graph)

            def counting(feeds: Any, run: Any = session.run) -> Any:
                nonlocal most
                most = max(most, *map(len, feeds.values()))
                return run(feeds)

            session.run = counting
        seen = lanes.step(given)
        assert most == model.batch < len(frames)
    for number, lane in enumerate(joined):
        np.testing.assert_array_equal(seen[lane].origins, alone[number // 2].origins)
        np.testing.assert_allclose(seen[lane].logits, alone[number // 2].logits, atol=1e-5)


@pytest.mark.parametrize("bundle", ["default", "small"])
def test_a_live_run_over_a_clip_gives_exactly_what_classify_gives(bundle: str, request: pytest.FixtureRequest) -> None:
    path = default_bundle() if bundle == "default" else request.getfixturevalue("small_bundle")
    with classifier_of(path, schedule="stream") as classifier:
        for video in (FIGHT, CLIP):
            source = Source(str(video), str(video))
            expected, clip = classifier.classify(source)
            segments = classifier.model.spec.segments
            rate = segments * clip.fps / clip.frame_count
            kept, run = run_over(classifier, [str(video)], LiveOptions(CaptureOptions(rate, drop="never")))
            (window,) = kept.of(Window)
            assert not window.cut
            assert [s.frame_index for s in window.result.steps] == [s.frame_index for s in expected.steps]
            for found, wanted in zip(window.result.steps, expected.steps, strict=True):
                assert np.array_equal(found.logits, wanted.logits)
                assert (found.patch, found.guess) == (wanted.patch, wanted.guess)
            assert window.result.top == expected.top
            assert run.status().sources[0].dropped == 0
            assert run.errors == {}


def test_windows_overlap_and_each_is_whole(small_bundle: Path) -> None:
    """Three states over eight glimpses: a result at every third, third, second glimpse."""
    with classifier_of(small_bundle, schedule="stream") as classifier:
        kept, _ = run_over(classifier, [str(CLIP)], LiveOptions(CaptureOptions(4.0), overlap=3))
        windows = [window for window in kept.of(Window) if not window.cut]
        looks = kept.of(ProvisionalResult)
        frames = [look.frame.index for look in looks]
        starts = [frames.index(window.result.steps[0].frame_index) for window in windows]
        assert starts[:6] == [0, 2, 5, 8, 10, 13]
        assert all(window.result.steps_used == 8 for window in windows if hasattr(window.result, "steps_used"))
        stream = GlimpseStream(classifier.model)
        pixels = {look.frame.index: capturing.model_pixels((look.frame,), classifier.model.spec) for look in looks}
        for window in windows[:4]:
            stream.reset()
            for step in window.result.steps:
                np.testing.assert_allclose(stream.see([pixels[step.frame_index]]).logits[0], step.logits, atol=1e-5)
        # After the first windows, there is always at least half a window behind what is told.
        assert all(look.settled for look in looks[8:])
        assert not looks[0].settled


def test_an_early_exit_rests_until_its_window_is_over(small_bundle: Path) -> None:
    exits = ExitThresholds("live", "probability", (None, None, 0.0, *[None] * 5), glimpse_fps=4.0)
    with classifier_of(small_bundle, exits=exits) as classifier:
        kept, run = run_over(classifier, [str(CLIP)], LiveOptions(CaptureOptions(4.0)))
        windows = [window for window in kept.of(Window) if not window.cut]
        assert windows
        assert all(len(window.result.steps) == 3 and window.result.exited_early for window in windows)
        status = run.status().sources[0]
        assert len(kept.of(ProvisionalResult)) < status.glimpses  # the rest of each window was not looked at
        gaps = np.diff([window.result.steps[0].frame_index for window in windows])
        assert np.abs(gaps - 8 * 30 / 4).max() <= 8 * 30 / 4 * 0.3


def test_many_sources_run_side_by_side_and_one_that_fails_stops_none(small_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    with classifier_of(small_bundle, schedule="stream") as classifier:
        options = LiveOptions(CaptureOptions(4.0))
        kept, run = run_over(classifier, [str(CLIP), f"yard={FIGHT}", str(broken)], options)
        alone, _ = run_over(classifier, [str(CLIP)], options)
        assert set(run.errors) == {str(broken)}
        both = [window for window in kept.of(Window) if window.source == str(CLIP)]
        assert len(both) == len(alone.of(Window))
        for found, wanted in zip(both, alone.of(Window), strict=True):
            np.testing.assert_allclose(found.result.steps[-1].logits, wanted.result.steps[-1].logits, atol=1e-5)
        assert any(window.source == "yard" for window in kept.of(Window))
        assert kept.kinds().count("failed") == 1
        with pytest.raises(UsageError, match="two sources have this name"):
            LiveRun(classifier, find_sources([str(CLIP), str(CLIP)]), options)
        with pytest.raises(UsageError, match="--overlap 9: must be 1 to 8"):
            LiveRun(classifier, [], LiveOptions(overlap=9))
        with pytest.raises(UsageError, match="event nap: unknown class"):
            LiveRun(classifier, [], LiveOptions(rules=(EventRule("nap"),)))
        twice = (EventRule(classifier.classes[0], 0.5), EventRule(classifier.classes[0], 0.5))
        with pytest.raises(UsageError, match="the same rule twice"):
            LiveRun(classifier, [], LiveOptions(rules=twice))


def test_guests_come_and_go_beside_the_sources(small_bundle: Path) -> None:
    with classifier_of(small_bundle, schedule="stream") as classifier:
        expected, _ = classifier.classify(Source("clip", str(FIGHT)))
        options = LiveOptions(CaptureOptions(8.0, realtime=True, loop=True), max_guests=2)
        with running(classifier, [f"film={CLIP}"], options) as (kept, run):
            until(lambda: run.latest("film"))
            found = run.submit_clip(Source("clip", str(FIGHT))).result(60)
            np.testing.assert_allclose(found.steps[-1].logits, expected.steps[-1].logits, atol=1e-5)
            assert found.end_s == expected.end_s
            with pytest.raises(SourceError, match="no such file"):
                run.submit_clip(Source("gone", "/gone.mp4")).result(60)
            given_up = threading.Event()
            given_up.set()
            with pytest.raises(SourceError, match="cancelled"):
                run.submit_clip(Source("clip", str(FIGHT)), given_up).result(60)
            feed = run.open_feed("phone")
            picture = np.zeros((48, 64, 3), np.uint8)

            def seen() -> bool:
                feed.push(lambda: picture, 64, 48)
                return any(window.source == "phone" for window in kept.of(Window))

            until(seen)
            until(lambda: run.status().sources[-1].name == "phone")
            second = run.open_feed("tablet")
            with pytest.raises(UsageError, match="try again later"):
                run.open_feed("third")
            feed.close()
            second.close()
            until(lambda: [source.name for source in run.status().sources] == ["film"])
            run.open_feed("third").close()
            status = run.status().to_json()
            assert status["alive"]
            json.dumps(status)
            assert status["model"]["segments"] == 8
        assert not run.status().alive
        until(lambda: not capture_threads())


def test_a_guest_that_comes_before_the_run_begins_is_let_in(small_bundle: Path) -> None:
    kept, stop = Kept(), threading.Event()
    with classifier_of(small_bundle, schedule="stream") as classifier:
        run = LiveRun(classifier, [], LiveOptions(CaptureOptions(1000.0), max_guests=1), [kept])
        feed = run.open_feed("phone")
        thread = threading.Thread(target=run.run, args=(stop,))
        thread.start()

        def seen() -> bool:
            feed.push(lambda: np.zeros((48, 64, 3), np.uint8), 64, 48)
            return bool(kept.of(Window)) or not thread.is_alive()

        try:
            until(seen)
            assert run.status().alive
        finally:
            stop.set()
            thread.join(30)
            kept.close()


def test_outputs_that_are_not_numbers_end_a_run_and_fail_a_clip_alone(small_bundle: Path, tmp_path: Path) -> None:
    with classifier_of(copy_diverged(small_bundle, tmp_path / "bundle"), schedule="stream") as classifier:
        with pytest.raises(BackendError, match="the model's outputs are not finite numbers"):
            run_over(classifier, [str(FIGHT)], LiveOptions())
        with running(classifier, [], LiveOptions(max_guests=1)) as (_, run):
            for _ in range(2):
                with pytest.raises(BackendError, match="the model's outputs are not finite numbers"):
                    run.submit_clip(Source("clip", str(FIGHT))).result(60)
                until(lambda: not run._jobs)
            assert run.status().alive


def test_a_clip_that_is_given_up_at_its_end_does_not_end_the_run(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        classifier_of(small_bundle, schedule="stream") as classifier,
        running(classifier, [], LiveOptions(max_guests=1)) as (_, run),
    ):
        results = []
        made = classifier.result

        def late(*arguments: Any) -> Any:
            results[0].cancel()  # as a browser that leaves at this very moment
            return made(*arguments)

        monkeypatch.setattr(classifier, "result", late)
        results.append(run.submit_clip(Source("clip", str(FIGHT))))
        until(lambda: results[0].cancelled() and not run._jobs)
        time.sleep(0.3)
        assert run.status().alive


def sound_that_goes_on() -> bytes:
    """MPEG-TS of one second of pictures and a minute of sound."""
    written = io.BytesIO()
    with av.open(written, "w", format="mpegts") as container:
        video, audio = container.add_stream("mpeg2video", rate=25), container.add_stream("mp2", rate=32000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio.layout, audio.bit_rate = "mono", 64_000
        for number in range(25):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for number in range(0, 60 * 32000, 1152):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 32000, number, Fraction(1, 32000)
            container.mux(audio.encode(sound))
    return written.getvalue()


@pytest.mark.usefixtures("soon")
def test_a_camera_whose_picture_hangs_while_its_sound_goes_on_is_lost(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "SILENCE_S", 1.0)
    content, over = sound_that_goes_on(), threading.Event()

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for begin in range(0, len(content), 4_000):
                    self.wfile.write(content[begin : begin + 4_000])
                    if over.wait(0.1):
                        return

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with (
                classifier_of(small_bundle, schedule="stream") as classifier,
                running(classifier, [f"http://127.0.0.1:{server.server_port}/live.ts"], LiveOptions()) as (kept, _),
            ):
                until(lambda: "lost" in kept.kinds())
        finally:
            over.set()
            server.shutdown()
    assert "no picture for 1 s" in next(notice.text for notice in kept.of(Notice) if notice.kind == "lost")


@pytest.mark.parametrize("error", [RuntimeError("out of tune"), MemoryError()])
@pytest.mark.usefixtures("soon")
def test_what_nobody_foresaw_is_a_source_that_is_lost(
    error: Exception, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures(source: Source, stop: threading.Event, *_: Any) -> Iterator[Any]:
        yield Picture(lambda: np.zeros((48, 64, 3), np.uint8), 64, 48)
        raise error

    monkeypatch.setattr(readers, "camera_pictures", pictures)
    monkeypatch.setattr(readers, "address_pictures", pictures)
    with (
        classifier_of(small_bundle, schedule="stream") as classifier,
        running(classifier, ["0", "udp://127.0.0.1:9"], LiveOptions()) as (kept, _),
    ):
        until(lambda: kept.kinds().count("reconnected") >= 4)
    lost = {notice.text for notice in kept.of(Notice) if notice.kind == "lost"}
    assert any(f"camera 0: reading failed ({type(error).__name__}" in text for text in lost)


@pytest.mark.usefixtures("soon")
def test_what_was_under_way_is_told_when_a_source_is_lost_and_not_when_it_is_back(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, opened = threading.Event(), []

    def pictures(source: Source, *_: Any) -> Iterator[Any]:
        opened.append(source)
        for _ in range(13 if len(opened) == 1 else 0):  # the first is before its time
            yield Picture(lambda: np.zeros((48, 64, 3), np.uint8), 64, 48)
            time.sleep(0.005)
        back.wait(60 if len(opened) > 1 else 0)
        raise SourceError(f"{source.name}: gone")

    monkeypatch.setattr(readers, "camera_pictures", pictures)
    with classifier_of(small_bundle, schedule="stream") as classifier:
        rules = (EventRule(classifier.classes[0], 1e-6),)
        options = LiveOptions(CaptureOptions(1000.0, drop="never", patient=True), rules=rules)
        with running(classifier, ["0"], options) as (kept, _):
            try:
                until(lambda: [event.kind for event in kept.of(Event)] == ["start", "end"])
                assert [(window.cut, len(window.result.steps)) for window in kept.of(Window)] == [(False, 8), (True, 4)]
                time.sleep(1.5)  # nothing is told twice
                assert len(kept.of(Window) + kept.of(Event)) == 4
                assert not back.is_set()
            finally:
                back.set()


def test_an_address_of_a_file_among_live_sources_is_told_at_once(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(source: Source, *_: Any) -> Iterator[Any]:
        raise HasAnEndError(f"{source.name}: has an end")
        yield

    monkeypatch.setattr(readers, "address_pictures", ends)
    options = LiveOptions(CaptureOptions(realtime=True, loop=True, patient=True))
    with (
        classifier_of(small_bundle, schedule="stream") as classifier,
        running(classifier, [f"film={CLIP}", "yard=http://127.0.0.1:9/clip"], options) as (kept, run),
    ):
        until(lambda: "failed" in kept.kinds())
    failed = next(notice for notice in kept.of(Notice) if notice.kind == "failed")
    assert failed.text == "yard: has an end: download it, or classify it alone"
    assert isinstance(run.errors["yard"], HasAnEndError)


def test_sources_that_hang_are_not_waited_for_one_after_the_other(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(*_: Any) -> Iterator[Any]:
        release.wait()
        yield from ()

    monkeypatch.setattr(readers, "camera_pictures", hang)
    with classifier_of(small_bundle, schedule="stream") as classifier:
        run = LiveRun(classifier, find_sources([str(number) for number in range(8)]), LiveOptions())
        stop = threading.Event()
        stop.set()
        before = time.monotonic()
        run.run(stop)
        assert time.monotonic() - before < 2
    release.set()
    until(lambda: not capture_threads())


@pytest.mark.usefixtures("soon")
def test_what_was_seen_of_a_source_that_is_lost_is_stale_until_it_is_seen_again(small_bundle: Path) -> None:
    with (
        HttpStream("mjpeg", [SMALL_PICTURE]) as stream,
        classifier_of(small_bundle, schedule="stream") as classifier,
        running(classifier, [f"gate={stream.address}"], LiveOptions(CaptureOptions(8.0, patient=True))) as (kept, run),
    ):

        def now() -> SourceStatus:
            return run.status().sources[0]

        assert (now().stale, now().last_seen_at) == (False, None)
        until(lambda: len(kept.of(ProvisionalResult)) > 3)
        assert not now().stale
        stream.kill()
        until(lambda: now().state == "lost")
        assert now().stale
        until(lambda: now().waiting == 0 and now().last_seen_at == iso(kept.of(ProvisionalResult)[-1].frame.wall_s))
        lost = now()
        assert "last frame" in status_line(run.status())
        stream.restart()
        until(lambda: "reconnected" in kept.kinds())
        until(lambda: not now().stale)
        assert now().last_seen_at > lost.last_seen_at
        assert "last frame" not in status_line(run.status())


@pytest.mark.parametrize("overlap", [1, 3])
def test_latency_holds_the_time_in_the_model_that_is_told_beside_it(overlap: int, small_bundle: Path) -> None:
    with classifier_of(small_bundle, schedule="stream") as classifier:
        options = LiveOptions(CaptureOptions(7.0, realtime=True), overlap=overlap)
        kept, _ = run_over(classifier, [str(FIGHT)], options)
    windows = [window.to_json() for window in kept.of(Window)]
    assert {window["cut"] for window in windows} == {False, True}
    for window in windows:
        assert 0 < window["model_ms"] <= window["latency_ms"]
        # One glimpse takes a part of what all of them take.
        assert window["window_model_ms"] >= window["model_ms"]
        assert (window["window_model_ms"] > window["model_ms"]) == (window["steps_used"] > 1)


# -- drops -------------------------------------------------------------------------------------------------------------


def test_drops_are_reported_when_they_begin_each_minute_and_when_they_are_over() -> None:
    meter = DropMeter(min_drops=3)
    dropped = {2: 2, 20: 5, **{second: 5 + 10 * (second - 20) for second in range(21, 100)}}
    count, reports = 0, {}
    for second in range(130):
        count = dropped.get(second, count)
        if (report := meter.update(count, 100 * second, 1000.0 + second)) is not None:
            reports[second] = (report.lasts, report.dropped, report.total)
        assert meter.dropping == (20 <= second < 109)
    # Two drops at the beginning are not worth a word, and are not counted later.
    assert reports == {20: (True, 3, 100), 80: (True, 603, 6100), 109: (False, 793, 9000)}


def test_an_output_that_is_too_slow_is_logged_at_once_and_when_it_keeps_up_again(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "SETTLED_S", 1.5)
    release = threading.Event()

    class Slow(Sink):
        wants = (LiveFrame,)
        unit = "frames"

        def process(self, message: Any) -> None:
            release.wait()

    said: list[logging.LogRecord] = []
    log = logging.Logger("test")
    log.addHandler(SimpleNamespace(level=0, handle=said.append))  # type: ignore[arg-type]
    slow, teller = Slow("videos", 2, print), NoticeLogger(log)
    options = LiveOptions(CaptureOptions(2.0, realtime=True, loop=True))
    with (
        classifier_of(small_bundle, schedule="stream") as classifier,
        running(classifier, [str(FIGHT)], options) as (
            _,
            run,
        ),
    ):
        run.listen(slow)
        run.listen(teller)

        def lines(word: str) -> list[str]:
            return [record.getMessage() for record in said if word in record.getMessage()]

        try:
            until(lambda: lines("videos: too slow, frames are dropped: "))
            assert next(one for one in run.status().listeners if one.name == "videos").dropping
            assert "videos: " in status_line(run.status())
            release.set()
            until(lambda: lines("videos: keeps up again; dropped "))
            assert not next(one for one in run.status().listeners if one.name == "videos").dropping
            assert [record.levelname for record in said if "videos" in record.getMessage()] == ["WARNING", "INFO"]
            dropped, total = map(int, re.findall(r"dropped (\d+) of (\d+)", lines("keeps up")[0])[0])
            assert dropped == slow.dropped
            assert dropped < total <= slow.offered
        finally:
            release.set()
            slow.close()
            teller.close()


def test_a_model_that_is_too_slow_for_its_source_is_reported(small_bundle: Path) -> None:
    class Told(Kept):
        wants = (Drops,)

    with classifier_of(small_bundle, schedule="stream") as classifier:
        told, stop = Told(), threading.Event()
        # A thousand glimpses a second are more than any model makes of this picture.
        capture = CaptureOptions(1000.0, drop="oldest", loop=True, waiting=1)
        run = LiveRun(classifier, find_sources([f"film={CLIP}"]), LiveOptions(capture, overlap=8), [told])
        thread = threading.Thread(target=run.run, args=(stop,))
        thread.start()
        try:
            until(lambda: told.of(Drops))
            assert run.status().sources[0].dropping
        finally:
            stop.set()
            thread.join(30)
            told.close()
    first = told.of(Drops)[0]
    assert first.to_json()["notice"] == "dropping"
    assert re.fullmatch(r"film: the model is too slow, frames to glimpse are dropped: \d+ of \d+ in \d+ s", first.text)


@pytest.mark.parametrize("drop", ["oldest", "newest", "never"])
def test_what_is_dropped_is_counted(drop: Any, small_bundle: Path) -> None:
    spec = read_bundle(small_bundle).spec
    feed, arrived = Feed(), threading.Condition()
    options = CaptureOptions(glimpse_fps=1000, drop=drop, waiting=2)
    capture = Capture(Source("feed", "feed", live=True), spec, options, arrived, feed=feed)
    capture.start()
    picture = np.zeros((48, 64, 3), np.uint8)
    try:
        for number in range(1, 13):
            feed.push(lambda: picture, 64, 48)
            if drop == "never" and number > 5:
                continue  # nobody reads it any more: one is prepared, one in the making, two wait
            until(lambda number=number: capture.counters.frames == number)
            time.sleep(0.03)
        taken = []

        def take() -> bool:
            with arrived:
                if (prepared := capture.take()) is not None:
                    taken.append(prepared.frame.index)
                return prepared is None and capture.finished

        feed.close()
        until(take)
        counters = capture.counters
        assert counters.picked == len(taken) + counters.dropped
        assert taken[:2] == [1, 2]  # the first frame is before its time
        if drop == "oldest":
            assert taken[2:] == [10, 11]
        if drop == "newest":
            assert taken[2:] == [3, 4]
        assert (counters.dropped == 0) == (drop == "never")
    finally:
        capture.close(5)


def test_a_listener_that_hangs_holds_nothing_up(small_bundle: Path) -> None:
    release = threading.Event()

    class Stuck(Sink):
        wants = (Window, LiveFrame)

        def process(self, message: Any) -> None:
            release.wait()

    told: list[str] = []
    stuck = Stuck("stuck", 2, told.append)
    with classifier_of(small_bundle, schedule="stream") as classifier:
        kept = Kept()
        run = LiveRun(classifier, find_sources([str(CLIP)]), LiveOptions(CaptureOptions(8.0)), [stuck, kept])
        run.run(threading.Event())
        kept.close()
        frames = run.status().sources[0].frames
        assert frames > 100
        assert len(kept.of(Window)) > 3
        assert stuck.dropped == frames + len(kept.of(Window)) - 3  # one in hand, two waiting
        before = time.monotonic()
        stuck.close(0.5)
        assert time.monotonic() - before < 5
        release.set()
        until(lambda: not stuck._thread.is_alive())


def test_what_a_listener_did_not_do_in_time_is_counted() -> None:
    release = threading.Event()

    class Stuck(Sink):
        wants = (Notice,)

        def process(self, message: Any) -> None:
            release.wait()

    stuck = Stuck("stuck", 10, print)
    for _ in range(8):
        stuck.enqueue(Notice("a", "lost", "gone", 0.0))
    until(lambda: stuck.waiting == 7)  # one is in hand
    stuck.close(0.2)
    assert stuck.dropped == 7
    release.set()
    until(lambda: not stuck._thread.is_alive())
    assert (stuck.handled, stuck.dropped) == (1, 7)


def test_a_listener_tells_its_trouble_once_and_goes_on() -> None:
    class Broken(Sink):
        wants = (Notice,)

        def process(self, message: Any) -> None:
            raise OSError(28, "No space left on device")

    told: list[str] = []
    broken = Broken("results.jsonl", 10, told.append)
    for _ in range(5):
        broken.enqueue(Notice("a", "lost", "gone", 0.0))
    broken.close()
    assert (broken.failed, broken.dropped) == (5, 0)
    assert told == ["results.jsonl: [Errno 28] No space left on device"]


@pytest.mark.usefixtures("soon")
def test_a_camera_that_is_unplugged_is_opened_again(small_bundle: Path) -> None:
    """OpenCV opens a file as it opens a device; at its end it gives no more frames, as a camera that is pulled out."""
    camera = Source("bench", str(FIGHT), live=True)
    assert Capture(camera, read_bundle(small_bundle).spec, CaptureOptions(), threading.Condition()).kind == "camera"
    asked = CameraOptions(640, 480, 30.0, "MJPG")
    kept, stop = Kept(), threading.Event()
    with classifier_of(small_bundle, schedule="stream") as classifier:
        run = LiveRun(classifier, [camera], LiveOptions(CaptureOptions(8.0, camera=asked)), [kept])
        thread = threading.Thread(target=run.run, args=(stop,))
        thread.start()
        try:
            until(lambda: kept.kinds().count("reconnected") >= 2)
        finally:
            stop.set()
            thread.join(30)
    kept.close()
    assert any("the camera delivers no more frames; retrying" in notice.text for notice in kept.of(Notice))
    status = run.status().sources[0]
    assert (status.width, status.height) == (456, 256)


# -- events ------------------------------------------------------------------------------------------------------------


def test_how_a_rule_is_written() -> None:
    assert EventRule.parse("fight") == EventRule("fight")
    assert EventRule.parse("fight=0.6") == EventRule("fight", 0.6)
    assert EventRule.parse("a=b, c=.5,for=2,cooldown=30.5") == EventRule("a=b, c", 0.5, 2.0, 30.5)
    assert EventRule.parse("tie,cooldown=3") == EventRule("tie", cooldown_s=3.0)
    for wrong in ("=0.5", "", "fight=7", "fight=0"):
        with pytest.raises(UsageError):
            EventRule.parse(wrong)


def follow(rule: EventRule, values: list[tuple[float, float]]) -> list[tuple[float, str]]:
    detector = EventDetector(rule)
    return [(at, kind) for at, value in values if (kind := detector.update(at, value))]


def test_events_start_end_and_rest() -> None:
    rule = EventRule("x", 0.8, for_s=2, cooldown_s=5)
    up, down = 0.9, 0.1
    flicker = [(0, up), (1, up), (1.5, down), (2, up), (3, up), (3.9, up)]
    assert follow(rule, flicker) == []  # never two seconds on end
    values = [(0, up), (1, up), (2, up), (3, down), (3.5, up), (4, up), (5, down), (6.5, down)]
    assert follow(rule, values) == [(2, "start"), (6.5, "end")]  # 4 is when it was last seen
    again = [*values, (7, up), (8.5, up), (9.5, up), (11, up)]
    assert follow(rule, again)[2:] == [(11, "start")]  # two seconds after the rest, which lasts until 9
    assert follow(EventRule("x", 0.8), [(0, up), (1, down)]) == [(0, "start"), (1, "end")]


def test_an_event_says_when_it_began_how_high_it_rose_and_that_it_ended_with_the_run() -> None:
    with classifier_of(default_bundle(), schedule="stream") as classifier:
        options = LiveOptions(CaptureOptions(8.0), rules=(EventRule("fight", 0.5),))
        kept, _ = run_over(classifier, [str(FIGHT)], options)
    start, end = kept.of(Event)
    assert (start.kind, start.number, end.kind, end.number) == ("start", 1, "end", 1)
    settled = [look for look in kept.of(ProvisionalResult) if look.settled]
    assert start.start_s == settled[0].frame.time_s
    assert end.end_s == settled[-1].frame.time_s
    assert end.peak == max(look.top[0].confidence for look in settled)
    assert start.frame.to_rgb().ndim == 3


def test_smoothing_averages_windows_and_events_follow_it() -> None:
    smoother = Smoother(2)
    for given, expected in (([1, 0], [1, 0]), ([0, 1], [0.5, 0.5]), ([0, 1], [0, 1])):
        assert smoother.add(np.array(given, np.float32)).tolist() == expected
    with classifier_of(default_bundle(), schedule="stream") as classifier:
        options = LiveOptions(CaptureOptions(12.0), smooth=2, rules=(EventRule("fight", 0.5),))
        kept, _ = run_over(classifier, [str(FIGHT)], options)
    first, second, *_ = kept.of(Window)

    def fight(guesses: Any) -> float:
        return float(next(guess.confidence for guess in guesses if guess.label == "fight"))

    assert fight(second.smoothed) == pytest.approx((fight(first.result.top) + fight(second.result.top)) / 2, abs=1e-6)
    assert kept.of(Event)[0].peak == pytest.approx(max(fight(w.smoothed) for w in (first, second)), abs=0.2)


# -- names and settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:p@ss@10.0.0.1/a", "rtsp://***@10.0.0.1/a"),
        ("rtsp://h/live?user=admin&password=top&x=1", "rtsp://h/live?user=***&password=***&x=1"),
        ("http://h/a?access_token=abc;b=2#c", "http://h/a?access_token=***;b=2#c"),
        ("rtmp://h/live/key?name=monkey", "rtmp://h/live/key?name=monkey"),
    ],
)
def test_secrets_in_addresses_are_not_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_named_sources_and_lists(tmp_path: Path) -> None:
    listed = tmp_path / "yard.streams"
    listed.write_text("# cameras\nfront = rtsp://u:p@h/1\n\nrtsp://h/2?a=b\n0\n")
    front, second, camera = find_sources([str(listed)])
    assert (front.name, front.address, front.live) == ("front", "rtsp://u:p@h/1", True)
    assert second.address == "rtsp://h/2?a=b"
    assert camera.name == "camera 0"
    (tmp_path / "a=b.mp4").touch()
    assert find_sources([str(tmp_path / "a=b.mp4")])[0].name.endswith("a=b.mp4")
    for content, words in (("", "the list holds no sources"), ("x.streams", "cannot contain another list")):
        listed.write_text(content)
        with pytest.raises(UsageError, match=words):
            find_sources([str(listed)])
    with pytest.raises(UsageError, match="cannot be read"):
        find_sources([str(tmp_path / "gone.streams")])
    with pytest.raises(UsageError, match="needs both"):
        find_sources(["front="])


def test_options_from_a_file(tmp_path: Path) -> None:
    config = tmp_path / "stream.toml"
    config.write_text(
        f'glimpse-fps = 8\noverlap = 2\njson = true\nquiet = true\n[[source]]\nname = "yard"\naddress = "{FIGHT}"\n'
        '[[event]]\nlabel = "fight"\nthreshold = 0.5\nfor-s = 0.1\n'
    )
    done = edge("classify", "--config", config)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["source"] for entry in found} == {"yard"}
    assert [entry["event"] for entry in found if "event" in entry] == ["start", "end"]
    windows = [entry for entry in found if "steps" in entry]
    assert windows[1]["start_s"] - windows[0]["start_s"] == pytest.approx(0.5, abs=0.05)
    few = edge("classify", "--config", config, "--glimpse-fps", 2)  # what is given counts more
    assert len(few.stdout.splitlines()) < len(found)
    for content, words in (
        ("glimpse_fpz = 2", "no option 'glimpse_fpz': did you mean glimpse-fps?"),
        ("glimpse-fps = [2]", "takes one value"),
        ("event = 'fight'", "takes a list"),
        ("[[event]]\nlabl = 'x'", "no key 'labl' in [[event]]"),
        ("[[source]]\nname = 'x'", "address is missing"),
        ("overlap = true", "takes a value, not true"),
        ("overlap = 'many'", "'--overlap'"),
        ("[overlap]\nx = 1", "overlap"),
        ("a b", "not TOML"),
    ):
        config.write_text(content)
        one_line_error(edge("classify", FIGHT, "--config", config), 2, words)
    one_line_error(edge("classify", "--config", tmp_path / "gone.toml"), 2, "gone.toml: cannot be read")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--retries", "often"), "--retries often: must be a number or `forever`"),
        (("--camera-size", "big"), "--camera-size big: must be WIDTHxHEIGHT"),
        (("--camera-format", "JPEG2"), "must be four ASCII characters"),
        (("--event", "fight=0"), "above 0"),
        (("--event", "nap=0.5"), "event nap: unknown class; the classes of this model are fight, no_fight"),
        (("--overlap", "9"), "--overlap 9: must be 1 to 8"),
        (("--snapshots", "x"), "--snapshots: needs --event"),
        (("--webhook-header", "a: b"), "needs --webhook"),
        (("--glimpse-fps", "0"), "glimpse-fps"),
        (("--drop", "some"), "drop"),
    ],
)
def test_wrong_options_are_told_in_one_line(given: tuple[str, ...], words: str) -> None:
    one_line_error(edge("classify", FIGHT, "-q", *given), 2, words)


# -- real streams ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("soon")
def test_a_stream_whose_server_dies_is_found_again_twenty_times(small_bundle: Path) -> None:
    until(lambda: not capture_threads())  # of earlier tests
    with RtspServer([SMALL_PICTURE]) as server, classifier_of(small_bundle, schedule="stream") as classifier:
        with running(classifier, [server.address], LiveOptions(CaptureOptions(10.0))) as (kept, run):
            files: list[int] = []
            for number in range(1, 21):
                until(lambda number=number: run.status().sources[0].reconnects == number - 1)
                glimpses = run.status().sources[0].glimpses
                until(lambda glimpses=glimpses: run.status().sources[0].glimpses > glimpses + 3)
                files.append(open_files())
                assert len(capture_threads()) == 2
                server.restart()
            until(lambda: run.status().sources[0].reconnects == 20)
            glimpses = run.status().sources[0].glimpses
            until(lambda: run.status().sources[0].glimpses > glimpses + 3)
        assert kept.kinds().count("lost") >= 20
        assert kept.kinds().count("reconnected") == 20
        assert max(files[5:]) <= max(files[:5]) + 1
        assert run.errors == {}
        # No window holds frames of before and after a loss.
        lost_at = [notice.wall_s for notice in kept.of(Notice) if notice.kind == "reconnected"]
        walls = {look.frame.index: look.frame.wall_s for look in kept.of(ProvisionalResult)}
        for window in kept.of(Window):
            first, last = (walls[window.result.steps[i].frame_index] for i in (0, -1))
            assert not any(first < at - 0.01 and last > at + 0.01 for at in lost_at)
    until(lambda: not capture_threads(), 15)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("rtsp over lossy packets", lambda: RtspServer([SMALL_PICTURE], loss=0.05)),
        ("rtsp that changes size", lambda: RtspServer([SMALL_PICTURE, (480, 270)], switch_every_s=2)),
        ("mpeg-ts over http", lambda: HttpStream("ts", [SMALL_PICTURE])),
        ("mjpeg that changes size", lambda: HttpStream("mjpeg", [SMALL_PICTURE, (240, 136)], each_s=2)),
        ("hls", lambda: HttpStream("hls", [SMALL_PICTURE])),
        ("udp with losses and garbage", lambda: UdpStream([SMALL_PICTURE], loss=0.05, garbage=0.05)),
        ("rtmp", lambda: RtmpStream(SMALL_PICTURE)),
    ],
)
def test_streams_of_every_kind_give_windows(name: str, make: Callable[[], Any], small_bundle: Path) -> None:
    with make() as stream, classifier_of(small_bundle, schedule="stream") as classifier:
        options = LiveOptions(CaptureOptions(8.0, patient=True))
        with running(classifier, [stream.address], options) as (kept, run):
            until(lambda: len([w for w in kept.of(Window) if not w.cut]) >= 3)
            if "changes size" in name:
                until(lambda: kept.kinds().count("changed") + kept.kinds().count("reconnected") >= 2)
                windows = len(kept.of(Window))
                until(lambda: len(kept.of(Window)) > windows + 1)
            status = run.status().sources[0]
            assert status.state == "running"
            assert status.glimpses + status.dropped + status.waiting <= status.frames


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("kind", "scheme", "words"),
    [
        ("noise", "http", ""),
        ("noise", "rtsp", ""),
        ("silence", "http", "no answer"),
        ("silence", "rtsp", ""),
        ("close", "tcp", ""),
        ("half", "http", ""),
    ],
)
def test_garbage_is_a_source_that_is_lost_and_tried_again(
    kind: str, scheme: str, words: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "OPEN_TIMEOUT_S", 3.0)
    with Garbage(kind, scheme) as stream, classifier_of(small_bundle, schedule="stream") as classifier:
        options = LiveOptions(CaptureOptions(8.0, patient=True))
        with running(classifier, [stream.address, str(FIGHT)], options) as (kept, run):
            until(lambda: kept.kinds().count("lost") >= 2, 90)
            assert all(words in notice.text for notice in kept.of(Notice) if notice.kind == "lost")
            assert run.status().sources[0].state in ("lost", "running")
            until(lambda: any(window.source == str(FIGHT) for window in kept.of(Window)))
    until(lambda: not capture_threads(), 20)


def live(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "adafocus_edge", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_passwords_appear_nowhere(auth: str, tmp_path: Path) -> None:
    secret = "s3cr3t-Pa55"
    log, output = tmp_path / "run.log", tmp_path / "out.jsonl"
    shared = ("--json", "--glimpse-fps", 8, "--duration", 6, "--log", log, "-o", output, "--status", 1)
    with RtspServer([SMALL_PICTURE], user="admin", password=secret, auth=auth) as server:
        good = edge("classify", server.address, *shared)
        assert good.returncode == 0, good.stderr
        assert any("steps" in json.loads(line) for line in good.stdout.splitlines())
        wrong = edge("classify", server.address.replace(secret, secret + "x"), *shared)
        assert wrong.returncode == 1
        assert "cannot be read" in wrong.stderr
    for text in (good.stdout, good.stderr, wrong.stdout, wrong.stderr, log.read_text(), output.read_text()):
        assert secret not in text
        assert "Traceback" not in text
    assert "rtsp://***@127.0.0.1" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_finishes_its_outputs(number: int, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with live(
        "classify", FIGHT, "--realtime", "--loop", "--glimpse-fps", 8, "-o", output, "--json", "--provisional",
        "--event", "fight=0.5",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while "steps" not in json.loads(process.stdout.readline()):
            pass
        process.send_signal(number)
        rest, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "glimpses" in told.splitlines()[-1]
    told_last = json.loads(rest.splitlines()[-1])
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [entry for entry in written if "steps" in entry]
    assert [entry.get("event") for entry in written if "event" in entry] == ["start", "end"]
    assert told_last == written[-1]


@pytest.mark.parametrize("shape", [["--json"], []])
def test_a_reader_that_leaves_ends_the_run(shape: list[str]) -> None:
    with live("classify", FIGHT, "--realtime", "--loop", "--glimpse-fps", 8, "-q", *shape) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_lines_of_results_and_of_the_status_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads write them: each line must be one write, its end too."""
    writes: list[str] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Out())
    printer = Printer(Printing(as_json=True), print, lambda: None)
    printer.enqueue(Notice("a", "lost", "gone", 0.0))
    printer.close()
    model = ModelStatus("", "", [], 1, 1, 1, "", 1.0, 1)
    empty = RunStatus(1.0, model, [], [], Sensors(None, None, None, None, None), True, 0.0)
    run: Any = SimpleNamespace(status=lambda: empty)
    with status_shown(run, 0.01, as_json=True, quiet=True):
        until(lambda: len(writes) > 4)
    assert [text for text in writes if text and not text.endswith("}\n")] == []


def test_a_lone_source_that_was_never_there_fails_at_once_unless_told_otherwise() -> None:
    address = "rtsp://127.0.0.1:9/x"
    one_line_error(edge("classify", address, "-q"), 1, "cannot be read (Connection refused)")
    patient = edge("classify", address, "--retries", 1)
    assert patient.returncode == 1
    lines = [line for line in patient.stderr.splitlines() if not line.startswith(("backend", "the default"))]
    assert lines[0].endswith("retrying in 1 s")
    assert lines[1].startswith("error: ")
    waiting = edge("classify", address, "--retries", "forever", "--duration", 2.5, "--json")
    assert waiting.returncode == 1
    assert json.loads(waiting.stdout.splitlines()[0])["notice"] == "lost"

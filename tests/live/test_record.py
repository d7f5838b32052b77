"""Recording a live run: what is in the files, when new ones begin, and what trouble does to them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import av
import numpy as np
import pytest

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.sinks import recorder as record
from adafocus_edge.live.sinks.recorder import Recorder
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.runtime.annotate import PATCH_COLOUR, save_annotated
from tests.support.live_parts import SPEC, WALL_S, event, live_frame, look, notice, picture, until, window

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told():
    return []


@pytest.fixture
def recorder(tmp_path, told):
    """Makes recorders that wait for every frame, so that a test knows what must be in the files."""
    made = []

    def make(folder=tmp_path, **options):
        made.append(Recorder(folder, SPEC, told.append, **{"waiting": 1000, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close(60)


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(f"file:{path}") as container:
        return [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def recordings(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_frames_keep_their_times_and_show_the_latest_look(recorder, tmp_path, told):
    times = np.cumsum(np.random.default_rng(3).uniform(0.01, 0.2, 60)) + 100
    listener = recorder()
    for index, time_s in enumerate(times):
        frame = live_frame("rtsp://***@10.0.0.1/a", index, time_s)
        listener.enqueue(frame)
        if index == 29:
            until(lambda: not listener.waiting)  # looks overtake frames that wait
            until(lambda: listener.handled == 30)
            listener.enqueue(look(frame))
    listener.close(60)
    assert (listener.handled, listener.dropped, listener.failed, told) == (60, 0, 0, [])
    assert recordings(tmp_path) == ["rtsp_10.0.0.1_a-20231114-221500.mp4"]
    found = decoded(next(tmp_path.iterdir()))
    assert len(found) == 60
    assert [time_s for time_s, _ in found] == pytest.approx(list(times - times[0]), abs=1 / 50_000)
    colours = [np.abs(image.astype(int) - PATCH_COLOUR).sum(axis=2).min() for _, image in found]
    assert min(colours[:30]) > 150, "nothing was drawn before there was a look"
    assert max(colours[30:]) < 90, "the patch is drawn since"


@pytest.mark.parametrize("kind", ["lost", "ended"])  # another source may have the name of one that has ended
def test_what_was_seen_before_a_loss_is_not_drawn_on_the_frames_after_it(kind, recorder, tmp_path):
    listener = recorder()
    before = live_frame(index=0)
    listener.enqueue(look(before))
    listener.enqueue(before)
    until(lambda: listener.handled == 1)
    listener.enqueue(notice(kind))
    listener.enqueue(look(before))  # the model was not done with it
    listener.enqueue(live_frame(index=1, time_s=0.5))
    until(lambda: listener.handled == 2)
    after = live_frame(index=2, time_s=1.0)
    listener.enqueue(look(after))
    listener.enqueue(after)
    listener.close(60)
    (name,) = recordings(tmp_path)
    marked = [
        bool((np.abs(frame.astype(int) - PATCH_COLOUR).max(axis=2) < 60).sum() > 100)
        for _, frame in decoded(tmp_path / name)
    ]
    assert marked == [True, False, True]


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_every_two_seconds_are_safe(recorder, tmp_path, monkeypatch, encoder):
    monkeypatch.setattr(av, "codecs_available", {encoder})
    listener = recorder()
    for index in range(101):
        listener.enqueue(live_frame(index=index, time_s=index / 10))
    until(lambda: listener.handled == 101)
    path = next(tmp_path.iterdir())
    with av.open(str(path)) as container:  # while it is written
        frames = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.name == ("h264" if encoder == "libx264" else encoder)
    assert len(frames) >= 99
    assert [round(float(f.pts * f.time_base), 3) for f in frames if f.key_frame][:5] == [0, 2, 4, 6, 8]
    sharp = frames[0].to_ndarray(format="rgb24").astype(int)
    assert np.abs(sharp - picture(0)).mean() < 8


def test_without_x264_files_are_annotated_too(tmp_path, monkeypatch):
    from PIL import Image

    from adafocus_edge.media.video_file import VideoFile
    from adafocus_edge.runtime.classifier import Result
    from tests.support.live_parts import glimpse
    from tests.support.videos import CLIP

    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    Image.fromarray(picture()).save(tmp_path / "image_00001.jpg")
    step = glimpse()
    result = Result("a", 0.0, 1.0, (step.guess,), (step,), False, 1.0, 1.0, "onnxruntime-cpu", "fp32")
    for name, clip in (("folder", FrameFolder(str(tmp_path))), ("file", VideoFile(str(CLIP)))):
        path = tmp_path / f"{name}.mp4"
        assert len(list(save_annotated(clip, result, SPEC, path))) == len(decoded(path))


SCRIPT = """
import sys, time
from pathlib import Path
from adafocus_edge.live.sinks.recorder import Recorder
from tests.support.live_parts import SPEC, live_frame, look
listener = Recorder(Path(sys.argv[1]), SPEC, print, waiting=1000)
for index in range(10_000):
    frame = live_frame(index=index, time_s=index / 10)
    listener.enqueue(frame)
    listener.enqueue(look(frame))
    while listener.waiting > 4:
        time.sleep(0.001)
    if index == 57:
        while listener.waiting:
            time.sleep(0.001)
        time.sleep(0.2)
        print("ready", flush=True)
        time.sleep(600)
"""


def test_a_kill_costs_at_most_two_seconds(tmp_path):
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    (path,) = tmp_path.iterdir()
    found = decoded(path)
    assert len(found) >= 58 - 20
    assert [time_s for time_s, _ in found] == pytest.approx([index / 10 for index in range(len(found))], abs=1e-3)


def test_files_rotate_by_time_and_the_newest_stay(recorder, tmp_path):
    (tmp_path / "camera_0-holiday.mp4").touch()
    (tmp_path / "camera_0-20200101-000000.mp4").touch()  # of a run before
    (tmp_path / "camera_00-20200101-000000.mp4").touch()  # of another source
    listener = recorder(rotate_s=3, keep=2)
    for index in range(100):
        listener.enqueue(live_frame(index=index, time_s=index / 10))
    listener.close(60)
    names = recordings(tmp_path)
    assert names == [
        "camera_0-20231114-221326.mp4",
        "camera_0-20231114-221329.mp4",
        "camera_0-holiday.mp4",
        "camera_00-20200101-000000.mp4",
    ]
    assert [len(decoded(tmp_path / name)) for name in names[:2]] == [30, 10]


def test_files_rotate_by_size(recorder, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    listener = recorder(rotate_mb=0.5, rotate_s=None)
    for index in range(120):
        listener.enqueue(
            live_frame(index=index, time_s=index / 10, to_rgb=lambda turn=index % 2: noise[:, ::-1] if turn else noise)
        )
    listener.close(60)
    sizes = [(tmp_path / name).stat().st_size for name in recordings(tmp_path)]
    assert len(sizes) > 2
    assert min(sizes[:-1]) >= 0.5e6
    assert sum(len(decoded(tmp_path / name)) for name in recordings(tmp_path)) == 120


def test_a_new_file_for_a_new_size_a_gap_and_a_clock_that_goes_back(recorder, tmp_path):
    listener = recorder()
    times = [0.0, 0.1, 0.2, 0.19, 0.3]  # jitter stays in one file
    for index, time_s in enumerate(times):
        listener.enqueue(live_frame(index=index, time_s=time_s))
    listener.enqueue(live_frame(index=5, time_s=0.4, size=(240, 320)))
    listener.enqueue(live_frame(index=6, time_s=0.5, size=(240, 320)))
    listener.enqueue(live_frame(index=7, time_s=3600, size=(240, 320)))
    listener.enqueue(live_frame(index=8, time_s=0.6, size=(240, 320)))
    listener.close(60)
    day = "camera_0-20231114-"
    assert recordings(tmp_path) == [
        f"{day}221320-2.mp4", f"{day}221320-3.mp4", f"{day}221320.mp4", f"{day}231320.mp4"
    ]  # fmt: skip
    shown = [time_s for time_s, _ in decoded(tmp_path / f"{day}221320.mp4")]
    assert len(shown) == 5
    assert (np.diff(shown) > 0).all()
    assert [len(decoded(tmp_path / f"{day}221320-{number}.mp4")) for number in (2, 3)] == [2, 1]


def test_a_slow_source_stays_in_one_file(recorder, tmp_path):
    listener = recorder()
    for index in range(10):
        listener.enqueue(live_frame(index=index, time_s=30.0 * index))
    listener.close(60)
    assert [len(decoded(tmp_path / name)) for name in recordings(tmp_path)] == [1, 9]


def test_sources_have_their_own_files_whatever_they_are_called(recorder, tmp_path):
    sources = {
        "rtsp://***@10.0.0.1:554/cam?channel=1&password=hunter2": "rtsp_10.0.0.1_554_cam-",
        "rtsp://***@10.0.0.1:554/cam?channel=2&password=hunter2": "rtsp_10.0.0.1_554_cam-",
        "/dev/video0": "dev_video0-2",
        "dev/video0": "dev_video0-",
        "../../etc/passwd": "etc_passwd-2",
        "..": "unnamed-2",
        "日本 カメラ\n1": "日本_カメラ_1-2",
        "x" * 400: "x" * 80 + "-",
    }
    listener = recorder()
    for source in sources:
        for index in range(3):
            listener.enqueue(live_frame(source, index, index / 10))
    listener.close(60)
    names = recordings(tmp_path)
    assert len(names) == len(sources)
    assert not listener.failed
    for start in sources.values():
        assert sum(name.startswith(start) for name in names) >= 1, (start, names)
    assert "hunter2" not in str(names)


def test_the_frame_rate_is_limited_per_source(recorder, tmp_path):
    jitter = np.random.default_rng(1).uniform(-0.003, 0.003, 300)
    listener = recorder(fps=10)
    for index in range(300):
        for source in ("a", "b"):
            listener.enqueue(live_frame(source, index, 50 + index / 30 + jitter[index]))
    listener.enqueue(live_frame("a", 300, 3.0))  # its clock went back: not a frame that is too early
    listener.close(60)
    counts = [len(decoded(tmp_path / name)) for name in recordings(tmp_path)]
    assert sorted(counts) == [1, 100, 100]
    assert listener.dropped == 0


def test_what_is_too_slow_drops_frames_and_holds_nobody_up(recorder):
    go = threading.Event()

    def slow():
        assert go.wait(60)
        return picture()

    listener = recorder(waiting=8)
    for index in range(50):
        listener.enqueue(live_frame(index=index, time_s=index / 10, to_rgb=slow))
    assert listener.dropped >= 50 - 9
    go.set()
    listener.close(60)
    assert listener.handled + listener.dropped == 50


def test_a_frame_that_cannot_be_decoded_is_told_once(recorder, told, tmp_path):
    def broken():
        raise ValueError("no picture")

    listener = recorder()
    for index in range(10):
        more = {"to_rgb": broken} if index % 2 else {}
        listener.enqueue(live_frame(index=index, time_s=index / 10, **more))
    listener.enqueue(window())
    listener.enqueue(event())
    listener.close(60)
    assert told == [f"{tmp_path}: no picture"]
    assert listener.failed == 5
    assert [len(decoded(path)) for path in tmp_path.iterdir()] == [5]


def test_a_full_disk_is_told_once_and_recording_goes_on_later(small_disk, recorder, told, monkeypatch):
    monkeypatch.setattr(record, "RETRY_S", 0.05)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    folder = small_disk / "recordings"
    listener = recorder(folder, rotate_s=None)

    def enqueue(first, count):
        for index in range(first, first + count):
            listener.enqueue(
                live_frame(index=index, time_s=index / 10, to_rgb=lambda by=index * 7: np.roll(noise, by, 0))
            )
            until(lambda: not listener.waiting)
            time.sleep(0.002)

    enqueue(0, 600)
    assert len(told) == 1
    assert told[0].startswith(f"{folder}: recordings cannot be written (No space left on device)")
    assert listener.failed > 1
    assert listener.dropped
    before = len(list(folder.iterdir()))
    assert before <= 3, "no empty files pile up"
    for path in folder.iterdir():
        path.unlink()
    ballast.unlink()
    time.sleep(0.1)
    enqueue(600, 40)
    listener.close(60)
    assert decoded(max(folder.iterdir()))
    open_files = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    assert not [name for name in open_files if str(small_disk) in name]


def test_a_folder_that_was_deleted_is_made_again(recorder, told, tmp_path):
    folder = tmp_path / "a" / "b"
    listener = recorder(folder)
    for index in range(30):
        listener.enqueue(live_frame(index=index, time_s=index / 10))
    until(lambda: listener.handled == 30)
    (path,) = folder.iterdir()
    path.unlink()
    folder.rmdir()
    for index in range(30, 60):
        listener.enqueue(live_frame(index=index, time_s=index / 10))
    listener.close(60)
    assert (told, listener.failed, listener.dropped) == ([], 0, 0)
    assert len(decoded(next(folder.iterdir()))) == 20


def test_an_unwritable_folder_is_told_once_and_tried_again(recorder, told, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RETRY_S", 0.05)
    folder = tmp_path / "a"
    listener = recorder(folder)
    folder.rmdir()
    folder.touch()  # root may write anywhere, but not into a file
    for index in range(30):
        listener.enqueue(live_frame(index=index, time_s=index / 10))
        until(lambda: not listener.waiting)
        time.sleep(0.005)
    assert len(told) == 1
    assert told[0].startswith(f"{folder}: recordings cannot be written (")
    folder.unlink()
    time.sleep(0.1)
    listener.enqueue(live_frame(index=30, time_s=3.0))
    listener.close(60)
    assert len(decoded(next(folder.iterdir()))) == 1
    assert listener.dropped == 30


def test_a_source_that_stops_has_its_file_finished(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "GAP_S", 0.3)
    listener = recorder()
    frames = [live_frame(index=index, time_s=index / 100) for index in range(5)]
    for frame in frames:
        listener.enqueue(frame)
    listener.enqueue(look(frames[0]))
    seen = weakref.ref(frames.pop(0))
    until(lambda: listener.handled == 5)
    path = next(tmp_path.iterdir())
    until(lambda: len(decoded_or_none(path)) == 5)
    del frame, frames
    gc.collect()
    assert seen() is None, "a source that may never come back keeps no frame"


def decoded_or_none(path):
    try:
        return decoded(path)
    except av.error.FFmpegError:
        return []


def test_what_cannot_be_is_said_before_the_run(tmp_path, threads_begun):
    file = tmp_path / "file"
    file.touch()
    for options, text in (
        ({"rotate_mb": 0}, "rotate_mb of a recording must be more than 0, not 0"),
        ({"rotate_s": -1}, "rotate_s of a recording must be more than 0, not -1"),
        ({"fps": float("nan")}, "fps of a recording must be more than 0, not nan"),
        ({"keep": 0}, "keep must be at least 1 recording, the one being written, not 0"),
        ({"folder": file}, "is a file, but recordings are written into a folder"),
    ):
        with pytest.raises(UsageError, match=text):
            Recorder(**{"folder": tmp_path / "new", "spec": SPEC, "report": print, **options})
    with pytest.raises(AdaFocusError, match="cannot be written"):
        Recorder(Path("/proc/recordings"), SPEC, print)
    with pytest.raises(AdaFocusError, match="cannot be written"):
        Recorder(file / "below", SPEC, print)
    assert threads_begun == []
    assert WALL_S

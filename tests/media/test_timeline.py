"""When frames are shown: clocks that are set anew, long frames, rates that vary; held against FFmpeg's command line."""

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from adafocus_edge.errors import SourceError
from adafocus_edge.live.capture import Capture
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.media.preprocess import (
    model_frames,
    motion_frame_indices,
    motion_indices,
    preprocess,
    sample_indices,
)
from adafocus_edge.media.sources import Source
from adafocus_edge.media.timeline import on_one_clock
from adafocus_edge.media.video_file import VideoFile
from tests.conftest import CLIPS, edge
from tests.support.streams import need
from tests.support.videos import encode, ffmpeg, ffmpeg_frames, ffprobe

SIZE = (320, 240)
SHOW = "testsrc2=size=320x240:rate=25:duration=1"
OTHER = "testsrc=size=320x240:rate=25:duration=1"


@pytest.fixture(autouse=True)
def tools():
    need("ffmpeg")


def joined(folder: Path, suffix: str, codec: str, *offsets: float) -> Path:
    """Join recordings byte by byte, each on a clock that begins at its offset."""
    content = b""
    for number, offset_s in enumerate(offsets):
        part = folder / f"part{number}.{suffix}"
        options = ["-x265-params", "log-level=none"] if codec == "libx265" else ["-bf", "2"]
        ffmpeg(
            *("-f", "lavfi", "-i", (SHOW, OTHER)[number % 2], "-c:v", codec, *options, "-g", 10),
            *("-pix_fmt", "yuv420p", "-output_ts_offset", offset_s, part),
        )
        content += part.read_bytes()
    path = folder / f"joined.{suffix}"
    path.write_bytes(content)
    return path


JOINED = {
    "back": ("ts", "libx264", 10, 0),
    "back by less than a reordering": ("ts", "libx264", 0.2, 0),
    "the same times twice": ("ts", "libx264", 0, 0),
    "far back": ("ts", "libx264", 50_000, 0),
    "forward": ("ts", "libx264", 0, 50_000),
    "thrice": ("ts", "libx264", 100, 0, 30),
    "programme stream": ("mpg", "mpeg2video", 100, 0),
    "programme stream, twice the same": ("vob", "mpeg2video", 0, 0),
    "hevc": ("ts", "libx265", 10, 0),
    "mpeg-2 in ts": ("ts", "mpeg2video", 10, 9.5),
}


@pytest.mark.parametrize("kind", JOINED)
def test_joined_recordings_give_all_frames_in_the_order_of_the_file(kind, tmp_path):
    suffix, codec, *offsets = JOINED[kind]
    path = joined(tmp_path, suffix, codec, *offsets)
    expected = ffmpeg_frames(path, size=SIZE)
    assert len(expected) == 25 * len(offsets)
    video = VideoFile(str(path))
    assert video.frame_count == len(expected)
    for indices in (range(len(expected)), sample_indices(len(expected), 16), [len(expected) - 1], [24, 25]):
        found = dict(video.select(indices, lambda rgb: rgb))
        assert all(np.abs(found[n].astype(int) - expected[n]).mean() < 1 for n in indices)
    assert [video.time_s(n) for n in range(len(expected))] == pytest.approx(np.arange(len(expected)) / 25, abs=1e-3)
    assert video.duration_s == pytest.approx(len(offsets), abs=1e-3)


def test_a_clock_that_runs_on_is_left_alone():
    assert on_one_clock([0, 40, 90, 5000]) == [0, 40, 90, 5000]
    assert on_one_clock([0, 40, 80, 5000, 5040], longest_gap=1000) == [0, 40, 80, 120, 160]
    assert on_one_clock([900, 940, 980, 20, 60]) == [900, 940, 980, 1020, 1060]


SLOW = {
    "one frame a second": ("-r", "1", "-i", "{frames}/image_%05d.jpg", "-frames:v", "5"),
    "one every ten seconds": ("-r", "0.1", "-i", "{frames}/image_%05d.jpg", "-frames:v", "4"),
    "slides, a long last one": ("-f", "concat", "-safe", "0", "-i", "{slides}", "-fps_mode", "vfr"),
}


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4"])
@pytest.mark.parametrize("kind", SLOW)
def test_slow_files_are_whole(kind, suffix, tmp_path):
    frames = sorted(Path("tests/golden/actnet96").resolve().glob("*.jpg"))[:4]
    slides = tmp_path / "slides.txt"
    slides.write_text("".join(f"file '{p}'\nduration {d}\n" for p, d in zip(frames, (1, 2, 1, 30), strict=False)))
    path = tmp_path / f"slow.{suffix}"
    options = [part.format(frames=frames[0].parent, slides=slides) for part in SLOW[kind]]
    codec = ["libvpx-vp9", "-cpu-used", 8] if suffix == "webm" else ["libx264"]
    ffmpeg(*options, "-vf", "scale=64:64", "-c:v", *codec, "-pix_fmt", "yuv420p", path)
    expected = ffmpeg_frames(path)
    video = VideoFile(str(path))
    assert video.frame_count == len(expected) >= 3
    assert len(list(video.select(range(len(expected)), lambda rgb: rgb))) == len(expected)
    assert video.duration_s == pytest.approx(float(ffprobe(path, "format=duration")[0]), abs=0.05)


def test_a_long_last_frame_whose_block_has_no_duration(tmp_path):
    """As mkvmerge and cameras write it: the head promises more than the last frame's time."""
    path = encode(tmp_path / "slides.mkv", frames=6, rate=1, options={"g": "1"}, pts=[0, 1, 2, 3, 4, 5])
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88")  # Duration, a number of 8 bytes, in milliseconds
    content[at + 3 : at + 11] = np.array(60_000.0, ">f8").tobytes()
    path.write_bytes(content)
    assert VideoFile(str(path)).frame_count == 6


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_matroska_file_that_is_cut_short_is_refused(share, tmp_path):
    path = encode(tmp_path / "clip.mkv", options={"g": "30"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SourceError, match="cut short"):
        VideoFile(str(path))


def test_a_matroska_file_that_was_written_live_has_no_end_to_miss(tmp_path):
    source = encode(tmp_path / "clip.mkv", options={"g": "30"})
    live = tmp_path / "live.mkv"
    ffmpeg("-i", source, "-c", "copy", "-live", 1, live)
    live.write_bytes(live.read_bytes()[: live.stat().st_size // 2])
    assert VideoFile(str(live)).frame_count == len(ffmpeg_frames(live, size=SIZE))


# --- motion ----------------------------------------------------------------------------------------------------------

GAP_S = 0.1
VARYING = {
    "slow, then fast": [6 * n for n in range(40)] + [240 + n for n in range(80)],
    "with a pause": [n + 60 * (n > 50) for n in range(120)],
    "dropped frames": [n + n // 7 for n in range(120)],
    "jitter": [10 * n + (n * 7 % 5) for n in range(120)],
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("kind", VARYING)
def test_motion_goes_by_time_stamps_where_the_rate_varies(kind, suffix, tmp_path):
    rate = 300 if kind == "jitter" else 30
    path = encode(tmp_path / f"varying.{suffix}", pts=VARYING[kind], rate=rate, options={"g": "30"})
    times = np.array([float(time.strip(",")) for time in ffprobe(path, "frame=pts_time")])
    times -= times[0]
    assert len(times) == 120
    video = VideoFile(str(path))
    for index in range(120):
        two, one, now = motion_frame_indices(video, index, GAP_S)
        assert now == index
        for found, gaps in ((one, 1), (two, 2)):
            off = np.abs(times[: index + 1] - (times[index] - gaps * GAP_S))
            assert off[found] <= off.min() + 1.1e-3  # Matroska rounds to milliseconds


@pytest.mark.parametrize("rate", [5, 12, 15, 25, 30, 60, Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_motion_at_a_constant_rate_counts_frames_as_before(rate, suffix, tmp_path):
    path = tmp_path / f"constant.{suffix}"
    codec = ["mpeg4"] if suffix == "avi" else ["libx264", "-bf", "2"]
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=64x64:rate={rate}", "-frames:v", 40, "-c:v", *codec, path)
    video = VideoFile(str(path))
    assert video.is_constant_rate
    gap = max(1, round(float(rate) * GAP_S))
    for index in range(40):
        found = motion_frame_indices(video, index, GAP_S)
        assert found == (max(0, index - 2 * gap), max(0, index - gap), index) == motion_indices(index, rate, GAP_S)


@pytest.mark.parametrize("rate", [12, 15, 24, 60])
def test_a_constant_rate_that_was_rounded_to_milliseconds_is_one(rate, tmp_path):
    path = encode(tmp_path / "rounded.mp4", pts=[round(1000 * n / rate) for n in range(120)], rate=1000)
    video = VideoFile(str(path))
    gap = max(1, round(video.fps * GAP_S))
    assert gap == max(1, round(rate * GAP_S))
    assert all(motion_frame_indices(video, n, GAP_S) == (n - 2 * gap, n - gap, n) for n in range(2 * gap, 120))


def test_frames_that_prepare_wrote_keep_their_times(tmp_path):
    videos = tmp_path / "videos" / "a"
    videos.mkdir(parents=True)
    path = encode(videos / "varying.mp4", pts=VARYING["slow, then fast"], options={"g": "30"})
    encode(videos / "constant.mp4")
    done = edge("prepare", videos.parent, "-o", tmp_path / "out", "--size", 64, "--val-share", "0.5")
    assert done.returncode == 0, done.stderr
    folder = FrameFolder(str(tmp_path / "out" / "frames" / "a" / "varying"), 120)
    video = VideoFile(str(path))
    assert not folder.is_constant_rate
    assert all(motion_frame_indices(folder, n, GAP_S) == motion_frame_indices(video, n, GAP_S) for n in range(120))
    assert FrameFolder(str(tmp_path / "out" / "frames" / "a" / "constant")).time_s(7) is None
    (tmp_path / "out" / "frames" / "a" / "varying" / "times.txt").write_text("0\n1\n")
    with pytest.raises(SourceError, match="times.txt: 2 times for 120 frames"):
        FrameFolder(str(tmp_path / "out" / "frames" / "a" / "varying"), 120)


def test_frames_of_a_folder_are_counted(tmp_path):
    folder = FrameFolder("tests/golden/actnet96")
    assert motion_frame_indices(folder, 10, GAP_S) == motion_indices(10, 25.0, GAP_S)


def test_a_model_sees_the_three_frames_that_are_nearest_in_time(tmp_path):
    """Found here with FFmpeg and Pillow."""
    from PIL import Image

    from adafocus_edge.bundle.store import default_bundle, read_bundle

    spec = read_bundle(default_bundle()).spec
    path = encode(tmp_path / "varying.mp4", pts=VARYING["slow, then fast"], options={"g": "30"})
    frames = ffmpeg_frames(path, size=SIZE)
    times = np.array([float(time.strip(",")) for time in ffprobe(path, "frame=pts_time")])
    grey = [preprocess(Image.fromarray(frame).convert("L"), spec.frame_size, spec.fit) for frame in frames]
    for index, pixels in model_frames(VideoFile(str(path)), [20, 45, 100], spec):
        for channel, gaps in enumerate((2, 1, 0)):
            off = np.abs(times - (times[index] - gaps * spec.motion_gap_s))
            nearest = np.flatnonzero(off <= off.min() + 1e-6)
            differences = [np.abs(pixels[..., channel].astype(int) - one).mean() for one in grey]
            assert differences[int(np.argmin(differences))] <= 1  # the product scales the planes, here RGB is scaled
            assert int(np.argmin(differences)) in nearest


@pytest.mark.parametrize("kind", VARYING)
def test_a_live_run_of_a_file_shows_the_motion_that_a_clip_does(kind, tmp_path):
    from adafocus_edge.bundle.store import default_bundle, read_bundle

    spec = read_bundle(default_bundle()).spec
    rate = 300 if kind == "jitter" else 30
    path = encode(tmp_path / "varying.mp4", pts=VARYING[kind], rate=rate, options={"g": "30"})
    arrived = threading.Condition()
    capture = Capture(Source("file", str(path)), spec, CaptureOptions(glimpse_fps=7.0), arrived)
    capture.start()
    seen = {}
    with arrived:
        while not capture.finished:
            if (prepared := capture.take()) is not None:
                seen[prepared.frame.index] = prepared.pixels
            else:
                arrived.wait(1.0)
    capture.close()
    assert len(seen) >= 12
    expected = dict(model_frames(VideoFile(str(path)), sorted(seen), spec))
    assert all(np.array_equal(seen[index], expected[index]) for index in seen)


def test_real_clips_of_a_constant_and_of_a_varying_rate_are_known_as_such():
    for clip in ("v_SoccerJuggling_g23_c01.avi", "R6llTwEh07w.mp4"):
        assert VideoFile(str(CLIPS / clip)).is_constant_rate
    assert not VideoFile(str(CLIPS / "people_1080p.mp4")).is_constant_rate  # six frames are missing near its end

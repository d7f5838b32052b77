"""Field-coded H.264: as many frames as FFmpeg has, with its pixels, at its times, whatever the container."""

import json

import numpy as np
import pytest

from adafocus_edge.media.fields import FieldPairs
from adafocus_edge.media.video_file import VideoFile
from tests.conftest import edge
from tests.support.streams import need
from tests.support.videos import encode, ffmpeg, ffmpeg_frames, ffprobe, mux_fields

PATTERNS = {
    "top first": "tb" * 20,
    "bottom first": "bt" * 20,
    "of their own": "TB" * 20,
    "mixed": "FFFtbTBFFtbFFFFtbTBTB",
    "frames first": "F" * 12 + "TB" * 12,
}


@pytest.fixture(autouse=True)
def tools():
    need("ffmpeg")


@pytest.mark.parametrize("suffix", ["ts", "mp4", "mkv", "avi"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_fields_are_one_frame(pattern, suffix, tmp_path):
    path = mux_fields(tmp_path / f"fields.{suffix}", PATTERNS[pattern])
    expected = ffmpeg_frames(path)
    assert len(expected) == PATTERNS[pattern].count("F") + len(PATTERNS[pattern].replace("F", "")) // 2
    video = VideoFile(str(path))
    assert video.frame_count == len(expected)
    for indices in (range(video.frame_count), range(1, video.frame_count, 3), [video.frame_count - 1]):
        found = dict(video.select(indices, lambda rgb: rgb))
        assert list(found) == list(indices)
        # FFmpeg's command line converts colours with rounding of its own.
        assert all(np.abs(found[n].astype(int) - expected[n]).max() <= 2 for n in indices)


@pytest.mark.parametrize("suffix", ["ts", "mp4", "mkv"])
def test_times_are_those_of_frames(suffix, tmp_path):
    path = mux_fields(tmp_path / f"fields.{suffix}", "TB" * 20)
    times = [float(time) for time in ffprobe(path, "frame=pts_time")[:20]]
    video = VideoFile(str(path))
    assert [video.time_s(n) for n in range(20)] == pytest.approx([time - times[0] for time in times], abs=2e-3)
    assert video.fps == pytest.approx(25)
    assert video.duration_s == pytest.approx(20 / 25, abs=2e-3)


def test_joined_recordings_in_fields(tmp_path):
    part = mux_fields(tmp_path / "fields.ts", "TB" * 20)
    later = tmp_path / "later.ts"
    ffmpeg("-i", part, "-c", "copy", "-output_ts_offset", 500, later)
    path = tmp_path / "joined.ts"
    for order in ((later, part), (part, later), (part, part)):
        path.write_bytes(b"".join(each.read_bytes() for each in order))
        assert len(ffmpeg_frames(path)) == 40
        video = VideoFile(str(path))
        assert video.frame_count == 40
        assert video.fps == pytest.approx(25, rel=0.01)
        assert video.duration_s == pytest.approx(1.6, abs=0.05)


def test_the_stream_of_a_broadcaster_without_a_container(tmp_path):
    path = mux_fields(tmp_path / "fields.ts", "TB" * 20)
    bare = mux_fields(tmp_path / "bare.h264", "TB" * 20)
    assert VideoFile(str(bare)).frame_count == len(ffmpeg_frames(bare)) == VideoFile(str(path)).frame_count


def test_a_progressive_file_is_never_looked_through(tmp_path):
    import av

    with av.open(str(encode(tmp_path / "plain.mp4", frames=10))) as container:
        assert not FieldPairs(container.streams.video[0].codec_context).possible


def test_prepare_counts_and_samples_frames(tmp_path):
    source = tmp_path / "videos" / "a"
    source.mkdir(parents=True)
    for name in ("one", "two"):
        mux_fields(source / f"{name}.ts", "TB" * 50)
    out = tmp_path / "out"
    assert edge("prepare", source.parent, "-o", out, "--no-frames", "--val-share", "0.5").returncode == 0
    lists = [out / f"custom_{part}_split.txt" for part in ("train", "val")]
    assert [line.split(",")[1] for path in lists for line in path.read_text().splitlines()] == ["50", "50"]
    thinned = tmp_path / "thinned"
    assert edge("prepare", source.parent, "-o", thinned, "--fps", "12.5", "--val-share", "0.5").returncode == 0
    assert [len(list(folder.glob("image_*.jpg"))) for folder in thinned.glob("frames/*/*")] == [25, 25]


def test_a_live_run_keeps_the_times_of_the_file(tmp_path):
    path = mux_fields(tmp_path / "fields.ts", "TB" * 50)
    done = edge("classify", path, "--glimpse-fps", "4", "--json")
    assert done.returncode == 0, done.stderr
    windows = [json.loads(line) for line in done.stdout.splitlines()]
    times = [step["time_s"] for window in windows for step in window["steps"]]
    assert times == pytest.approx([0.12 + 0.25 * n for n in range(8)], abs=0.041)  # one frame

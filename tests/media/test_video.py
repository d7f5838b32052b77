"""Video files: the frames that seeking gives are the ones that decoding everything gives, or the file is refused."""

import gc
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from adafocus_edge.errors import SourceError
from adafocus_edge.live.readers import clip_pictures
from adafocus_edge.media import video_file as video_module
from adafocus_edge.media.grey import grey_frame
from adafocus_edge.media.orientation import upright, upright_size
from adafocus_edge.media.preprocess import sample_indices
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.system import cpu as cpus
from tests.conftest import CLIPS, GOLDEN, ROOT
from tests.support.streams import need
from tests.support.videos import all_frames, encode, ffmpeg, ffmpeg_frames, rotate_clockwise, set_matrix

KINDS = {
    "closed.mp4": {"options": {"g": "48"}},
    "open-gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=24:bframes=4:b-pyramid=normal"}},
    "one-key.mp4": {"options": {"g": "1000"}},
    "plain.mkv": {"options": {"g": "30"}},
    "plain.ts": {"options": {"g": "30"}},
    "plain.mov": {"options": {"g": "30"}},
    "b-frames.avi": {"options": {"g": "30", "bf": "3"}},
    "no-b.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "40"}, "frames": 60},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "keyint=30:log-level=none"}},
    "fragments.mp4": {"options": {"g": "30", "movflags": "frag_keyframe+empty_moov"}},
    "ten-bit.mp4": {"options": {"g": "30"}, "pix_fmt": "yuv420p10le"},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "uneven.mp4": {"options": {"g": "30"}, "pts": [n + 9 * (n > 50) + n // 7 for n in range(120)]},
    "slower.mp4": {"options": {"g": "30", "bf": "3"}, "pts": [n + max(0, n - 60) // 2 for n in range(120)]},
    "jitter.mp4": {"options": {"g": "30", "bf": "3"}, "pts": [10 * n + (n * 7 % 5) for n in range(120)], "rate": 300},
    "same-times.mkv": {"options": {"g": "30", "bf": "0"}, "pts": [n // 3 for n in range(120)], "rate": 3000},
    "trimmed.mp4": {"options": {"g": "30", "bf": "2"}, "pts": [n - 45 for n in range(120)]},
    "gaps.avi": {"codec": "mpeg4", "options": {"g": "12"}, "pts": [n + n // 25 for n in range(120)]},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}, "frames": 60},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12"}, "frames": 60},
    "plain.h264": {"options": {"g": "30"}},
    "12:30.mp4": {"options": {"g": "30"}},
    "odd.mkv": {"codec": "ffv1", "size": (321, 241), "pix_fmt": "yuv444p"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_seeking_gives_the_frames_that_decoding_everything_gives(kind, tmp_path):
    path = encode(tmp_path / kind, **KINDS[kind])
    expected = all_frames(path)
    video = VideoFile(str(path))
    assert video.frame_count == len(expected)
    for indices in (
        sample_indices(video.frame_count, 16),
        range(video.frame_count),
        [video.frame_count - 1],
        [3, 3, 7],
    ):
        found = list(video.select(indices, lambda rgb: rgb))
        assert [index for index, _ in found] == list(indices)
        assert all(np.array_equal(pixels, expected[index]) for index, pixels in found)
    assert [index for index, _ in video.frames()] == list(range(len(expected)))


@pytest.mark.parametrize(
    "kind",
    ["closed.mp4", "open-gop.mp4", "plain.ts", "b-frames.avi", "motion.avi", "uneven.mp4", "plain.h264", "gaps.avi"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_of_one_core_decodes_in_order_and_gets_the_same_frames(kind, tmp_path, monkeypatch, threads_begun):
    monkeypatch.setattr(cpus, "_limits", [1])
    path = encode(tmp_path / kind, **KINDS[kind])
    expected = all_frames(path)
    for indices in (range(len(expected)), sample_indices(len(expected), 16), [1, 1, 30, 31, 119], [len(expected) - 1]):
        wanted = [index for index in indices if index < len(expected)]
        for index, pixels in VideoFile(str(path)).select(wanted, lambda rgb: rgb):
            assert np.array_equal(pixels, expected[index])
    assert threads_begun == []


def test_seeking_ends_where_decoding_on_costs_less(tmp_path):
    video = VideoFile(str(encode(tmp_path / "clip.mp4", frames=60, options={"g": "10", "sc_threshold": "0"})))
    timeline = video._timeline
    assert timeline.keys == [0, 10, 20, 30, 40, 50]
    every = list(range(60))
    assert timeline.join_runs(timeline.runs(every)) == [every]
    # Two frames lie between frame 7 and the key frame 10; three between 16 and 20.
    assert timeline.join_runs(timeline.runs([2, 7, 12, 16, 25, 55])) == [[2, 7, 12, 16], [25], [55]]


def test_a_file_that_must_be_counted_is_decoded_once(tmp_path, monkeypatch):
    path = encode(tmp_path / "b-frames.avi", **KINDS["b-frames.avi"])
    decoded = []
    decode = VideoFile._decode
    monkeypatch.setattr(VideoFile, "_decode", lambda *a: (decoded.append(1) or frame for frame in decode(*a)))
    video = VideoFile(str(path))
    for _ in range(2):  # the first reader gets what was decoded to count; the second decodes again
        assert all(np.array_equal(rgb, all_frames(path)[n]) for n, rgb in video.select([3, 60], lambda rgb: rgb))
    assert len(decoded) == video.frame_count + 61
    monkeypatch.setattr(video_module, "HELD_BYTES", 320 * 240)
    decoded.clear()
    assert len(list(VideoFile(str(path)).select([3, 60], lambda rgb: rgb))) == 2
    assert len(decoded) == video.frame_count + 61


@pytest.mark.parametrize("suffix", ["avi", "mov"])
def test_a_palette_that_comes_with_the_first_frame_only_is_not_lost(suffix, tmp_path):
    need("ffmpeg")
    path = tmp_path / f"palette.{suffix}"
    fight = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
    ffmpeg("-i", fight, "-vf", "scale=64:36", "-an", "-c:v", "rawvideo", "-pix_fmt", "pal8", path)
    video, expected = VideoFile(str(path)), all_frames(path)
    assert video.frame_count == len(expected)
    assert video.time_s(30) == pytest.approx(30 * 1001 / 30000, abs=1e-3)
    for index, pixels in video.select([0, 7, 30, len(expected) - 1], lambda rgb: rgb):
        assert pixels.max() > 100
        assert np.array_equal(pixels, expected[index])


def test_one_converter_serves_pictures_of_many_kinds():
    with av.open(str(CLIPS / "R6llTwEh07w.mp4")) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(3), strict=False)]
    kinds = []
    for space, colour_range in itertools.product((1, 5, 9, 2), (1, 2)):
        for frame in frames:
            kind = av.VideoFrame.from_ndarray(frame.to_ndarray(format="yuv420p"), format="yuv420p")
            kind.colorspace, kind.color_range = space, colour_range
            kinds.append(kind)
    order = np.random.default_rng(0).permutation(len(kinds) * 2) % len(kinds)
    assert all(np.array_equal(upright(kinds[n]), kinds[n].to_ndarray(format="rgb24", threads=1)) for n in order)
    assert len({upright(kind).tobytes() for kind in kinds[::3]}) > 3


@pytest.mark.parametrize("clip", sorted(p.name for p in CLIPS.iterdir() if p.suffix in (".mp4", ".avi")))
def test_real_clips(clip):
    expected = all_frames(CLIPS / clip)
    video = VideoFile(str(CLIPS / clip))
    assert video.frame_count == len(expected)
    for index, pixels in video.select(sample_indices(len(expected), 16), lambda rgb: rgb):
        assert np.array_equal(pixels, expected[index])
    assert video.duration_s == pytest.approx(len(expected) / video.fps, rel=0.05)


def test_a_long_file_is_not_decoded_whole(tmp_path, monkeypatch):
    path = encode(tmp_path / "long.mp4", frames=300, options={"g": "10", "bf": "2"})
    decoded = []
    decode = VideoFile._decode_from_here
    monkeypatch.setattr(VideoFile, "_decode_from_here", lambda *a: (decoded.append(1) or frame for frame in decode(*a)))
    video = VideoFile(str(path))
    assert len(list(video.select(sample_indices(300, 16), lambda rgb: None))) == 16
    assert 16 <= len(decoded) < 16 * 10


def test_a_file_with_an_index_is_opened_once(tmp_path, monkeypatch):
    path = encode(tmp_path / "indexed.mp4", options={"g": "30"})
    opened = []

    def counting(address, name):
        opened.append(open_container(address, name))
        return opened[-1]

    open_container = video_module.open_container
    monkeypatch.setattr(video_module, "open_container", counting)
    monkeypatch.setattr(cpus, "usable_cores", lambda: 1)
    monkeypatch.setattr(video_module, "usable_cores", lambda: 1)
    clip = VideoFile(str(path))
    wanted = [*range(3, 40, 9)]
    first = dict(clip.select(wanted, np.copy))
    assert len(opened) == 1
    second = dict(clip.select(wanted, np.copy))
    assert len(opened) == 2
    for index in wanted:
        np.testing.assert_array_equal(first[index], second[index])


def test_a_clip_that_nobody_reads_leaves_no_file_open(tmp_path):
    path = encode(tmp_path / "indexed.mp4", options={"g": "30"})

    def links():
        return sum(os.path.realpath(link) == str(path.resolve()) for link in Path("/proc/self/fd").iterdir())

    clip = VideoFile(str(path))
    assert links() == 1
    del clip
    assert links() == 0
    for index, _ in VideoFile(str(path)).frames():
        assert (index, links()) == (index, 1)
    assert links() == 0


def test_reading_may_stop_early(tmp_path):
    video = VideoFile(str(encode(tmp_path / "clip.mp4", options={"g": "10"})))
    frames = video.select(range(0, 120, 8), lambda rgb: rgb.shape)
    assert next(frames) == (0, (240, 320, 3))
    frames.close()


def test_times_are_presentation_times(tmp_path):
    pts = [n + 9 * (n > 50) for n in range(120)]
    video = VideoFile(str(encode(tmp_path / "uneven.mp4", pts=pts)))
    assert [video.time_s(n) for n in (0, 50, 51, 119)] == pytest.approx([0, 50 / 30, 60 / 30, 128 / 30], abs=1e-3)


def test_rotation_is_applied(tmp_path):
    path = encode(tmp_path / "phone.mp4", frames=20)
    upright = all_frames(path)
    rotate_clockwise(path)
    video = VideoFile(str(path))
    for index, pixels in video.select(range(20), lambda rgb: rgb):
        assert np.array_equal(pixels, np.rot90(upright[index], -1))
    assert all(np.array_equal(pixels, np.rot90(upright[index], -1)) for index, pixels in video.frames())


MATRICES = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down in a mirror": (1, 0, 0, -1),
    "half turned": (-1, 0, 0, -1),
    "turned right": (0, 1, -1, 0),
    "turned left": (0, -1, 1, 0),
    "mirrored and turned left": (0, 1, 1, 0),
    "mirrored and turned right": (0, -1, -1, 0),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_a_display_matrix_turns_and_mirrors_as_ffmpeg_does(kind, tmp_path):
    need("ffmpeg")
    path = encode(tmp_path / "phone.mp4", frames=6)
    set_matrix(path, *MATRICES[kind])
    sideways = MATRICES[kind][0] == 0
    size = (240, 320) if sideways else (320, 240)
    expected = ffmpeg_frames(path, size=size)
    video = VideoFile(str(path))
    assert all(np.array_equal(pixels, expected[index]) for index, pixels in video.frames())
    assert all(np.array_equal(pixels, expected[index]) for index, pixels in video.select([1, 4], lambda rgb: rgb))
    live = [picture for _, picture in clip_pictures(video)]
    assert all(np.array_equal(picture.to_rgb(), expected[index]) for index, picture in enumerate(live))
    assert {(picture.width, picture.height) for picture in live} == {size}
    if kind == "as stored":
        video.nv12()
    else:
        with pytest.raises(SourceError, match="rotation or mirror flag"):
            video.nv12()


def test_broken_recordings_whose_frames_can_be_decoded_are_not_called_damaged(tmp_path):
    """Packets promise frames that decoding gives at other times: here each second one lacks what it builds on."""
    path = encode(tmp_path / "late.ts", frames=60, options={"g": "30", "bf": "0"})
    video = VideoFile(str(path))
    moved = [time + (900 if number % 2 else 0) for number, time in enumerate(video._timeline.times)]
    video._timeline = replace(video._timeline, times=moved)
    expected = all_frames(path)
    found = dict(video.select(range(60), lambda rgb: rgb))
    assert all(np.array_equal(found[number], expected[number]) for number in range(60))


def broken(kind, tmp_path):
    path = tmp_path / "clip.mp4"
    whole = CLIPS / "R6llTwEh07w.mp4"
    if kind == "missing":
        return path
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes())
    elif kind == "no index":
        path.write_bytes(whole.read_bytes()[:400_000])  # the index lies at its end
    elif kind == "cut":
        encode(path, options={"movflags": "faststart", "g": "30"})
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif kind == "cut mkv":
        path = encode(tmp_path / "clip.mkv", options={"g": "30"})
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "picture":
        shutil.copy(GOLDEN / "actnet96" / "image_00001.jpg", path)
    elif kind == "text file":
        path = tmp_path / "notes.txt"
        path.write_text("this is no video\n" * 100)
    elif kind == "cut avi":
        path = tmp_path / "clip.avi"
        path.write_bytes((CLIPS / "v_SoccerJuggling_g23_c01.avi").read_bytes()[:300_000])
    elif kind == "sound only":
        with av.open(str(path), "w") as target:
            stream = target.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
    elif kind == "no frames":
        with av.open(str(path), "w") as target:
            stream = target.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            target.start_encoding()
    return path


BROKEN = {
    "missing": "no such file",
    "fifo": "not seekable",
    "empty": "empty",
    "text": "not a video",
    "noise": "not a video",
    "no index": "cut short",
    "cut": "cut short",
    "cut avi": "cut short",
    "cut mkv": "cut short",
    "picture": "not a video",
    "text file": "not a video",
    "sound only": "no video",
    "no frames": "no video|no frames",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_in_words(kind, tmp_path):
    path = broken(kind, tmp_path)
    with pytest.raises(SourceError) as refused:
        list(VideoFile(str(path)).select([0], lambda rgb: rgb))
    assert str(path) in str(refused.value)
    assert re.search(BROKEN[kind], str(refused.value))
    assert "\n" not in str(refused.value)


def test_damage_in_the_middle_gives_frames_or_one_error(tmp_path):
    for seed in range(8):
        content = bytearray((CLIPS / "v_SoccerJuggling_g23_c01.avi").read_bytes())
        where = np.random.default_rng(seed).integers(20_000, len(content) - 40_000, 200)
        for at in where:
            content[at] ^= 0xFF
        path = tmp_path / f"{seed}.avi"
        path.write_bytes(content)
        try:
            video = VideoFile(str(path))
            found = list(video.select(sample_indices(video.frame_count, 16), lambda rgb: rgb))
        except SourceError as refused:
            assert str(path) in str(refused)  # noqa: PT017 - either is right
        else:
            assert len(found) == 16


def test_a_video_may_have_any_name(tmp_path):
    path = tmp_path / "no suffix at all"
    shutil.copy(CLIPS / "R6llTwEh07w.mp4", path)
    assert VideoFile(str(path)).frame_count == 303


USES = {
    "upright_size": upright_size,
    "upright": upright,
    "grey_frame": lambda frame: grey_frame(frame, 64, "squash"),
}


def let_go(use, path):
    """Run in a process of its own: others' frames count, too."""
    gc.collect()
    gc.disable()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            USES[use](frame)
        del frame
        held = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    assert held <= 1, held


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("use", list(USES))
def test_a_frame_is_let_go_with_its_last_reference(use, turned, tmp_path):
    """Not when Python looks for cycles of objects: hundreds of frames of megabytes would wait for that."""
    path = encode(tmp_path / "film.mp4", frames=40)
    if turned:
        rotate_clockwise(path)
    code = f"from tests.media.test_video import let_go; let_go({use!r}, {str(path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)

"""The modes of decoding: which frames are seen, what must be decoded for them, and how far their pixels may differ."""

import bisect
import functools
import http.server
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from adafocus_edge import AdaFocus
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import UsageError
from adafocus_edge.media.containers import OPEN_OPTIONS
from adafocus_edge.media.decode_modes import SAVED_FRAMES, reached_soonest
from adafocus_edge.media.preprocess import input_pixels, motion_frame_indices, sample_indices, sampled_frames
from adafocus_edge.media.sources import Source
from adafocus_edge.media.video_file import VideoFile
from tests.conftest import edge
from tests.support.ranges import send_part
from tests.support.videos import all_frames, encode

KEYED = {"g": "30", "keyint_min": "30", "sc_threshold": "0", "bf": "2"}
"""A key frame every 30 frames."""
HEVC = {"preset": "ultrafast", "x265-params": "keyint=300:log-level=none"}


def key_frames(path):
    """Return the numbers of a file's key frames, found by decoding all of it."""
    with av.open(str(path), **OPEN_OPTIONS) as container:
        return [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]


def unfiltered_frames(path):
    """Decode a whole file in one go with FFmpeg's option, as RGB."""
    with av.open(str(path), **OPEN_OPTIONS) as container:
        container.streams.video[0].codec_context.options = {"skip_loop_filter": "all"}
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rgb_spec(**more):
    return replace(read_bundle(default_bundle()).spec, motion_gap_s=0.0, **more)


def seen(path, mode, spec):
    """Return the frames that a model is given: their numbers and pixels."""
    found = list(sampled_frames(Source(path.name, str(path), decode=mode).open_clip(), spec))
    return [index for index, _ in found], [frame for _, frame in found]


@pytest.fixture
def decoded(monkeypatch):
    """Count the frames that decoders return to runs."""
    counted = []
    decode = VideoFile._decode_from_here
    monkeypatch.setattr(VideoFile, "_decode_from_here", lambda *a: (counted.append(1) or frame for frame in decode(*a)))
    return counted


def same(path, numbers, frames, spec):
    """Whether frames are those that exact decoding of these numbers gives."""
    expected = input_pixels(VideoFile(str(path)), numbers, spec)
    return all(np.array_equal(frame, pixels) for frame, (_, pixels) in zip(frames, expected, strict=True))


# -- without the loop filter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec", "options"), [("a.mp4", "libx264", {"g": "300"}), ("b.mp4", "libx265", HEVC)])
def test_unfiltered_frames_are_those_of_ffmpeg_without_its_loop_filter(name, codec, options, tmp_path):
    path = encode(tmp_path / name, codec=codec, options=options)
    video = VideoFile(str(path), decode="unfiltered")
    assert video.decode == "unfiltered"
    expected, exact = unfiltered_frames(path), all_frames(path)
    found = list(video.select(sample_indices(120, 16), lambda rgb: rgb))
    assert [index for index, _ in found] == sample_indices(120, 16)
    assert all(np.array_equal(pixels, expected[index]) for index, pixels in found)
    drift = [np.abs(pixels.astype(int) - exact[index]).mean() for index, pixels in found]
    assert 0.2 < max(drift) < 6
    # Whoever reads the whole file, as to draw on it, gets its exact frames.
    assert all(np.array_equal(pixels, exact[index]) for index, pixels in video.frames())


WITHOUT = {
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "40"}),
    "vp8.webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "g": "40"}),
    "av1.mp4": ("libsvtav1", {"preset": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12"}),
    "lossless.mkv": ("ffv1", {}),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_other_codecs_are_decoded_exactly(name, tmp_path):
    codec, options = WITHOUT[name]
    path = encode(tmp_path / name, frames=40, codec=codec, options=options)
    video, expected = VideoFile(str(path), decode="unfiltered"), all_frames(path)
    assert video.decode == "exact"
    assert all(np.array_equal(pixels, expected[index]) for index, pixels in video.select([3, 20, 39], lambda rgb: rgb))


# -- key frames -------------------------------------------------------------------------------------------------------


def test_segments_with_a_key_frame_show_it_and_few_frames_are_decoded(tmp_path, decoded):
    path, spec = encode(tmp_path / "keyed.mp4", frames=300, options=KEYED), rgb_spec(segments=8)
    keys = key_frames(path)
    assert keys[:9] == list(range(0, 270, 30))  # and one where the clip that was encoded again had one
    usual, _ = seen(path, "exact", spec)
    assert usual == sample_indices(300, 8)
    exactly = len(decoded)
    decoded.clear()
    found, frames = seen(path, "key-frames", spec)
    assert len(decoded) <= 2 * 8 < exactly / 3
    for number, (index, middle) in enumerate(zip(found, usual, strict=True)):
        inside = [key for key in keys if 300 * number / 8 <= key < 300 * (number + 1) / 8]
        if index == middle:
            assert min(abs(middle - key) for key in keys if key <= middle) < SAVED_FRAMES
        else:
            assert abs(index - middle) == min(abs(key - middle) for key in inside)
            assert index in inside
    assert sum(index != middle for index, middle in zip(found, usual, strict=True)) >= 5
    assert same(path, found, frames, spec)


def test_a_frame_that_shows_motion_keeps_its_gap(tmp_path, decoded):
    path = encode(tmp_path / "keyed.mp4", frames=300, options=KEYED)
    spec = replace(rgb_spec(segments=8), motion_gap_s=0.1)
    usual, _ = seen(path, "exact", spec)
    exactly = len(decoded)
    decoded.clear()
    found, frames = seen(path, "key-frames", spec)
    assert len(decoded) < exactly / 2
    assert min(found) >= 6  # two gaps: nothing lies before the clip
    moved = [index for index, middle in zip(found, usual, strict=True) if index != middle]
    assert len(moved) >= 5
    assert {index - 6 for index in moved} <= set(key_frames(path))
    assert same(path, found, frames, spec)


def test_exact_decoding_sees_the_middle_of_each_segment(tmp_path):
    path, spec = encode(tmp_path / "keyed.mp4", options=KEYED), rgb_spec(segments=16)
    found, frames = seen(path, "exact", spec)
    assert found == sample_indices(120, 16)
    assert same(path, found, frames, spec)
    assert VideoFile(str(path)).decode == "exact"


UNMOVED = {
    "frames are counted": ("b-frames.avi", 120, {"g": "30", "bf": "3"}),
    "fewer frames than segments": ("short.mp4", 10, KEYED),
    "as many as segments": ("sixteen.mp4", 16, KEYED),
    "every frame is a key frame": ("intra.mp4", 120, {"g": "1"}),
}


@pytest.mark.parametrize("kind", UNMOVED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_where_nothing_is_gained_the_usual_frames_are_seen(kind, tmp_path):
    name, frames, options = UNMOVED[kind]
    path, spec = encode(tmp_path / name, frames=frames, options=options), rgb_spec(segments=16)
    found, pixels = seen(path, "key-frames", spec)
    count = VideoFile(str(path)).frame_count
    assert found == sample_indices(count, 16)
    assert same(path, found, pixels, spec)
    if kind == "frames are counted":
        assert VideoFile(str(path), decode="key-frames").decode == "exact"


def cost(keys, wanted):
    """Return how many frames are decoded to reach some: from each key frame to the last one wanted behind it."""
    last = {}
    for index in sorted(wanted):
        last[keys[bisect.bisect_right(keys, index) - 1]] = index
    return sum(index - key + 1 for key, index in last.items())


@pytest.mark.parametrize("gap", [0, 1, 4])
def test_chosen_frames_stay_in_their_segments_and_never_cost_more(gap):
    random = np.random.default_rng(gap)
    gains = 0
    for _ in range(400):
        frames, segments = int(random.integers(1, 700)), int(random.integers(1, 20))
        keys = sorted({0, *random.integers(0, frames, int(random.integers(0, 30))).tolist()})
        usual = sample_indices(frames, segments)

        def parts(index):
            return (max(0, index - 2 * gap), max(0, index - gap), index) if gap else (index,)

        found = reached_soonest(usual, frames, keys, parts)
        if frames < segments:
            assert found == usual
            continue
        assert found == sorted(set(found))
        assert all(n * frames // segments <= index for n, index in enumerate(found))
        assert all(index < (n + 1) * frames / segments for n, index in enumerate(found))
        now, before = (cost(keys, [part for index in one for part in parts(index)]) for one in (found, usual))
        assert now <= before
        assert found == usual or before - now >= SAVED_FRAMES
        gains += before - now
        assert all(
            index - parts(index)[0] >= middle - parts(middle)[0] for index, middle in zip(found, usual, strict=True)
        )
    assert gains > 1000


def test_frames_of_uneven_times_keep_their_gap_in_time(tmp_path):
    pts = [n + max(0, n - 60) // 2 for n in range(120)]  # slower after two seconds
    path = encode(tmp_path / "slower.mp4", options=KEYED, pts=pts)
    spec = replace(rgb_spec(segments=4), motion_gap_s=0.2)
    found, frames = seen(path, "key-frames", spec)
    video = VideoFile(str(path))
    assert found != sample_indices(120, 4)
    for index in found:
        before = motion_frame_indices(video, index, 0.2)
        assert video.time_s(index) - video.time_s(before[0]) == pytest.approx(0.4, abs=0.04)
    assert same(path, found, frames, spec)


# -- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("keyed") / "keyed.mp4", frames=300, options=KEYED)


def result(*arguments):
    done = edge("classify", *arguments, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_results_name_the_frames_that_were_seen_and_how_they_were_decoded(keyed):
    exact, unfiltered, at_keys = (result(keyed, "--decode", mode) for mode in ("exact", "unfiltered", "key-frames"))
    frames = [[step["frame_index"] for step in one["steps"]] for one in (exact, unfiltered, at_keys)]
    assert frames[0] == frames[1] == sample_indices(300, len(frames[0]))
    video, spec = VideoFile(str(keyed), decode="key-frames"), read_bundle(default_bundle()).spec
    assert frames[2] == [index for index, _ in sampled_frames(video, spec)] != frames[0]
    assert [step["time_s"] for step in at_keys["steps"]] == [pytest.approx(n / 30, abs=1e-3) for n in frames[2]]
    assert "decode" not in exact
    assert (unfiltered["decode"], at_keys["decode"]) == ("unfiltered", "key-frames")
    usual = result(keyed)
    assert {**usual, "latency_ms": 0, "model_ms": 0} == {**exact, "latency_ms": 0, "model_ms": 0}


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that sends the part of a file that is asked for."""

    def do_GET(self):
        send_part(self, Path(self.translate_path(self.path)).read_bytes())

    def log_message(self, *_):
        pass


def test_files_of_a_server_are_decoded_so_too(keyed):
    handler = functools.partial(Ranges, directory=str(keyed.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Source("served", f"http://127.0.0.1:{server.server_port}/{keyed.name}")
        try:
            for mode in ("unfiltered", "key-frames"):
                clip = replace(source, decode=mode).open_clip()
                assert clip.decode == mode
                found = list(sampled_frames(clip, rgb_spec(segments=8)))
                assert [index for index, _ in found] == seen(keyed, mode, rgb_spec(segments=8))[0]
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("clip.mp4", "--decode", "fast"), "'fast' is not one of 'exact', 'unfiltered', 'key-frames'"),
        (("rtsp://127.0.0.1:1/x", "--decode", "key-frames"), "--decode key-frames is for files"),
        (("clip.mp4", "--decode", "unfiltered", "--decoder", "gpu"), "remove --decoder gpu"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, why):
    done = edge("classify", *arguments, "--quiet")
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_evaluations_and_the_python_interface_have_the_modes(keyed, tmp_path):
    shutil.copy(keyed, tmp_path / "other.mp4")
    (tmp_path / "clips.csv").write_text(f"video,class\n{keyed},fight\nother.mp4,no_fight\n")
    done = edge("evaluate", "--data", tmp_path / "clips.csv", "--decode", "key-frames", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ran"].endswith(", decoded: key-frames")
    with AdaFocus(decode="key-frames") as model:
        found = model(str(keyed))
        assert found.to_dict()["decode"] == "key-frames"
        at_keys = result(keyed, "--decode", "key-frames")
        assert [step.frame_index for step in found.steps] == [step["frame_index"] for step in at_keys["steps"]]
        assert model.evaluate(tmp_path / "clips.csv")["ran"].endswith(", decoded: key-frames")
    with pytest.raises(UsageError, match="must be one of exact, unfiltered, key-frames"):
        AdaFocus(decode="fast")


def test_an_archive_does_not_mix_rows_of_two_modes(keyed, tmp_path):
    rows = tmp_path / "rows"

    def run(mode):
        return edge("classify", keyed, "--engine", "local", "-o", rows, "--decode", mode, "--quiet")

    assert run("key-frames").returncode == 0
    (line,) = (rows / "jsonl" / "part-00000.jsonl").read_text().splitlines()
    assert json.loads(line)["decode"] == "key-frames"
    mixed = run("exact")
    assert mixed.returncode == 2
    assert "holds rows of decode 'key-frames'" in mixed.stderr

"""The luminance that is scaled from the decoder's planes, against the same picture by way of RGB."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from adafocus_edge.media.grey import LUMA_FORMATS, grey_frame
from adafocus_edge.media.orientation import is_sideways, upright
from adafocus_edge.media.pictures import DecodedPixels, grey_input
from adafocus_edge.media.preprocess import luminance, preprocess
from adafocus_edge.media.video_file import VideoFile
from tests.support.videos import set_matrix

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
MATRICES = {"bt601": 5, "bt709": 1, "bt2020": 9, "fcc": 4, "smpte240m": 7, "untagged": 2}
"""FFmpeg's numbers (AVColorSpace)."""
FORMATS = [
    "yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "yuv444p12le", "nv12", "nv21", "p010le", "yuva420p",
    "gray", "gray10le", "gray16le", "rgb24", "gbrp", "bgra", "rgb565le", "yuyv422", "uyvy422",
]  # fmt: skip


def photo(width=342, height=256):
    """Return a frame of a street with its colours made stronger, RGB."""
    _, rgb = next(VideoFile(str(CLIP)).frames())
    grey = luminance(rgb)[..., None].astype(float)
    strong = np.clip(grey + 1.8 * (rgb - grey) + np.array([12, -6, -10]), 0, 255).astype(np.uint8)
    made = av.VideoFrame.from_ndarray(strong, format="rgb24").reformat(width=width, height=height)
    return made.to_ndarray()


def framed(rgb, pixels, matrix, colour_range):
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    kind = {"dst_colorspace": MATRICES[matrix]} if matrix in ("bt601", "bt709") else {}
    made = frame.reformat(format=pixels, dst_color_range=colour_range or None, **kind)
    made.colorspace, made.color_range = MATRICES[matrix], colour_range
    return made


def by_rgb(frame, size, fit):
    return preprocess(luminance(upright(frame)), size, fit).astype(int)


@pytest.mark.parametrize("pixels", FORMATS)
def test_every_pixel_format_gives_the_luminance_of_its_rgb(pixels):
    frame = av.VideoFrame.from_ndarray(photo(), format="rgb24").reformat(format=pixels)
    off = np.abs(grey_frame(frame, 224, "squash") - by_rgb(frame, 224, "squash"))
    assert off.mean() < 0.6
    assert np.percentile(off, 99) <= 3
    if not pixels.startswith(LUMA_FORMATS):
        assert off.max() == 0  # the same way


@pytest.mark.parametrize("colour_range", [0, 1, 2], ids=["unknown", "limited", "full"])
@pytest.mark.parametrize("matrix", list(MATRICES))
def test_every_matrix_and_range_gives_the_luminance_of_its_rgb(matrix, colour_range):
    frame = framed(photo(), "yuv420p", matrix, colour_range)
    off = grey_frame(frame, 224, "squash") - by_rgb(frame, 224, "squash")
    assert np.abs(off).mean() < 0.9
    assert abs(off.mean()) < 0.8
    assert np.percentile(np.abs(off), 99) <= 4


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("sides", [(342, 256), (1920, 1080), (256, 640), (90, 64), (224, 224), (33, 47), (2, 900)])
def test_every_size_and_fit_gives_the_luminance_of_its_rgb(sides, fit):
    width, height = sides
    frame = av.VideoFrame.from_ndarray(photo(width, height), format="rgb24").reformat(format="yuv420p")
    off = np.abs(grey_frame(frame, 160, fit) - by_rgb(frame, 160, fit))
    assert off.mean() < 0.9
    assert np.percentile(off, 99) <= 8


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_video_is_seen_upright(tmp_path, turn):
    path = tmp_path / "turned.mp4"
    path.write_bytes(CLIP.read_bytes())
    set_matrix(path, *{90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[turn])
    frame = next(frame for _, frame in VideoFile(str(path)).pictures())
    assert is_sideways(frame) is (turn != 180)
    for fit in ("crop", "squash"):
        off = np.abs(grey_frame(frame, 160, fit) - by_rgb(frame, 160, fit))
        assert off.mean() < 0.9


def test_frames_of_changing_kind_in_turn_keep_their_own_pixels():
    frames = [
        framed(photo(width, height), "yuv420p", matrix, 1)
        for width, height, matrix in ((342, 256, "bt601"), (342, 256, "bt709"), (128, 96, "bt601"))
    ]
    alone = [grey_frame(frame, 96, "squash") for frame in frames]
    for turn in range(9):
        upright(frames[turn % 2])
        assert np.array_equal(grey_frame(frames[turn % 3], 96, "squash"), alone[turn % 3])


def test_a_file_and_a_live_frame_give_the_same_luminance():
    clip = VideoFile(str(CLIP))
    wanted = dict(clip.select_grey([3, 9], 160, "squash"))
    for index, frame in clip.pictures():
        if index in wanted:
            assert np.array_equal(grey_input(DecodedPixels(frame), 160, "squash"), wanted[index])
            off = grey_input(lambda frame=frame: upright(frame), 160, "squash").astype(int) - wanted[index]
            assert np.abs(off).mean() < 0.9

"""Luminance of decoded frames at the size of a model's input, scaled in one step from the decoder's own planes.

A model that sees motion needs no colours. :func:`grey_frame` returns what :func:`luminance` and :func:`preprocess` make
of the frame in RGB, within one grey level on average, without making RGB of every pixel first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np

from adafocus_edge.media.matrices import GREY, rgb_of_yuv
from adafocus_edge.media.orientation import converter, orientation, turned, upright
from adafocus_edge.media.preprocess import LONGEST_STRIP, CropWindow, luminance, preprocess

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from adafocus_edge.model.spec import Fit

LUMA_FORMATS = ("yuv42", "yuvj42", "yuva42", "nv12", "nv16", "nv21", "p010", "p016", "p210", "p216")
"""Beginnings of FFmpeg's names of pixel formats with a plane of luma, and with fewer pixels of colour."""
SMALLEST_SIDE = 16
"""Frames with a shorter side, in pixels, or with an odd one are converted by way of RGB: FFmpeg scales and rounds them
in other ways.
"""
SAME_MATRICES = (2, 5, 6)
"""FFmpeg's numbers of colour matrices whose luma is the luminance of ITU-R BT.601; 2 is undefined, taken as such."""
OTHER_MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020"}
"""FFmpeg's numbers of the other matrices, and their names in :data:`LUMA_WEIGHTS`."""


def grey_frame(frame: VideoFrame, size: int, fit: Fit) -> NDArray[np.uint8]:
    """Return the luminance of a decoded frame at the model's size, upright.

    Args:
        frame: as the decoder returned it.
        size: S, in pixels.
        fit: see :class:`adafocus_edge.model.spec.ModelSpec`.

    Returns:
        uint8 [S, S].
    """
    turn = orientation(frame)
    sideways = turn[0]
    window = CropWindow.of(*((frame.width, frame.height) if sideways else (frame.height, frame.width)), size, fit)
    if not _is_scalable(frame, window):
        return preprocess(luminance(upright(frame)), size, fit)
    height, width = window.resized_height, window.resized_width
    matrix = int(frame.colorspace)
    plain = matrix in SAME_MATRICES
    target = "gray" if plain else "yuv444p"
    scaled = converter(frame, target, width, height).reformat(
        frame,
        *((height, width) if sideways else (width, height)),
        format=target,
        interpolation="BILINEAR",
        dst_color_range="JPEG",
        threads=1,
    )
    planes = cast("NDArray[np.uint8]", scaled.to_ndarray())
    shown = turned(planes if plain else planes.transpose(1, 2, 0), turn)
    shown = shown[window.top : window.top + size, window.left : window.left + size]
    grey = shown if plain else _mixed(shown, OTHER_MATRICES[matrix])
    # FFmpeg's RGB of such formats is one grey level darker on average: its conversion rounds down three times.
    return np.subtract(grey, grey > 0, dtype=np.uint8)


def _is_scalable(frame: VideoFrame, window: CropWindow) -> bool:
    """Return whether scaling the planes of a frame gives the same as scaling its RGB."""
    if frame.width % 2 or frame.height % 2 or min(frame.width, frame.height) < SMALLEST_SIDE:
        return False
    sides = (window.resized_height, window.resized_width)
    if max(sides) > LONGEST_STRIP * min(sides):
        return False
    return frame.format.name.startswith(LUMA_FORMATS) and int(frame.colorspace) in (*SAME_MATRICES, *OTHER_MATRICES)


def _mixed(planes: NDArray[np.uint8], matrix: str) -> NDArray[np.uint8]:
    """Return the luminance of BT.601 of full-range Y, U and V of another matrix, uint8 [S, S, 3]."""
    luma, blue, red = _weights(matrix)
    mixed = luma * planes[..., 0] + blue * (planes[..., 1] - np.float32(128)) + red * (planes[..., 2] - np.float32(128))
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


@lru_cache(maxsize=len(OTHER_MATRICES))
def _weights(matrix: str) -> tuple[np.float32, np.float32, np.float32]:
    """Return the weights of full-range Y, U and V in the luminance of BT.601."""
    made = np.asarray(GREY) @ rgb_of_yuv(matrix, full_range=True)[0]
    return np.float32(made[0]), np.float32(made[1]), np.float32(made[2])

"""Rotating and mirroring decoded frames according to their display matrix."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray


_of_thread = threading.local()

Turn = tuple[bool, int, int]
"""Whether rows become columns, then a step for rows and for columns; see :func:`orientation`."""


def orientation(frame: VideoFrame) -> Turn:
    """Return how a frame's display matrix turns it: whether rows become columns, then a step for rows and for columns.

    A step of -1 reverses the displayed rows or columns. ``pixels.transpose(1, 0, 2)``, if the first value is true,
    followed by ``[::rows, ::columns]`` thus covers the eight rotations and reflections that cameras write. Any other
    angle is rounded to the nearest of them.

    Source: FFmpeg's ``libavutil/display.h``: (x, y) is shown at (a x + c y, b x + d y).
    """
    # Not ``frame.side_data``: PyAV lets that and the frame hold each other, so that the picture would stay until Python
    # looks for cycles, hundreds of frames later. Its type hints know neither this argument nor this key.
    stored = cast("Any", SideDataContainer)(frame).get(SideDataType.DISPLAYMATRIX)
    if stored is None:
        return False, 1, 1
    matrix = np.frombuffer(bytes(stored), np.int32)
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, -1 if b < 0 else 1, -1 if c < 0 else 1
    return False, -1 if d < 0 else 1, -1 if a < 0 else 1


def is_sideways(frame: VideoFrame) -> bool:
    """Return whether a frame is displayed with its rows as columns."""
    return orientation(frame)[0]


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Return width and height of a decoded frame as displayed."""
    return (frame.height, frame.width) if is_sideways(frame) else (frame.width, frame.height)


def converter(frame: VideoFrame, target: str, width: int, height: int) -> VideoReformatter:
    """Return this thread's converter of frames to a format and size; a new one when the frames themselves change.

    PyAV would create one per frame, which takes as long as the conversion, and starts several threads for each by
    default: a live run had a hundred.

    Args:
        frame: to convert.
        target: FFmpeg's name of the pixel format to convert to.
        width: to convert to, in pixels.
        height: to convert to, in pixels.
    """
    kept: dict[str, tuple[tuple[object, ...], VideoReformatter]] = _of_thread.__dict__.setdefault("kept", {})
    kind = (
        frame.format.name, frame.width, frame.height, int(frame.colorspace), int(frame.color_range), width, height,
    )  # fmt: skip
    if target not in kept or kept[target][0] != kind:
        kept[target] = kind, VideoReformatter()
    return kept[target][1]


def turned(pixels: NDArray[np.uint8], turn: Turn) -> NDArray[np.uint8]:
    """Turn and mirror pixels, uint8 [H, W] or [H, W, C], by the :func:`orientation` of their frame."""
    sideways, rows, columns = turn
    if sideways:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[::rows, ::columns])


def upright(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return a decoded frame as RGB, uint8 [H, W, 3], turned and mirrored according to its display matrix."""
    made = converter(frame, "rgb24", frame.width, frame.height).reformat(frame, format="rgb24", threads=1)
    return turned(cast("NDArray[np.uint8]", made.to_ndarray()), orientation(frame))

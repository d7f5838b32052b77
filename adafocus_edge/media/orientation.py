"""Rotating and mirroring decoded frames according to their display matrix."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray


_of_thread = threading.local()


def orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    """Return how a frame's display matrix turns it: whether rows become columns, then a step for rows and for columns.

    A step of -1 reverses the displayed rows or columns. ``pixels.transpose(1, 0, 2)``, if the first value is true,
    followed by ``[::rows, ::columns]`` thus covers the eight rotations and reflections that cameras write. Any other
    angle is rounded to the nearest of them.

    Source: FFmpeg's ``libavutil/display.h``: (x, y) is shown at (a x + c y, b x + d y).
    """
    stored = cast("Any", frame.side_data).get(SideDataType.DISPLAYMATRIX)  # PyAV's type hints allow names only
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


def _converter(frame: VideoFrame) -> VideoReformatter:
    """Return this thread's converter to RGB; it is replaced when format, size or colours of frames change.

    PyAV would create one per frame, which takes as long as the conversion, and starts several threads for each by
    default: a live run had a hundred.
    """
    kind = (frame.format.name, frame.width, frame.height, int(frame.colorspace), int(frame.color_range))
    if getattr(_of_thread, "kind", None) != kind:
        _of_thread.kind, _of_thread.converter = kind, VideoReformatter()
    return cast("VideoReformatter", _of_thread.converter)


def upright(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return a decoded frame as RGB, uint8 [H, W, 3], turned and mirrored according to its display matrix."""
    pixels = cast("NDArray[np.uint8]", _converter(frame).reformat(frame, format="rgb24", threads=1).to_ndarray())
    sideways, rows, columns = orientation(frame)
    if sideways:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[::rows, ::columns])

"""Captured pictures: what shows one, its size, and the shape of its pixels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from adafocus_edge.media.clip import SQUARE

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray


class Picture(NamedTuple):
    """A captured frame: what makes RGB uint8 [H, W, 3] of it, its size in pixels, a pixel's width over its height."""

    to_rgb: Callable[[], Any]
    width: int
    height: int
    sample_aspect: Fraction = SQUARE


def decoded_picture(frame: VideoFrame, sample_aspect: Fraction) -> Picture:
    """Return a frame that the CPU decoded as a picture.

    Args:
        frame: the frame.
        sample_aspect: a shown pixel's width over its height.
    """
    from adafocus_edge.media.orientation import upright, upright_size

    lock = threading.Lock()  # several threads may want the same frame, whose converter in PyAV takes one at a time

    def to_rgb() -> NDArray[Any]:
        with lock:
            return upright(frame)

    return Picture(to_rgb, *upright_size(frame), sample_aspect)

"""Captured pictures of live sources, converted to RGB only on demand."""

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
    """A captured frame.

    Attributes:
        to_rgb: converts it to RGB, uint8 [H, W, 3].
        width: in pixels.
        height: in pixels.
        sample_aspect: width of a displayed pixel over its height.
        pts: presentation time of its packet, in ticks of its stream; None where it is unknown.
    """

    to_rgb: Callable[[], Any]
    width: int
    height: int
    sample_aspect: Fraction = SQUARE
    pts: int | None = None


def decoded_picture(frame: VideoFrame, sample_aspect: Fraction) -> Picture:
    """Return the picture of a frame that the CPU has decoded.

    Args:
        frame: the frame.
        sample_aspect: width of a displayed pixel over its height.
    """
    from adafocus_edge.media.orientation import upright, upright_size

    lock = threading.Lock()  # several threads may convert one frame, which PyAV does not allow at the same time

    def to_rgb() -> NDArray[Any]:
        with lock:
            return upright(frame)

    return Picture(to_rgb, *upright_size(frame), sample_aspect, frame.pts)

"""Captured pictures of live sources, converted to RGB only on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from adafocus_edge.media.clip import SQUARE

if TYPE_CHECKING:
    import numpy as np
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from adafocus_edge.model.spec import Fit


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


class DecodedPixels:
    """A frame that the CPU has decoded, to be converted on demand. Safe from any thread.

    Args:
        frame: as the decoder returned it.
    """

    def __init__(self, frame: VideoFrame) -> None:
        self._frame = frame
        self._lock = threading.Lock()  # several threads may convert one frame, which PyAV does not allow at once

    def __call__(self) -> NDArray[np.uint8]:
        """Return it as RGB, uint8 [H, W, 3], upright."""
        from adafocus_edge.media.orientation import upright

        with self._lock:
            return upright(self._frame)

    def grey(self, size: int, fit: Fit) -> NDArray[np.uint8]:
        """Return its luminance at a model's size, uint8 [S, S]; see :func:`adafocus_edge.media.grey.grey_frame`."""
        from adafocus_edge.media.grey import grey_frame

        with self._lock:
            return grey_frame(self._frame, size, fit)


def decoded_picture(frame: VideoFrame, sample_aspect: Fraction) -> Picture:
    """Return the picture of a frame that the CPU has decoded.

    Args:
        frame: the frame.
        sample_aspect: width of a displayed pixel over its height.
    """
    from adafocus_edge.media.orientation import upright_size

    return Picture(DecodedPixels(frame), *upright_size(frame), sample_aspect, frame.pts)


def grey_input(to_rgb: Callable[[], Any], size: int, fit: Fit) -> NDArray[np.uint8]:
    """Return the luminance of a picture at a model's size, uint8 [S, S].

    Args:
        to_rgb: the picture's :attr:`Picture.to_rgb`.
        size: S, in pixels.
        fit: see :class:`adafocus_edge.model.spec.ModelSpec`.
    """
    if isinstance(to_rgb, DecodedPixels):
        return to_rgb.grey(size, fit)
    from adafocus_edge.media.preprocess import luminance, preprocess

    return preprocess(luminance(to_rgb()), size, fit)

"""The interface of a clip: numbered frames in random access."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from adafocus_edge.media.decode_modes import DecodeMode
    from adafocus_edge.model.spec import Fit


T = TypeVar("T")
SQUARE = Fraction(1)
"""Aspect of square pixels, which most videos have."""
DEFAULT_FPS = 25.0
"""Frame rate assumed for a source that does not define one, such as a folder of frames."""


class Clip(Protocol):
    """Numbered frames in random access.

    Attributes:
        name: name for display, as the user gave it.
        frame_count: number of frames, at least 1.
        fps: frame rate for display.
        duration_s: length in seconds, or None if frames have no times.
        is_constant_rate: whether all frames are shown equally long, as far as is known.
        sample_aspect: width of a pixel over its height; 1 for square pixels.
        track_note: which of several video tracks this is; empty if there is only one.
    """

    name: str
    frame_count: int
    fps: float
    duration_s: float | None
    is_constant_rate: bool
    track_note: str

    @property
    def sample_aspect(self) -> Fraction:
        """Width of a pixel over its height."""

    def time_s(self, index: int) -> float | None:
        """Return when a frame is shown, in seconds from the start, or None if frames have no times."""

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Read the frames with these numbers, which rise; yield each number and ``convert`` of RGB, uint8 [H, W, 3]."""

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read all frames in order; yield each number and RGB, uint8 [H, W, 3]."""


@runtime_checkable
class DecodedInModes(Protocol):
    """A clip that can be decoded more cheaply than exactly: a video file.

    Attributes:
        decode: how it is decoded; ``exact`` also where the requested mode has no effect on it.
    """

    decode: DecodeMode

    def cheaper_indices(self, usual: Sequence[int], parts_of: Callable[[int], Sequence[int]]) -> list[int]:
        """Return the frames to see instead of the usual ones: see :func:`decode_modes.reached_soonest`."""


@runtime_checkable
class DecodedClip(Protocol):
    """A clip whose decoder's frames can be had before they become RGB: a video file."""

    def select_decoded(self, indices: Sequence[int], convert: Callable[[VideoFrame], T]) -> Iterator[tuple[int, T]]:
        """Decode the frames with these numbers, which rise; yield each number and ``convert`` of the frame."""

    def select_grey(self, indices: Sequence[int], size: int, fit: Fit) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode the frames with these numbers, which rise; yield each number and its luminance at the model's size.

        Args:
            indices: rising frame numbers.
            size: S, in pixels.
            fit: see :class:`adafocus_edge.model.spec.ModelSpec`.

        Yields:
            numbers and uint8 [S, S], resized and cropped as :func:`adafocus_edge.media.preprocess.preprocess` does,
            within one grey level on average.
        """

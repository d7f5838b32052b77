"""The interface of a clip: numbered frames in random access."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


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

"""What a clip is: numbered frames, all of which can be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


T = TypeVar("T")
SQUARE = Fraction(1)
"""The aspect of most pixels."""
DEFAULT_FPS = 25.0
"""Frame rate assumed for a source that does not define one, such as a folder of frames."""


class Clip(Protocol):
    """Something with numbered frames, all of which can be reached.

    Attributes:
        name: what the user called it.
        frame_count: how many frames it has, at least 1.
        fps: frame rate to show it at.
        duration_s: its length in seconds, or None where frames have no times.
        is_constant_rate: whether all frames are shown equally long, as far as is known.
        sample_aspect: a pixel's width over its height; 1 for square ones.
        track_note: which of several video tracks this is; empty where there is one.
    """

    name: str
    frame_count: int
    fps: float
    duration_s: float | None
    is_constant_rate: bool
    track_note: str

    @property
    def sample_aspect(self) -> Fraction:
        """See above."""

    def time_s(self, index: int) -> float | None:
        """Return when a frame is shown, in seconds from the start, or None where frames have no times."""

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Read the frames with these rising numbers, apply ``convert`` to each RGB uint8 [H, W, 3], yield in order."""

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read all frames in order; yield number and RGB uint8 [H, W, 3]."""

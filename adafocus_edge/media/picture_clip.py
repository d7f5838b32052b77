"""Pictures in memory as a clip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from adafocus_edge.errors import FrameError
from adafocus_edge.media.clip import DEFAULT_FPS, SQUARE, T
from adafocus_edge.media.frames import as_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PictureClip:
    """Pictures in memory as a clip; see :class:`adafocus_edge.media.clip.Clip`.

    Args:
        name: how the clip is shown.
        pictures: PIL images, uint8 [H, W, 3] in RGB, or grey uint8 [H, W]; at least one.
        times_s: when each is shown, in seconds from any beginning, strictly rising; None where only ``fps`` or nothing
            is known.
        fps: their rate, instead of times; None if it is unknown.

    Raises:
        FrameError: no pictures, a picture that is not one of these, or times that do not fit them.
    """

    track_note = ""

    def __init__(
        self, name: str, pictures: Sequence[Any], times_s: Iterable[float] | None = None, fps: float | None = None
    ) -> None:
        if len(pictures) == 0:
            raise FrameError(f"{name}: no frames")
        if times_s is not None and fps is not None:
            raise FrameError(f"{name}: times and fps are both given: give one of them")
        if fps is not None:
            fps = as_number(fps, f"{name}: fps")
            if not 0 < fps < 1000:
                raise FrameError(f"{name}: fps={fps:g}: must be above 0 and below 1000")
        times = None if times_s is None else _checked_times(name, times_s, len(pictures))
        self.name = name
        self._pictures = [as_picture(picture) for picture in pictures]
        self.frame_count = len(self._pictures)
        self._times = None if times is None else [time_s - times[0] for time_s in times]
        self.is_constant_rate = self._times is None
        self.fps = fps or DEFAULT_FPS
        if self._times is not None and self.frame_count > 1:
            self.fps = (self.frame_count - 1) / self._times[-1]
        self._has_rate = fps is not None
        self.duration_s: float | None = None
        if self._times is not None:
            self.duration_s = self._times[-1] + 1 / self.fps
        elif fps is not None:
            self.duration_s = self.frame_count / fps

    @property
    def sample_aspect(self) -> Fraction:
        """Pixels of pictures in memory are square."""
        return SQUARE

    def time_s(self, index: int) -> float | None:
        """Return when a frame is shown; None where neither times nor a rate are known."""
        if self._times is not None:
            return self._times[index]
        return index / self.fps if self._has_rate else None

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Convert the frames with these rising numbers."""
        for index in indices:
            yield index, convert(self._rgb(index))

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield all frames in order."""
        for index in range(self.frame_count):
            yield index, self._rgb(index)

    def _rgb(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(self._pictures[index].convert("RGB"))


def as_number(value: Any, what: str) -> float:
    """Return a number of Python, NumPy or PyTorch as a float. Raises ``FrameError`` for anything else."""
    if not isinstance(value, (str, bytes)):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
    raise FrameError(f"{what}={value!r}: must be a number")


def _checked_times(name: str, times_s: Iterable[float], count: int) -> list[float]:
    if not isinstance(times_s, Iterable):
        raise FrameError(f"{name}: times={times_s!r}: give the time of each frame, in seconds")
    times = [as_number(time_s, f"{name}: time") for time_s in times_s]
    if len(times) != count:
        raise FrameError(f"{name}: {len(times)} times for {count} frames: give one for each, in seconds")
    if not all(math.isfinite(time_s) for time_s in times):
        raise FrameError(f"{name}: times must be finite numbers, in seconds")
    if any(after <= before for before, after in itertools.pairwise(times)):
        raise FrameError(f"{name}: times must rise from frame to frame")
    return times


def pictures_of(frames: Any) -> list[Image.Image | NDArray[np.uint8]]:
    """Return frames of any common kind as a list of pictures.

    Args:
        frames: a sequence or an iterable of PIL images, NumPy arrays or PyTorch tensors; or one array or tensor of all,
            uint8 [T, H, W, 3] or [T, 3, H, W].

    Raises:
        FrameError: one is of another kind.
    """
    if hasattr(frames, "detach"):  # a PyTorch tensor, without importing PyTorch
        frames = _array(frames)
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4:
            raise FrameError(f"frames: {frames.dtype} {list(frames.shape)}: a clip is uint8 [T, H, W, 3]")
        frames = frames.transpose(0, 2, 3, 1) if frames.shape[1] == 3 and frames.shape[3] != 3 else frames
        return list(frames)
    return [one_picture(frame) for frame in frames]


def one_picture(frame: Any) -> Any:
    """Return one frame as NumPy or Pillow has it: of a PyTorch tensor [3, H, W] or [H, W, 3] an array [H, W, 3]."""
    if not hasattr(frame, "detach"):
        return frame
    array = _array(frame)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        return array.transpose(1, 2, 0)
    return array


def own_copy(entry: Any) -> Any:
    """Return a copy of a frame, or of a pair of a frame and its time: an iterator may reuse the memory for the next."""
    if isinstance(entry, tuple):
        return tuple(own_copy(part) for part in entry)
    if hasattr(entry, "detach"):
        return one_picture(entry.detach().clone())
    return entry.copy() if isinstance(entry, (np.ndarray, Image.Image)) else entry


def _array(tensor: Any) -> NDArray[Any]:
    return np.asarray(tensor.detach().cpu().numpy())

"""The frames of a clip that training samples: one of each segment, or a dense span (official ``ops/dataset.py``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.media.preprocess import sample_indices

DENSE_SPAN = 64
"""Length of the span of dense sampling, in frames."""


def spread(count: int, most: int | None) -> NDArray[np.int64]:
    """Return the numbers 0 to ``count`` - 1, or ``most`` of them, spaced as evenly as possible."""
    if most is None or count <= most:
        return np.arange(count)
    return (2 * np.arange(most) + 1) * count // (2 * most)


def train_indices(frame_count: int, segments: int, random: np.random.Generator, most: int | None = None) -> list[int]:
    """Choose one random frame of each of T segments (official ``_sample_indices``); ascending, from 0.

    Args:
        frame_count: frames in the clip.
        segments: T.
        random: generator.
        most: max frames of a segment to choose from, evenly spaced; None for all.
    """
    length = frame_count // segments
    if length > 0:
        places = spread(length, most)
        drawn = random.integers(len(places), size=segments)
        return [i * length + int(places[place]) for i, place in enumerate(drawn)]
    return sample_indices(frame_count, segments)


def dense_indices(
    frame_count: int, segments: int, random: np.random.Generator | None, most: int | None = None
) -> list[int]:
    """Choose T frames at a steady stride over 64 frames, from a random place, or in evaluation from the middle.

    ``most`` limits the number of these places, evenly spaced; None for all.
    """
    places = max(1, 1 + frame_count - DENSE_SPAN)
    if random is None:
        return _dense_from(places // 2, frame_count, segments)
    allowed = spread(places, most)
    return _dense_from(int(allowed[int(random.integers(len(allowed)))]), frame_count, segments)


def _dense_from(start: int, frame_count: int, segments: int) -> list[int]:
    stride = DENSE_SPAN // segments or 1
    return sorted((start + i * stride) % frame_count for i in range(segments))


@dataclass(frozen=True)
class FramePlan:
    """How frames are sampled from a clip.

    Attributes:
        segments: T.
        dense: whether sampling is dense.
        most: max frames of a segment (or places of a dense span) to draw from, evenly spaced; None for all.
    """

    segments: int
    dense: bool = False
    most: int | None = None

    def draw(self, frame_count: int, random: np.random.Generator) -> list[int]:
        """Draw T frames for an epoch."""
        draw = dense_indices if self.dense else train_indices
        return draw(frame_count, self.segments, random, self._most(frame_count))

    def fixed(self, frame_count: int) -> list[int]:
        """Return the T frames of evaluation."""
        if self.dense:
            return dense_indices(frame_count, self.segments, None)
        return sample_indices(frame_count, self.segments)

    def every(self, frame_count: int) -> list[int]:
        """Return all frames that :meth:`draw` may return, distinct and ascending."""
        most = self._most(frame_count)
        if self.dense:
            starts = spread(max(1, 1 + frame_count - DENSE_SPAN), most).tolist()
            return sorted({n for start in starts for n in _dense_from(start, frame_count, self.segments)})
        length = frame_count // self.segments
        if length == 0:
            return sorted(set(sample_indices(frame_count, self.segments)))
        places = spread(length, most).tolist()
        return [i * length + place for i in range(self.segments) for place in places]

    def _most(self, frame_count: int) -> int | None:
        """Return ``most``, or None for a clip so short that any frame may be drawn."""
        return None if self.most is None or frame_count <= self.most * self.segments else self.most

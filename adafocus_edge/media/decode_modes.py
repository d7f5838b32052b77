"""How exactly video files are decoded, and which frames a decoder reaches soonest; nothing here imports NumPy."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DecodeMode = Literal["exact", "unfiltered", "key-frames"]
"""How video files are decoded: every pixel of the usual frames; the same frames without the codec's loop filter; or,
exactly, those frames of each segment that a decoder reaches soonest.
"""
FILTERING_DECODERS = frozenset(("h264", "hevc"))
"""Decoders that are asked to skip their loop filter. Most others ignore it; VP8's frames drift too far (12 grey levels
on average after four seconds).
"""
SAVED_FRAMES = 4
"""A frame takes the place of the usual one of its segment only if at least this many frames need not be decoded."""


def reached_soonest(
    usual: Sequence[int], frame_count: int, keys: Sequence[int], parts_of: Callable[[int], Sequence[int]]
) -> list[int]:
    """Return one frame of each of T equal segments, so that few frames must be decoded to reach them.

    Of a segment that holds key frames, it is the one nearest the usual frame; of another, its first frame. The usual
    frame stays where that saves fewer than :data:`SAVED_FRAMES` frames, as where other segments need them anyway. Every
    frame of a segment is one that training may have drawn.

    Args:
        usual: the middle frames of the segments, rising.
        frame_count: of the clip.
        keys: the frame numbers at which a decoder can begin, rising.
        parts_of: returns the frames, rising, that must be decoded for a frame that the model sees; the last one is the
            frame itself.

    Returns:
        T frame numbers, rising; a clip with fewer than :data:`SAVED_FRAMES` frames for two segments keeps its own.
    """
    segments = len(usual)
    if 2 * frame_count < segments * SAVED_FRAMES:
        return list(usual)
    decoded = _Decoded(keys, parts_of, usual)
    chosen = list(usual)
    for segment in reversed(range(segments)):
        first, end = frame_count * segment // segments, frame_count * (segment + 1) // segments
        middle = usual[segment]
        decoded.remove(middle)
        near = _candidates(middle, first, end, keys, parts_of)
        costs = {index: decoded.cost(index) for index in (middle, *near)}
        best = min(near, key=lambda index: (costs[index], abs(index - middle)), default=middle)
        if costs[middle] - costs[best] >= SAVED_FRAMES:
            chosen[segment] = best
        decoded.add(chosen[segment])
    return chosen


class _Decoded:
    """What is decoded for the segments: from each key frame, all frames up to the last one that is needed.

    Args:
        keys: see :func:`reached_soonest`.
        parts_of: see :func:`reached_soonest`.
        usual: the middle frames, rising; they are removed from the last to the first.
    """

    def __init__(self, keys: Sequence[int], parts_of: Callable[[int], Sequence[int]], usual: Sequence[int]) -> None:
        self._keys, self._parts_of = keys, parts_of
        self._middles: dict[int, list[int]] = {}  # by key frame: the last frame for the first middle, the first two ...
        self._chosen: dict[int, int] = {}
        for index in usual:
            for key, last in self._reach(index).items():
                lasts = self._middles.setdefault(key, [key - 1])
                lasts.append(max(last, lasts[-1]))

    def remove(self, middle: int) -> None:
        """Take the last of the middle frames away."""
        for key in self._reach(middle):
            self._middles[key].pop()

    def add(self, index: int) -> None:
        """Add a frame that was chosen."""
        for key, last in self._reach(index).items():
            self._chosen[key] = max(last, self._chosen.get(key, last))

    def cost(self, index: int) -> int:
        """Return how many more frames must be decoded for a frame."""
        cost = 0
        for key, last in self._reach(index).items():
            middles = self._middles.get(key, [key - 1])
            cost += max(0, last - max(middles[-1], self._chosen.get(key, key - 1)))
        return cost

    def _reach(self, index: int) -> dict[int, int]:
        """Return by key frame the last part of a frame that is decoded from there."""
        keys = self._keys
        return {keys[max(0, bisect.bisect_right(keys, part) - 1)]: part for part in self._parts_of(index)}


def _candidates(
    middle: int, first: int, end: int, keys: Sequence[int], parts_of: Callable[[int], Sequence[int]]
) -> list[int]:
    """Return the frames of a segment that may be reached sooner than its middle: the first one, and those at keys.

    A frame is at a key frame if its first part is: nothing before that key frame is then decoded. At the start of the
    clip, where parts would lie before it, a frame shows less motion than the middle does and is no candidate.
    """
    found = []
    span = middle - parts_of(middle)[0]
    after = bisect.bisect_right(keys, middle)
    for start in (0, *keys[max(0, after - 2) : after + 1]):
        for index in range(max(first, start), end):
            part = parts_of(index)[0]
            if part >= start and (part > 0 or index >= span):
                found.append(index)
                break
    return found

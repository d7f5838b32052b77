"""The timeline of a video file: when each frame is shown, how its packets are found, and where decoding can begin."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from fractions import Fraction


ROUNDING_TICKS = 2
"""Gaps between frames of a constant rate differ by at most this: containers round times to whole ticks."""
ROUNDING_S = 0.002
"""The same in seconds: many tools round to milliseconds, and others then count in finer ticks."""
LONGEST_GAP_S = 10.0
"""In formats whose clock may be reset, a longer gap is a reset and not a pause (FFmpeg's dts_delta_threshold)."""
SEEK_FRAMES = 2
"""Decoding up to this many frames in between costs no more than a seek, which costs 1 to 2 frames. On two cores, too:
the 2 s clips of tests/fights take a seventh less of the processor in one go than run by run."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a file, in the order in which they are shown.

    Attributes:
        times: the key to find each frame by: its presentation time as the container stores it, rising; 0, 1, 2 ... if
            frames are counted.
        keys: the frame numbers at which a decoder can begin.
        clock: when each frame is shown, on one clock, rising; None if the file does not define it.
        counted: whether frames must be counted from the start, because seeking by their times does not find them.
        last_ticks: how long the last frame is shown; None if the file does not define it.
        in_fields: whether packets hold fields, two of which make a frame.

    All times are in the stream's ticks.
    """

    times: list[int]
    keys: list[int]
    clock: list[int] | None = None
    counted: bool = False
    last_ticks: int | None = None
    in_fields: bool = False

    def is_constant_rate(self, tick_s: Fraction) -> bool:
        """Return whether all gaps between frames are equal within rounding."""
        gaps = np.diff(np.asarray(self.clock or (), np.int64))
        rounding = ROUNDING_TICKS + ROUNDING_S / tick_s
        return len(gaps) == 0 or int(gaps.max() - gaps.min()) <= rounding

    def earliest(self, index: int) -> int:
        """Return the first tick that still means a frame: containers round times, so half a gap is tolerated."""
        return self.times[index] - self._half_gap(index)

    def latest(self, index: int) -> int:
        """Return the last tick that still means a frame; see :meth:`earliest`."""
        return self.times[index] + self._half_gap(index)

    def _half_gap(self, index: int) -> int:
        around = self.times[max(0, index - 1) : index + 2]
        return min((after - before for before, after in pairwise(around)), default=0) // 2

    def index_at(self, time: int) -> int | None:
        """Return the number of the frame that a presentation time means, or None if it means no frame."""
        near = bisect.bisect_left(self.times, time)
        candidates = [index for index in (near - 1, near) if 0 <= index < len(self.times)]
        return next((index for index in candidates if self.earliest(index) <= time <= self.latest(index)), None)

    def seek_targets(self, index: int) -> Iterator[int | None]:
        """Yield the times to seek to for a frame: its own, then those of earlier key frames, then None for the start.

        A seek may land behind the frame: MPEG transport streams have no index, so FFmpeg estimates the position.
        """
        yield self.times[index]
        key = bisect.bisect_right(self.keys, index) - 1
        for earlier in (key - 1, key - 2):
            if earlier > 0:
                yield self.times[self.keys[earlier]]
        yield None

    def runs(self, indices: Sequence[int]) -> list[list[int]]:
        """Group rising frame numbers into runs that share the key frame at which decoding must begin."""
        runs: dict[int, list[int]] = {}
        for index in indices:
            key = bisect.bisect_right(self.keys, index)
            runs.setdefault(key, []).append(index)
        return list(runs.values())

    def join_runs(self, runs: list[list[int]]) -> list[list[int]]:
        """Join runs where decoding the frames between them costs no more than a seek (:data:`SEEK_FRAMES`).

        A selection of nearly every frame is then decoded once and in order; a sparse one still seeks.
        """
        joined = runs[:1]
        for run in runs[1:]:
            key = self.keys[bisect.bisect_right(self.keys, run[0]) - 1]
            if key - joined[-1][-1] <= SEEK_FRAMES + 1:
                joined[-1] = joined[-1] + run
            else:
                joined.append(run)
        return joined


def on_one_clock(times: Sequence[int], longest_gap: float = float("inf")) -> list[int]:
    """Return times with the jumps of a reset clock removed: after each jump, frames continue after the median gap.

    Args:
        times: presentation times of frames in the order in which they are shown, in ticks.
        longest_gap: a longer gap is a jump, as is any step back.
    """
    ticks = np.asarray(times, np.int64)
    gaps = ticks[1:] - ticks[:-1]
    jumps = (gaps < 0) | (gaps > longest_gap)
    if not jumps.any() or jumps.all():
        return list(times)
    gaps[jumps] = int(np.median(gaps[~jumps]))
    return [times[0], *(times[0] + np.cumsum(gaps)).tolist()]

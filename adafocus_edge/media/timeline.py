"""When each frame of a video file is shown, and from where decoding can begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction


ROUNDING_TICKS = 2
"""Gaps between frames of a constant rate differ by no more than this: containers round times to whole ticks."""
ROUNDING_S = 0.002
"""Or than this: many tools round to milliseconds, and others then count in finer ticks."""
LONGEST_GAP_S = 10.0
"""In formats whose clock may be set anew, a longer gap is no pause but another clock (FFmpeg's dts_delta_threshold)."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a file, in the order in which they are shown.

    Attributes:
        times: what finds every frame: its presentation time as the container stores it, rising; 0, 1, 2 ... if counted.
        keys: the frame numbers at which a decoder can begin.
        clock: when each frame is shown, on one clock, rising; None where the file does not say.
        counted: True if frames must be counted from the start, since seeking by their times does not find them.
        last_ticks: how long the last frame is shown; None if the file does not say.
        in_fields: whether packets hold fields, of which two make a frame.

    All times are in the stream's ticks.
    """

    times: list[int]
    keys: list[int]
    clock: list[int] | None = None
    counted: bool = False
    last_ticks: int | None = None
    in_fields: bool = False

    def is_constant_rate(self, tick_s: Fraction) -> bool:
        """Whether all gaps between frames are the same, but for rounding."""
        gaps = np.diff(np.asarray(self.clock or (), np.int64))
        rounding = ROUNDING_TICKS + ROUNDING_S / tick_s
        return len(gaps) == 0 or int(gaps.max() - gaps.min()) <= rounding


def on_one_clock(times: Sequence[int], longest_gap: float = float("inf")) -> list[int]:
    """Return times without the jumps of a clock that was set anew: at each, frames go on after the usual gap.

    Args:
        times: of frames in the order in which they are shown, in ticks.
        longest_gap: a longer gap is a jump, as is any step back.
    """
    ticks = np.asarray(times, np.int64)
    gaps = ticks[1:] - ticks[:-1]
    jumps = (gaps < 0) | (gaps > longest_gap)
    if not jumps.any() or jumps.all():
        return list(times)
    gaps[jumps] = int(np.median(gaps[~jumps]))
    return [times[0], *(times[0] + np.cumsum(gaps)).tolist()]

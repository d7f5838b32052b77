"""Which frames of a live source the model glimpses, and which earlier ones show their motion."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from adafocus_edge.media.preprocess import motion_indices, nearest_motion

if TYPE_CHECKING:
    from adafocus_edge.live.messages import LiveFrame

JITTER = 0.1
"""How much too early a frame may be for the requested frame rate, as a fraction of the time between two frames."""
HISTORY_STEP = 1 / 8
"""Of frames that are nearer to each other than this, as a fraction of the gap, a history may keep the first alone."""


class GlimpseSchedule:
    """Picks the frames to glimpse: one for the middle of each period of the glimpse rate.

    In a file this is the frame that the official sampling takes there, so that a window of T glimpses over the whole
    file sees exactly the clip that ``classify`` sees. In a live source it is the first frame at or after that time.

    Args:
        rate: glimpses per second of the source.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = 0

    def is_now(self, index: int | None, fps: float, time_s: float) -> bool:
        """Return whether to glimpse the next frame.

        Args:
            index: its number in a file; None in a live source.
            fps: of the file; 0 where it is unknown.
            time_s: of the frame, in seconds since the first one.
        """
        if index is not None and fps:
            # The slack keeps rounding from taking the frame before a whole number.
            if index < int(fps / self._rate * (self._next + 0.5) + 1e-6):
                return False
            while index >= int(fps / self._rate * (self._next + 0.5) + 1e-6):
                self._next += 1
            return True
        if time_s < (self._next + 0.5) / self._rate:
            return False
        self._next = max(self._next + 1, math.floor(time_s * self._rate - 0.5) + 1)
        return True


class FrameThinner:
    """Picks at most so many frames per second of each source, as evenly as they arrive.

    Args:
        fps: maximum number of frames per second; None for all.
    """

    def __init__(self, fps: float | None) -> None:
        self._interval_s = None if fps is None else 1 / fps
        self._due_s: dict[str, float] = {}

    def is_due(self, frame: LiveFrame) -> bool:
        """Return whether to take the next frame of its source."""
        if self._interval_s is None:
            return True
        due_s = self._due_s.get(frame.source, frame.time_s)
        late_s = frame.time_s - due_s
        if -self._interval_s < late_s < -JITTER * self._interval_s:
            return False
        # In step with the requested rate, unless the source has jumped.
        start_s = due_s if abs(late_s) < self._interval_s else frame.time_s
        self._due_s[frame.source] = start_s + self._interval_s
        return True


class FrameHistory:
    """Keeps the frames that a model of motion looks back at, and picks those that show the motion of a frame.

    Args:
        gap_s: seconds between the frames that show motion; 0 for a model that sees single frames.
        moment_s: returns the time of a frame, in seconds.
        thin: whether frames that come very close together need not all be kept: a decoder that catches up delivers
            hundreds per second, each with megabytes of pixels. Motion is then shown by frames that are farther from
            the right time by up to :data:`HISTORY_STEP` of the gap; at a usual camera's rate, nothing changes.
    """

    def __init__(self, gap_s: float, moment_s: Callable[[LiveFrame], float], *, thin: bool = False) -> None:
        self._gap_s, self._moment_s = gap_s, moment_s
        self._step_s = gap_s * HISTORY_STEP if thin else 0.0
        self._frames: deque[LiveFrame] = deque()

    def clear(self) -> None:
        """Forget all frames: the source was lost in between."""
        self._frames.clear()

    def add(self, frame: LiveFrame, fps: float | None) -> None:
        """Keep a frame, and forget those that are too old.

        Args:
            frame: the newest frame.
            fps: of a file of constant rate, whose frames are found by number; None where they are found by time.
        """
        if not self._gap_s:
            return
        frames = self._frames
        if len(frames) > 1 and self._moment_s(frames[-1]) - self._moment_s(frames[-2]) < self._step_s:
            frames.pop()  # it was kept only while it was the newest
        frames.append(frame)
        if fps is not None:
            first = motion_indices(frame.index, fps, self._gap_s)[0]
            while frames[0].index < first:
                frames.popleft()
            return
        # The newest of the frames that are too old stays: no other kept frame is nearer to its time.
        oldest_s = self._moment_s(frame) - 2 * self._gap_s
        while len(frames) > 1 and self._moment_s(frames[1]) < oldest_s:
            frames.popleft()

    def parts(self, frame: LiveFrame, fps: float | None, base_index: int) -> tuple[LiveFrame, ...]:
        """Return the frames that the model needs to see one: those that show its motion, and itself, last.

        Args:
            frame: the newest frame, which has been added.
            fps: as given to :meth:`add`.
            base_index: number of the first frame since the source was opened.
        """
        if not self._gap_s:
            return (frame,)
        kept = list(self._frames)
        if fps is not None:
            first = kept[0].index
            wanted = motion_indices(frame.index - base_index, fps, self._gap_s)
            return tuple(kept[max(0, base_index + number - first)] for number in wanted)
        moments_s = [self._moment_s(each) for each in kept]
        return tuple(kept[part] for part in nearest_motion(moments_s.__getitem__, len(kept) - 1, self._gap_s))

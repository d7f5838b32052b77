"""Which frames show the motion up to a glimpsed one."""

from __future__ import annotations

import pytest

from adafocus_edge.live.pacing import FrameHistory
from tests.support.live_parts import live_frame


def test_a_model_of_single_frames_needs_the_frame_alone() -> None:
    history = FrameHistory(0.0, lambda frame: frame.time_s)
    frame = live_frame(index=7, time_s=0.7)
    history.add(frame, 10.0)
    assert history.parts(frame, 10.0, 0) == (frame,)


@pytest.mark.parametrize("fps", [10.0, None])
def test_motion_is_shown_by_frames_one_and_two_gaps_before(fps: float | None) -> None:
    """By number in a file of constant rate, by time elsewhere: the same frames where both apply."""
    history = FrameHistory(0.3, lambda frame: frame.time_s)
    for index in range(50):
        frame = live_frame(index=index, time_s=index / 10)
        history.add(frame, fps)
        parts = history.parts(frame, fps, 0)
        assert [part.index for part in parts] == [max(0, index - 6), max(0, index - 3), index]
    history.clear()
    again = live_frame(index=50, time_s=90.0)  # after a loss, nothing is from before it
    history.add(again, fps)
    assert history.parts(again, fps, 50) == (again, again, again)

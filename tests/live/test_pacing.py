"""Which frames show the motion up to a glimpsed one."""

from __future__ import annotations

import weakref
from itertools import accumulate, cycle, islice

import pytest

from adafocus_edge.live.pacing import FrameHistory
from adafocus_edge.media.preprocess import nearest_motion
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


@pytest.mark.parametrize("gap_s", [0.02, 0.1, 0.5])
def test_frames_that_a_decoder_delivers_when_it_catches_up_are_not_all_kept(gap_s: float) -> None:
    """Those that show motion are still near the right times, and the newest is always there."""
    history = FrameHistory(gap_s, lambda frame: frame.time_s, thin=True)
    made: list[weakref.ref[object]] = []
    for index in range(1500):
        frame = live_frame(index=index, time_s=index / 1000)
        made.append(weakref.ref(frame))
        history.add(frame, None)
        parts = history.parts(frame, None, 0)
        assert parts[-1] is frame
        for part, gaps in zip(parts, (2, 1, 0), strict=True):
            assert abs(part.time_s - max(0.0, frame.time_s - gaps * gap_s)) <= gap_s / 8 + 1e-6
        del frame, parts, part
        assert sum(each() is not None for each in made) <= 20


@pytest.mark.parametrize("fps", [5, 15, 25, 30, 50, 60])
@pytest.mark.parametrize("thin", [True, False])
def test_at_the_rates_of_cameras_motion_is_shown_by_the_nearest_of_all_frames(thin: bool, fps: int) -> None:
    """Even where the frames do not arrive at even times."""
    history = FrameHistory(0.1, lambda frame: frame.time_s, thin=thin)
    moments_s = list(islice(accumulate(cycle(share / fps for share in (1.0, 0.8, 1.2, 1.1, 0.9))), 300))
    for index, time_s in enumerate(moments_s):
        frame = live_frame(index=index, time_s=time_s)
        history.add(frame, None)
        parts = history.parts(frame, None, 0)
        assert tuple(part.index for part in parts) == nearest_motion(moments_s.__getitem__, index, 0.1)


def test_in_a_file_every_frame_is_kept_that_may_be_the_nearest() -> None:
    """At any rate: what is seen of a file must be what is seen of it as a clip."""
    history = FrameHistory(0.1, lambda frame: frame.time_s)
    moments_s = [index / 480 for index in range(300)]
    for index, time_s in enumerate(moments_s):
        frame = live_frame(index=index, time_s=time_s)
        history.add(frame, None)
        parts = history.parts(frame, None, 0)
        assert tuple(part.index for part in parts) == nearest_motion(moments_s.__getitem__, index, 0.1)

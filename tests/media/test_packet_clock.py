"""Times and headers of copied packets, whatever a stream gives."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from adafocus_edge.media.packet_clock import COPY_TICKS, PacketClock
from adafocus_edge.media.parameter_sets import parameter_sets

STEP = 3600
TICK = Fraction(1, COPY_TICKS)


def run(times: list[tuple[int | None, int | None]], base: Fraction = TICK, reorder: int = 0) -> list[tuple[int, int]]:
    clock = PacketClock(base, reorder)
    found = [clock.time_of(pts, dts) for pts, dts in times]
    decoded = [one.decoded for one in found]
    assert all(before < after for before, after in pairwise(decoded))
    assert all(one.shown >= one.decoded for one in found)
    return [(one.decoded, one.shown) for one in found]


@pytest.mark.parametrize("start", [0, 12345, -77777, 2**33 - 5 * STEP])
def test_a_steady_stream_begins_at_0_and_keeps_its_pace(start: int) -> None:
    times = [(start + number * STEP, start + number * STEP) for number in range(10)]
    assert run([*times]) == [(number * STEP, number * STEP) for number in range(10)]


def test_ticks_of_other_clocks_are_converted_without_drift() -> None:
    milliseconds = [round(number * 1000 / 30) for number in range(3000)]
    found = run([(one, one) for one in milliseconds], Fraction(1, 1000))
    assert [decoded for decoded, _ in found] == [one * 90 for one in milliseconds]


def test_b_frames_keep_their_order() -> None:
    """I P B B P B B, decoded two frames before they are shown."""
    shown = [2, 5, 3, 4, 8, 6, 7]
    times = [(100 + one * STEP, 100 + number * STEP) for number, one in enumerate(shown)]
    expected = [(number * STEP, one * STEP) for number, one in enumerate(shown)]
    assert run([*times], reorder=2) == expected
    # Without the times of decoding, as some cameras send them, the result is the same once the pace is known.
    without = run([(pts, None) for pts, _ in times], reorder=2)
    assert [one for _, one in without] == [one for _, one in expected]


def test_missing_times_are_filled_in() -> None:
    first = [(None, None), (None, None), (1000, 1000), (1000 + STEP, 1000 + STEP)]
    assert [decoded for decoded, _ in run([*first])] == [0, STEP, 2 * STEP, 3 * STEP]
    gap = [(0, 0), (STEP, STEP), (None, None), (3 * STEP, 3 * STEP)]
    assert [decoded for decoded, _ in run([*gap])] == [0, STEP, 2 * STEP, 3 * STEP]


@pytest.mark.parametrize("jump_s", [-3600, -(2**33) / COPY_TICKS, 86400, 11])
def test_a_clock_that_jumps_goes_on_after_one_step(jump_s: float) -> None:
    jump = round(jump_s * COPY_TICKS)
    clock = PacketClock(TICK, 0)
    before = [clock.time_of(number * STEP, number * STEP) for number in range(5)]
    after = [clock.time_of(number * STEP + jump, number * STEP + jump) for number in range(5, 10)]
    assert [one.decoded for one in before + after] == [number * STEP for number in range(10)]
    assert [one.jumped for one in before + after] == [number == 5 for number in range(10)]


def test_a_pause_stays_a_pause_and_jitter_does_not_go_back() -> None:
    times = [0, STEP, 9 * COPY_TICKS, 9 * COPY_TICKS - 1000, 9 * COPY_TICKS - 1000, 9 * COPY_TICKS + STEP]
    found = [decoded for decoded, _ in run([(one, one) for one in times])]
    assert found[:3] == times[:3]
    assert found[3:5] == [times[2] + 1, times[2] + 2]
    assert found[5] == times[5]


def test_any_times_make_a_file() -> None:
    dice = np.random.default_rng(7)
    for _ in range(200):
        times: list[tuple[int | None, int | None]] = []
        for _ in range(50):
            value = int(dice.integers(-(2**34), 2**34)) if dice.random() < 0.3 else len(times) * STEP
            dts = None if dice.random() < 0.2 else value
            pts = None if dice.random() < 0.2 else value + int(dice.integers(-9, 9)) * STEP
            times.append((pts, dts))
        run(times, reorder=int(dice.integers(0, 4)))


SPS, PPS, IDR = b"\x67\x42\xc0\x1e\xda", b"\x68\xce\x3c\x80", b"\x65" + b"\x11\x00\x00\x03\x01" * 50
LONG, SHORT = b"\0\0\0\1", b"\0\0\1"


def test_parameter_sets_are_the_same_however_they_are_sent() -> None:
    expected = LONG + SPS + LONG + PPS
    assert parameter_sets("h264", LONG + SPS + LONG + PPS) == expected
    assert parameter_sets("h264", LONG + b"\x09\x10" + SHORT + PPS + SHORT + SPS + SHORT + IDR) == expected
    assert parameter_sets("h264", (LONG + SPS + SHORT + PPS) * 3 + SHORT + IDR + SHORT + b"\x67other") == expected
    assert parameter_sets("h264", SHORT + SPS + SHORT + IDR) is None, "not all of them"
    assert parameter_sets("h264", b"\x00\x00\x00\x05" + SPS) is None, "lengths, not start codes"
    assert parameter_sets("h264", b"") is None
    assert parameter_sets("mjpeg", b"\xff\xd8") is None
    vps, sps, pps, slice_ = (bytes([kind << 1, 1]) + b"\x55" for kind in (32, 33, 34, 19))
    hevc = LONG + vps + SHORT + sps + SHORT + pps + SHORT + slice_
    assert parameter_sets("hevc", hevc) == LONG + vps + LONG + sps + LONG + pps
    layer = SHORT + b"\xb0\x01" + SHORT + b"\x20\x11"
    assert parameter_sets("mpeg4", layer + SHORT + b"\xb6picture") == layer
    assert parameter_sets("mpeg4", SHORT + b"\xb6picture") is None

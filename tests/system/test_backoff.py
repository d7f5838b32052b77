"""Pauses between attempts."""

from __future__ import annotations

from adafocus_edge.system.backoff import Backoff


def test_pauses_double_up_to_a_minute_and_start_again_after_a_success() -> None:
    backoff = Backoff()
    pauses = []
    for _ in range(8):
        pauses.append(backoff.pause_s)
        backoff.failed()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.pause_s == 1

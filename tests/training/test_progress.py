"""Progress in a log that is no terminal: a line now and then, with the time left."""

from __future__ import annotations

from adafocus_edge.system.console import progress_bars
from training.progress import LINE_S, Progress, in_words


def test_a_log_gets_a_line_with_the_time_left_every_half_minute() -> None:
    now, lines = [0.0], []
    with progress_bars(quiet=True) as bars:
        progress = Progress(bars, lines.append, lambda: now[0])
        with progress.task("epoch 3/9", 100) as task:
            for _ in range(100):
                now[0] += 1.0
                task.advance("loss 0.5")
        assert lines == [
            "epoch 3/9: 30 of 100, loss 0.5, 70 s left",
            "epoch 3/9: 60 of 100, loss 0.5, 40 s left",
            "epoch 3/9: 90 of 100, loss 0.5, 10 s left",
        ]
        assert LINE_S == 30
        assert progress.count_epoch(100, 6) == ", 10 min left"
        assert progress.count_epoch(300, 5) == ", 17 min left"
        assert progress.count_epoch(300, 0) == ""


def test_durations_read_as_a_person_says_them() -> None:
    assert [in_words(s) for s in (0, 99.4, 100, 3600, 12000)] == ["0 s", "99 s", "2 min", "60 min", "3 h 20 min"]

"""What many timings of one thing come to, whether two of them can be told apart, and which rows are the best."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SURE = 0.95
"""Of every interval that is printed."""
SAME = 0.01
"""Two medians whose ratio is nearer to 1 than this are not told apart, however sure it is."""
FEWEST_TO_TELL = 6
"""Rounds from which an interval of a median can be 95 % sure at all."""
SMALLEST_RISK = 1e-12


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return what samples come to, rounded to 4 digits after the point.

    Returns:
        ``median``, ``p95``, ``p99``, ``min``, ``rounds``; ``spread``: half the width that the middle 90 % of the
        samples take; ``low`` and ``high``: between them lies the median, 95 % sure (all samples where they are few).
    """
    values = np.sort(np.asarray(samples, float))
    low, high = _median_ranks(len(values))
    p5, p50, p95, p99 = np.percentile(values, [5, 50, 95, 99])
    found = {
        "median": p50, "p95": p95, "p99": p99, "min": values[0], "spread": (p95 - p5) / 2,
        "low": values[low], "high": values[high],
    }  # fmt: skip
    return {**{name: round(float(value), 4) for name, value in found.items()}, "rounds": len(values)}


def _median_ranks(count: int) -> tuple[int, int]:
    """Return the ranks (from 0) of the order statistics between which the median lies, at least 95 % sure."""
    outside = 0.0
    low = 0
    for rank in range(count // 2):
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 1 - SURE:
            break
        low = rank + 1
    low = max(0, low - 1)
    return low, count - 1 - low


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float, float]:
    """Return the median of the ratios of two rows in the rounds that both took part in, and its 95 % interval.

    A machine that slows down hurts both in the same round, so their ratio stays. NaNs without a common round.
    """
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return math.nan, math.nan, math.nan
    found = summary([ours[round_] / theirs[round_] for round_ in both])
    return found["median"], found["low"], found["high"]


def distinguishable(ours: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    """Whether one of two rows is surely faster, by more than a percent, judged by the rounds that both took part in."""
    middle, low, high = ratio(ours, theirs)
    if len(ours.keys() & theirs.keys()) < FEWEST_TO_TELL:
        return False
    return not low <= 1 <= high and abs(middle - 1) > SAME


def front(points: Sequence[tuple[float, float | None]]) -> list[bool]:
    """Return which of the points (cost, accuracy) are on the Pareto front: none is as cheap and better, or vice versa.

    Points without an accuracy are never on it.
    """
    flags = []
    for cost, accuracy in points:
        flags.append(
            accuracy is not None
            and not any(
                other is not None and c <= cost and other >= accuracy and (c < cost or other > accuracy)
                for c, other in points
            )
        )
    return flags


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return how likely two models' right answers on the same clips differ by chance alone (exact McNemar test).

    Args:
        ours: whether each clip is right.
        theirs: the same clips.

    Returns:
        the two-sided probability, 0 to 1.
    """
    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    differ = only_ours + only_theirs
    tail = sum(math.comb(differ, count) for count in range(min(only_ours, only_theirs) + 1)) / 2**differ
    return float(min(1.0, max(SMALLEST_RISK, 2 * tail)))

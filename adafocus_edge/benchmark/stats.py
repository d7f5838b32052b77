"""Statistics of timings: summaries, whether two rows differ, and which rows are Pareto optimal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SURE = 0.95
"""Confidence level of every interval."""
SAME = 0.01
"""Two medians whose ratio is nearer to 1 than this count as equal, however certain the ratio."""
MIN_ROUNDS = 6
"""Min rounds for a 95 % interval of a median to exist."""
SMALLEST_RISK = 1e-12


@dataclass(frozen=True)
class Summary:
    """The distribution of samples.

    Attributes:
        median: the median.
        p95: the 95th percentile.
        p99: the 99th percentile.
        min: the smallest sample.
        spread: half the width of the middle 90 % of the samples.
        low: lower end of the 95 % interval of the median (the smallest sample if they are few).
        high: its upper end.
        rounds: number of samples.
    """

    median: float
    p95: float
    p99: float
    min: float
    spread: float
    low: float
    high: float
    rounds: int


def summary(samples: Sequence[float]) -> Summary:
    """Summarise samples, rounded to 4 digits after the point."""
    values = np.sort(np.asarray(samples, float))
    low, high = _median_ranks(len(values))
    p5, p50, p95, p99 = np.percentile(values, [5, 50, 95, 99])
    found = {
        "median": p50, "p95": p95, "p99": p99, "min": values[0], "spread": (p95 - p5) / 2,
        "low": values[low], "high": values[high],
    }  # fmt: skip
    return Summary(**{name: round(float(value), 4) for name, value in found.items()}, rounds=len(values))


def _median_ranks(count: int) -> tuple[int, int]:
    """Return the ranks (from 0) of the order statistics that bound the median with at least 95 % confidence."""
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
    """Return the median of the ratios of two rows in their common rounds, and its 95 % interval.

    A machine that slows down affects both rows in the same round, so their ratio stays the same. Returns NaNs without a
    common round.
    """
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return math.nan, math.nan, math.nan
    found = summary([ours[round_] / theirs[round_] for round_ in both])
    return found.median, found.low, found.high


def comparable(ours: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    """Return whether two rows have enough common rounds to decide which is faster."""
    return len(ours.keys() & theirs.keys()) >= MIN_ROUNDS


def distinguishable(ours: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    """Return whether one of two rows is significantly faster, by more than a percent, in their common rounds."""
    if not comparable(ours, theirs):
        return False
    middle, low, high = ratio(ours, theirs)
    return not low <= 1 <= high and abs(middle - 1) > SAME


def front(points: Sequence[tuple[float, float | None]]) -> list[bool]:
    """Return which points (cost, accuracy) are on the Pareto front: no other is as good in one and better in the other.

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
    """Return the probability that two models' correct answers on the same clips differ by chance (exact McNemar test).

    Args:
        ours: whether the one model is right, for each clip.
        theirs: whether the other model is right, for the same clips.

    Returns:
        the two-sided probability, 0 to 1.
    """
    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    differ = only_ours + only_theirs
    tail = sum(math.comb(differ, count) for count in range(min(only_ours, only_theirs) + 1)) / 2**differ
    return float(min(1.0, max(SMALLEST_RISK, 2 * tail)))

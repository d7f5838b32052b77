"""Viewing order and exit thresholds as AdaFocus V2 and Uni-AdaFocus publish them (arXiv 2112.14238, 2412.11228)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEVER = 1e8
"""Threshold of a step at which no clip exits; its negative makes every clip exit at the last step."""


def published_order(count: int) -> list[int]:
    """Return the order in which V2 sees a clip's ``count`` frames, as positions from 0 (official ``--sample``).

    The middle (rounded down), the first and the last frame; then, for 2, 4, 8 ... equal intervals, each one's middle.
    """
    last = count - 1
    seen = list(dict.fromkeys([last // 2, 0, last]))
    parts = 2
    while len(seen) < count:
        bounds = [part * last // parts for part in range(parts + 1)]
        middles = [(start + stop) // 2 for start, stop in pairwise(bounds)]
        seen = list(dict.fromkeys([*seen, *middles]))[:count]
        parts *= 2
    return seen


def published_thresholds(confidences: NDArray[np.float32], ratio: float) -> NDArray[np.float32]:
    """Solve thresholds that let a geometric series of shares of the clips exit, the surest first.

    Args:
        confidences: float32 [N, T] of the clips to solve on, after each step: larger is surer.
        ratio: q; the share that exits at step k = 1..T is proportional to q ** k.

    Returns:
        float32 [T]: a clip exits at the first step where its confidence is at least this.
    """
    clips, steps = confidences.shape
    shares = np.power(ratio, np.arange(1, steps + 1))
    shares /= shares.sum()
    thresholds = np.full(steps, NEVER, np.float32)
    inside = np.ones(clips, bool)
    for step in range(steps):
        exits = int(np.floor(clips * shares[step]))
        candidates = np.flatnonzero(inside)
        surest = candidates[np.argsort(-confidences[candidates, step], kind="stable")][:exits]
        if len(surest):
            thresholds[step] = confidences[surest[-1], step]
            inside[surest] = False
    thresholds[-1] = -NEVER
    return thresholds

"""Early exit: how sure a model is after a step, the thresholds at which it stops, and the order frames are seen in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from adafocus_edge.model.logits import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Confidence = Literal["probability", "logit", "entropy"]
"""The largest softmax probability; the largest logit; or the negative entropy of the probabilities, in nats."""
Order = Literal["clip", "coarse-to-fine", "live"]
"""A clip's T frames in time; its middle, its ends, then halves of what lies between; or T frames at a live rate."""
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class ExitThresholds:
    """When a clip may stop.

    Attributes:
        order: in which the frames were seen for which these thresholds were solved.
        confidence: what is compared with them.
        values: for each of the T steps, the confidence from which the run stops there; None for never.
        goal: what they were solved for, in words.
        mean_steps: how many steps they took on the clips they were solved on.
        top1: and how often they were right there, in percent.
        glimpse_fps: for ``live``: glimpses per second.
    """

    order: Order
    confidence: Confidence
    values: tuple[float | None, ...]
    goal: str = ""
    mean_steps: float = 0.0
    top1: float = 0.0
    glimpse_fps: float | None = None

    @classmethod
    def at(cls, probability: float, steps: int) -> ExitThresholds:
        """Return the same probability as the threshold of every step."""
        return cls("clip", "probability", (probability,) * steps)

    def passes(self, step: int, logits: NDArray[np.float32]) -> bool:
        """Whether a run may stop after a step (from 0) that gave these logits, float32 [C]."""
        threshold = self.values[step]
        return threshold is not None and float(confidence_of(logits, self.confidence)) >= threshold


def confidence_of(logits: NDArray[np.float32], kind: Confidence) -> NDArray[np.float32]:
    """Return how sure logits [..., C] are, [...]: larger is surer."""
    if kind == "logit":
        return np.asarray(logits.max(axis=-1))
    probabilities = softmax(logits)
    if kind == "probability":
        return np.asarray(probabilities.max(axis=-1))
    return np.asarray((probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(axis=-1))


def exit_steps(logits: NDArray[np.float32], thresholds: ExitThresholds) -> NDArray[np.int64]:
    """Return the step, from 0, at which each clip stops; int64 [N] for logits [N, T, C]."""
    never = np.array([np.inf if value is None else value for value in thresholds.values])
    never[-1] = -np.inf  # after its last step, every clip stops
    passed = confidence_of(logits, thresholds.confidence) >= never
    return np.asarray(passed.argmax(axis=1), np.int64)


def random_exit_top1(right: NDArray[np.bool_], steps: NDArray[np.int64]) -> float:
    """Return the accuracy in percent of stopping as often at each step, at clips drawn at random: the expectation.

    Args:
        right: [N, T], whether each clip is right after each step.
        steps: [N], where the clips stop.
    """
    shares = np.bincount(steps, minlength=right.shape[1]) / len(steps)
    return float((right.mean(axis=0) * shares).sum() * 100)


def viewing_order(order: Order, count: int) -> list[int]:
    """Return the order in which a clip's ``count`` frames are seen, as positions from 0.

    Coarse to fine: the middle, the first, the last, then the middle of the widest gap left (the earlier of equals).
    """
    if order != "coarse-to-fine":
        return list(range(count))
    seen = list(dict.fromkeys([count // 2, 0, count - 1]))
    while len(seen) < count:
        ordered = sorted(seen)
        start, stop = max(pairwise(ordered), key=lambda gap: gap[1] - gap[0])
        seen.append((start + stop) // 2)
    return seen


def find_exits(sets: dict[str, tuple[ExitThresholds, ...]], name: str, orders: Sequence[Order]) -> ExitThresholds:
    """Return a named set's thresholds for the first of some orders that it has. Raises ``KeyError`` with the reason."""
    if name not in sets:
        known = ", ".join(sets) or "none: `adafocus-edge calibrate` solves them"
        raise KeyError(f"no exit thresholds {name!r}; there are: {known}")
    for order in orders:
        for thresholds in sets[name]:
            if thresholds.order == order:
                return thresholds
    there = ", ".join(thresholds.order for thresholds in sets[name])
    raise KeyError(f"exit thresholds {name!r} are for {there}, not for {' or '.join(orders)}: calibrate with --orders")

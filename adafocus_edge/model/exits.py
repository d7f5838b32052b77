"""Early exit: the confidence after each step, the thresholds at which a clip stops, and the order of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from adafocus_edge.model.logits import softmax

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

Confidence = Literal["probability", "logit", "entropy"]
"""The highest softmax probability; the highest logit; or the negative entropy of the probabilities, in nats."""
Order = Literal["clip", "coarse-to-fine", "live"]
"""A clip's T frames in order of time; its middle, its ends, then the middles of the gaps; or T frames at a live rate.
"""
EXIT_PIECE = 2
"""Frames that are seen at a time where a clip may stop after any of them."""
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class ExitThresholds:
    """The confidence at which a clip stops, for each step.

    Attributes:
        order: the order of frames for which the thresholds were solved.
        confidence: the kind of confidence that is compared with them.
        values: for each of the T steps, the lowest confidence at which the clip stops there; None: it never does.
        goal: the target of the solver, in words.
        mean_steps: mean number of steps on the clips on which they were solved.
        top1: accuracy on these clips, in percent.
        glimpse_fps: glimpses per second, for the order ``live``; otherwise None.
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
        """Return thresholds that are the same probability at each of ``steps`` steps."""
        return cls("clip", "probability", (probability,) * steps)

    def pieces(self, largest: int) -> Iterator[int]:
        """Yield how many frames to see at a time, so that little is computed after the step at which a clip stops.

        Frames in front of the first step that may stop a clip are seen together, and then :data:`EXIT_PIECE` at a time:
        on a CPU, two at a time take about 0.8 times as long for each as alone in INT8, and as long in FP32.

        Args:
            largest: maximum number of frames at a time.
        """
        step, steps = 0, len(self.values)
        while step < steps:
            stop = next((later for later in range(step, steps) if self.values[later] is not None), steps - 1)
            size = min(max(stop + 1 - step, EXIT_PIECE), largest, steps - step)
            yield size
            step += size

    def passes(self, step: int, logits: NDArray[np.float32]) -> bool:
        """Return whether a clip stops after a step (from 0) whose logits are ``logits``, float32 [C]."""
        threshold = self.values[step]
        return threshold is not None and float(confidence_of(logits, self.confidence)) >= threshold


def confidence_of(logits: NDArray[np.float32], kind: Confidence) -> NDArray[np.float32]:
    """Return the confidence, float32 [...], of logits, float32 [..., C]; higher means more certain."""
    if kind == "logit":
        return np.asarray(logits.max(axis=-1))
    probabilities = softmax(logits)
    if kind == "probability":
        return np.asarray(probabilities.max(axis=-1))
    return np.asarray((probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(axis=-1))


def exit_steps(logits: NDArray[np.float32], thresholds: ExitThresholds) -> NDArray[np.int64]:
    """Return the step, from 0, at which each clip stops: int64 [N] for logits, float32 [N, T, C]."""
    never = np.array([np.inf if value is None else value for value in thresholds.values])
    never[-1] = -np.inf  # after its last step, every clip stops
    passed = confidence_of(logits, thresholds.confidence) >= never
    return np.asarray(passed.argmax(axis=1), np.int64)


def random_exit_top1(right: NDArray[np.bool_], steps: NDArray[np.int64]) -> float:
    """Return the expected accuracy, in percent, if the same number of clips stopped at each step, but random ones.

    Args:
        right: bool [N, T], whether each clip is classified correctly after each step.
        steps: int64 [N], the steps at which the clips stop.
    """
    shares = np.bincount(steps, minlength=right.shape[1]) / len(steps)
    return float((right.mean(axis=0) * shares).sum() * 100)


def viewing_order(order: Order, count: int) -> list[int]:
    """Return the order in which a clip's ``count`` frames are seen, as positions from 0.

    Coarse to fine: the middle, the first, the last, then the middle of the widest gap (of equal gaps, the earlier).
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
    """Return the thresholds of a named set, for the first of ``orders`` that the set has.

    Raises:
        KeyError: there is no such set, or it has none of these orders; its message says how to get them.
    """
    if name not in sets:
        known = ", ".join(sets) or "none; `adafocus-edge calibrate` computes them"
        raise KeyError(f"no exit thresholds {name!r}; this bundle has: {known}")
    for order in orders:
        for thresholds in sets[name]:
            if thresholds.order == order:
                return thresholds
    solved = ", ".join(thresholds.order for thresholds in sets[name])
    raise KeyError(
        f"exit thresholds {name!r} are for the order {solved}, not for {' or '.join(orders)}: "
        "run `adafocus-edge calibrate` with --orders"
    )

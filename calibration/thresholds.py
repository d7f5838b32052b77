"""Solve exit thresholds on held-out clips, for a budget of steps or GFLOPs, or for a required accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.evidence import Verdict, mean_interval, share_interval
from adafocus_edge.model.exits import Confidence, ExitThresholds, Order, confidence_of, exit_steps
from adafocus_edge.model.published import NEVER, published_thresholds

Kind = Literal["steps", "gflops", "drop", "accuracy", "ratio"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WORDS: dict[Kind, tuple[str, str]] = {
    "steps": ("at most ", " steps"),
    "gflops": ("at most ", " GFLOPs per clip"),
    "drop": ("at most ", " points lost"),
    "accuracy": ("at least ", " % right"),
    "ratio": ("as published, shares of exits that grow by ", " per step"),
}
"""Wording of each kind of goal: the text before and after its number."""
CONSTANTS = 200
"""Max number of thresholds tried that are the same at every step."""
SPENT = 0.85
"""Min share of a budget to spend, if any thresholds can."""
RATIOS = np.concatenate([np.linspace(0.05, 0.95, 19), 1 / np.linspace(1.0, 0.05, 20)])
"""Ratios tried between the shares of exits of one step and the step before."""


@dataclass(frozen=True)
class Goal:
    """The goal that a named set of thresholds is solved for.

    Attributes:
        name: name of the set.
        kind: ``steps`` or ``gflops``: the best accuracy for a mean budget per clip; ``drop`` or ``accuracy``: the
            min steps with at most that many points lost, or at least that many percent right. Lost clips are those
            that all steps would get right: on few clips, others that are right by chance must not make up for them.
            ``ratio``: no search; the shares of clips that exit at each step are given, as AdaFocus V2 publishes it.
        value: steps, units of 1e9 multiply-adds, points, percent, or the share of a step's exits over those before.
    """

    name: str
    kind: Kind
    value: float

    def __str__(self) -> str:
        before, after = WORDS[self.kind]
        return f"{before}{self.value:g}{after}"

    @classmethod
    def said(cls, name: str, words: str) -> Goal | None:
        """Parse the text of :meth:`__str__`; return None if it is not a goal."""
        for kind, (before, after) in WORDS.items():
            if words.startswith(before) and words.endswith(after):
                try:
                    return cls(name, kind, float(words[len(before) : -len(after)]))
                except ValueError:
                    continue
        return None

    def verdict(
        self, logits: NDArray[np.float32], labels: NDArray[np.int64], exits: ExitThresholds, gflops_per_step: float
    ) -> Verdict | None:
        """Return whether thresholds meet the goal on clips, and if the clips suffice; arguments as :func:`solve`.

        None for a ``ratio``, which demands nothing of the result.
        """
        if self.kind == "ratio":
            return None
        right = logits.argmax(axis=2) == labels[:, None]
        steps = exit_steps(logits, exits)
        now, count = right[np.arange(len(steps)), steps], len(steps)
        if self.kind in ("steps", "gflops"):
            cost = (steps + 1.0) * (1.0 if self.kind == "steps" else gflops_per_step)
            return Verdict(str(self), self.value, float(cost.mean()), mean_interval(cost.tolist()), count)
        hits = int((right[:, -1] & ~now).sum() if self.kind == "drop" else now.sum())
        interval = share_interval(hits, count)
        return Verdict(str(self), self.value, hits / count * 100, interval, count, at_most=self.kind == "drop")

    def check(self, steps: int, gflops_per_step: float) -> None:
        """Raise ``UsageError`` if the budget is less than one step, or more than all steps take."""
        budget = {"steps": self.value, "gflops": self.value / gflops_per_step}.get(self.kind)
        if budget is not None and not budget >= 1:
            raise UsageError(f"--exit-goal {self.name}: {self}, but one step alone takes {gflops_per_step:.3g} GFLOPs")
        if budget is not None and budget > steps:
            raise UsageError(f"--exit-goal {self.name}: {self}, but a clip has only {steps} steps")

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Parse ``NAME=KIND:VALUE``. Raises ``UsageError`` if malformed."""
        name, _, goal = text.partition("=")
        kind, _, number = goal.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        known = next((known for known in KINDS if known == kind), None)
        if not name.replace("-", "").replace("_", "").isalnum() or known is None or not 0 <= value < np.inf:
            raise UsageError(
                f"--exit-goal {text!r}: must be NAME=KIND:VALUE, KIND one of {', '.join(KINDS)}, such as half=steps:8"
            )
        if known == "ratio" and not 0.01 <= value <= 100:
            raise UsageError(f"--exit-goal {text!r}: a ratio must be 0.01 to 100; the published ones are 0.5 to 3.9")
        return cls(name, known, value)


def solve(
    goal: Goal,
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    order: Order,
    confidence: Confidence,
    gflops_per_step: float,
    glimpse_fps: float | None = None,
) -> ExitThresholds:
    """Solve one set of thresholds.

    Args:
        goal: the goal to meet.
        logits: float32 [N, T, C], of clips that the model was not trained on, their frames in ``order``.
        labels: class ids, int64 [N].
        order: frame order.
        confidence: confidence measure that is compared with the thresholds.
        gflops_per_step: converts a budget of GFLOPs to steps.
        glimpse_fps: glimpses per second of live windows.

    Two families are tried: one threshold for all steps, and thresholds at which a geometric series of shares of the
    clips exits, the most confident first (as in MSDNet's dynamic evaluation; arXiv 1703.09844, section 5). A ``ratio``
    gives the one set of its series (:func:`~adafocus_edge.model.published.published_thresholds`). Raises
    ``UsageError`` if a budget is below one step, or an accuracy above that of all steps.
    """
    sure = confidence_of(logits, confidence)
    right = logits.argmax(axis=2) == labels[:, None]
    full = float(right[:, -1].mean() * 100)
    best: tuple[tuple[float, float, float], ExitThresholds] | None = None
    longest = logits.shape[1]
    for values in (_published(sure, goal.value),) if goal.kind == "ratio" else _candidates(sure):
        found = ExitThresholds(order, confidence, values, str(goal), glimpse_fps=glimpse_fps)
        steps = exit_steps(logits, found)
        mean_steps, top1 = float(steps.mean() + 1), float(right[np.arange(len(steps)), steps].mean() * 100)
        if goal.kind in ("steps", "gflops"):
            budget = goal.value if goal.kind == "steps" else goal.value / gflops_per_step
            fits = mean_steps <= budget + 1e-9
            # Prefer thresholds that spend the budget: on few clips, a better accuracy far below it is due to chance.
            score = (float(mean_steps >= SPENT * min(budget, longest)), top1, mean_steps)
        elif goal.kind == "ratio":
            fits, score = True, (0.0, 0.0, 0.0)
        else:
            now = right[np.arange(len(steps)), steps]
            lost = float((right[:, -1] & ~now).mean() * 100)
            fits = lost <= goal.value + 1e-9 if goal.kind == "drop" else top1 >= goal.value - 1e-9
            score = (-mean_steps, top1, 0.0)
        if fits and (best is None or score > best[0]):
            solved = ExitThresholds(
                order, confidence, values, str(goal), round(mean_steps, 4), round(top1, 4), glimpse_fps
            )
            best = score, solved
    if best is None:
        reached = f"all steps reach {full:.2f} %" if goal.kind == "accuracy" else "every clip takes at least one step"
        raise UsageError(f"--exit-goal {goal.name}: {goal} cannot be met: {reached}")
    return best[1]


def _candidates(sure: NDArray[np.float32]) -> Iterator[tuple[float | None, ...]]:
    """Yield thresholds for each step, from the confidences [N, T] of held-out clips."""
    clips, steps = sure.shape
    yield (None,) * steps
    early = np.unique(sure[:, :-1]) if steps > 1 else np.empty(0, np.float32)
    if len(early):
        places = np.unique(np.linspace(0, len(early) - 1, CONSTANTS).astype(int))
        for value in early[places]:
            yield (*[_below(value)] * (steps - 1), None)
    for ratio in RATIOS:
        shares = ratio ** np.arange(steps)
        wanted = np.round(shares / shares.sum() * clips).astype(int)
        left = np.ones(clips, bool)
        values: list[float | None] = []
        for step in range(steps - 1):
            inside = np.flatnonzero(left)
            surest = inside[np.argsort(-sure[inside, step], kind="stable")][: wanted[step]]
            values.append(_below(sure[surest[-1], step]) if len(surest) else None)
            left[surest] = False
        yield (*values, None)


def _published(sure: NDArray[np.float32], ratio: float) -> tuple[float | None, ...]:
    """Return the published thresholds for each step; None where no clip exits, and at the last step."""
    return tuple(None if abs(value) >= NEVER else float(value) for value in published_thresholds(sure, ratio))


def _below(value: float) -> float:
    """Return the largest float32 below ``value``: a threshold that it still passes after a round trip through text."""
    return float(np.nextafter(np.float32(value), np.float32(-np.inf)))

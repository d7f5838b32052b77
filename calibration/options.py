"""Turn the command line's words into options: look up names, parse goals, refuse contradictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.settings import Patches
from adafocus_edge.model.exits import CONFIDENCES, ORDERS
from calibration.calibrate import CalibrateOptions
from calibration.int8 import needs_reduced_range
from calibration.ranges import METHODS
from calibration.thresholds import Goal
from calibration.variants import VARIANTS

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True, kw_only=True)
class CalibrateArguments:
    """The arguments of ``adafocus-edge calibrate`` as the command line gives them.

    Attributes:
        variants: comma-separated names, or ``none``.
        exit_goals: ``NAME=KIND:VALUE`` each, ``none``, or None for two goals: half the steps, and at most half a
            point lost.
        method: name of a range method, or ``auto``.
        confidence: name of a confidence measure.
        orders: comma-separated names.
        reduce_range: ``on``, ``off`` or ``auto``.

    The other attributes are those of :class:`CalibrateOptions`.
    """

    data: Path
    frames: Path | None
    report_on: Path | None
    variants: str
    exit_goals: Sequence[str] | None
    output: Path | None
    clips: int
    samples: int
    share: float
    seed: int
    patches: Patches
    method: str
    max_drop: float
    confidence: str
    orders: str
    glimpse_fps: float
    reduce_range: str
    threads: int | None
    force: bool

    def options(self, segments: int) -> CalibrateOptions:
        """Return them with names looked up and goals parsed, for a model of ``segments`` steps.

        Raises ``UsageError`` for an unknown name, a malformed or duplicate goal, or nothing to do.
        """
        reduced = _one("--reduce-range", self.reduce_range, ("auto", "on", "off"))
        options = CalibrateOptions(
            data=self.data,
            frames=self.frames,
            report_on=self.report_on,
            variants=() if self.variants == "none" else _some("--variants", self.variants, VARIANTS),
            goals=_goals(self.exit_goals, segments),
            output=self.output,
            clips=self.clips,
            samples=self.samples,
            share=self.share,
            seed=self.seed,
            patches=self.patches,
            method=None if self.method == "auto" else _one("--method", self.method, METHODS),
            max_drop=self.max_drop,
            confidence=_one("--confidence", self.confidence, CONFIDENCES),
            orders=_some("--orders", self.orders, ORDERS),
            glimpse_fps=self.glimpse_fps,
            reduce_range=needs_reduced_range() if reduced == "auto" else reduced == "on",
            threads=self.threads,
            force=self.force,
        )
        if not options.variants and not options.goals:
            raise UsageError("--variants none and --exit-goal none: nothing to do: name a variant or a goal")
        return options


def _goals(given: Sequence[str] | None, segments: int) -> tuple[Goal, ...]:
    words: Sequence[str] = given or (f"half=steps:{max(1, segments / 2):g}", "safe=drop:0.5")
    goals = () if list(words) == ["none"] else tuple(Goal.parse(goal) for goal in words)
    if len({goal.name for goal in goals}) < len(goals):
        raise UsageError("--exit-goal: two goals have the same name: give each its own")
    return goals


def _some(option: str, given: str, known: Sequence[Name]) -> tuple[Name, ...]:
    return tuple(dict.fromkeys(_one(option, name.strip(), known) for name in given.split(",")))


def _one(option: str, given: str, known: Sequence[Name]) -> Name:
    found = next((name for name in known if name == given), None)
    if found is None:
        raise UsageError(f"{option} {given}: must be one of {', '.join(known)}")
    return found

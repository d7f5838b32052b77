"""The command line's words as options: names are looked up, goals are read, what contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from adafocus_edge.errors import UsageError
from adafocus_edge.model.exits import CONFIDENCES, ORDERS
from calibration.calibrate import CalibrateOptions
from calibration.int8 import needs_reduced_range
from calibration.ranges import METHODS
from calibration.thresholds import Goal
from calibration.variants import VARIANTS

Name = TypeVar("Name", bound=str)


def read_options(
    *,
    variants: str,
    method: str,
    exit_goals: Sequence[str] | None,
    confidence: str,
    orders: str,
    reduce_range: str,
    segments: int,
    **others: Any,
) -> CalibrateOptions:
    """Return :class:`CalibrateOptions` of what ``adafocus-edge calibrate`` was given.

    Args:
        variants: names by commas, or ``none``.
        method: a name, or ``auto``.
        exit_goals: ``NAME=KIND:VALUE`` each, ``none``, or None for half the steps, and for half a point lost.
        confidence: a name.
        orders: names by commas.
        reduce_range: ``on``, ``off`` or ``auto``.
        segments: T of the model.
        others: taken as they are.

    Raises ``UsageError``.
    """
    goals: Sequence[str] = exit_goals or (f"half=steps:{max(1, segments / 2):g}", "safe=drop:0.5")
    read = () if list(goals) == ["none"] else tuple(Goal.parse(goal) for goal in goals)
    if len({goal.name for goal in read}) < len(read):
        raise UsageError("--exit-goal: two goals have the same name")
    reduced = _one("--reduce-range", reduce_range, ("auto", "on", "off"))
    options = CalibrateOptions(
        variants=() if variants == "none" else _some("--variants", variants, VARIANTS),
        goals=read,
        method=None if method == "auto" else _one("--method", method, METHODS),
        confidence=_one("--confidence", confidence, CONFIDENCES),
        orders=_some("--orders", orders, ORDERS),
        reduce_range=needs_reduced_range() if reduced == "auto" else reduced == "on",
        **others,
    )
    if not options.variants and not options.goals:
        raise UsageError("--variants none and --exit-goal none: nothing is left to do")
    return options


def _some(option: str, given: str, known: Sequence[Name]) -> tuple[Name, ...]:
    return tuple(dict.fromkeys(_one(option, name.strip(), known) for name in given.split(",")))


def _one(option: str, given: str, known: Sequence[Name]) -> Name:
    found = next((name for name in known if name == given), None)
    if found is None:
        raise UsageError(f"{option} {given}: is none of {', '.join(known)}")
    return found

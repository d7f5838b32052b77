"""Turn the command line's words into options: look up names, parse goals, refuse contradictions."""

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
    """Return the :class:`CalibrateOptions` for the arguments of ``adafocus-edge calibrate``.

    Args:
        variants: comma-separated names, or ``none``.
        method: name of a range method, or ``auto``.
        exit_goals: ``NAME=KIND:VALUE`` each, ``none``, or None for two goals: half the steps, and at most half a
            point lost.
        confidence: name of a confidence measure.
        orders: comma-separated names.
        reduce_range: ``on``, ``off`` or ``auto``.
        segments: T of the model.
        others: fields of :class:`CalibrateOptions`, passed on unchanged.

    Raises ``UsageError`` for an unknown name, a malformed or duplicate goal, or nothing to do.
    """
    goals: Sequence[str] = exit_goals or (f"half=steps:{max(1, segments / 2):g}", "safe=drop:0.5")
    read = () if list(goals) == ["none"] else tuple(Goal.parse(goal) for goal in goals)
    if len({goal.name for goal in read}) < len(read):
        raise UsageError("--exit-goal: two goals have the same name: give each its own")
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
        raise UsageError("--variants none and --exit-goal none: nothing to do: name a variant or a goal")
    return options


def _some(option: str, given: str, known: Sequence[Name]) -> tuple[Name, ...]:
    return tuple(dict.fromkeys(_one(option, name.strip(), known) for name in given.split(",")))


def _one(option: str, given: str, known: Sequence[Name]) -> Name:
    found = next((name for name in known if name == given), None)
    if found is None:
        raise UsageError(f"{option} {given}: must be one of {', '.join(known)}")
    return found

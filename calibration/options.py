"""Turn arguments of the command line or of Python into options: look up names, parse goals, refuse contradictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_args

from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.calibrate_settings import CalibrateArguments
from adafocus_edge.evaluation.settings import CalibrationPatches
from adafocus_edge.model.exits import CONFIDENCES, ORDERS
from calibration.calibrate import Calibrated, CalibrateOptions, Progress, calibrate
from calibration.int8 import needs_reduced_range
from calibration.ranges import METHODS
from calibration.thresholds import Goal
from calibration.variants import VARIANTS

Name = TypeVar("Name", bound=str)


def calibrate_as_asked(path: Path, asked: CalibrateArguments, progress: Progress = lambda *_: None) -> Calibrated:
    """Calibrate a bundle as ``adafocus-edge calibrate`` does; see :func:`calibration.calibrate.calibrate`."""
    return calibrate(path, settled(asked, read_bundle(path).spec.segments), progress)


def settled(asked: CalibrateArguments, segments: int) -> CalibrateOptions:
    """Return arguments with names looked up and goals parsed, for a model of ``segments`` steps.

    Raises ``UsageError`` for an unknown name, a malformed or duplicate goal, or nothing to do.
    """
    assert asked.data is not None
    reduced = _one("--reduce-range", asked.reduce_range, ("auto", "on", "off"))
    options = CalibrateOptions(
        data=asked.data,
        frames=asked.frames,
        report_on=asked.report_on,
        variants=() if asked.variants == "none" else _some("--variants", asked.variants, VARIANTS),
        goals=_goals(asked.exit_goal, segments),
        output=asked.output,
        clips=asked.clips,
        samples=asked.samples,
        share=asked.share,
        seed=asked.seed,
        patches=_one("--patches", asked.patches, get_args(CalibrationPatches)),
        method=None if asked.method == "auto" else _one("--method", asked.method, METHODS),
        max_drop=asked.max_accuracy_drop,
        max_latency_ms=asked.max_latency_ms,
        confidence=_one("--confidence", asked.confidence, CONFIDENCES),
        orders=_some("--orders", asked.orders, ORDERS),
        glimpse_fps=asked.glimpse_fps,
        reduce_range=needs_reduced_range() if reduced == "auto" else reduced == "on",
        threads=asked.threads,
        force=asked.force,
    )
    if options.max_latency_ms is not None and "int8-cpu" not in options.variants:
        raise UsageError("--max-latency-ms is for int8-cpu: add it to --variants")
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

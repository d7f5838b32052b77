"""The JSON objects of an evaluation and of a verdict: their keys, in the order in which they are printed."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import UnsetType


@dataclass(frozen=True)
class FailedClip:
    """A clip that could not be read, and why."""

    clip: str
    error: str


class Prediction(msgspec.Struct, frozen=True, rename={"true": "class"}):
    """What the model takes a clip for.

    Attributes:
        clip: its name.
        true: its class; ``class`` in JSON.
        label: the predicted class.
        confidence: its softmax probability, rounded.
    """

    clip: str
    true: str
    label: str
    confidence: float


@dataclass(frozen=True)
class StepFigures:
    """Accuracy after a step, in percent."""

    step: int
    top1: float
    mAP: float  # noqa: N815 - the key in JSON


@dataclass(frozen=True)
class ExitFigures:
    """What early exit gives.

    Attributes:
        mean_steps: per clip.
        gflops_per_clip: multiply-adds in units of 1e9.
        top1: in percent.
        top1_random_exit: in percent, if as many clips stopped at random.
    """

    mean_steps: float
    gflops_per_clip: float
    top1: float
    top1_random_exit: float


@dataclass(frozen=True)
class EvaluationReport:
    """A run over a split.

    Attributes:
        data: the split's origin.
        notes: limits of these figures, a line each.
        clips: how many were scored.
        failed: clips that could not be read.
        top1: in percent, after all steps.
        top1_interval_95: its 95 % interval, in percent.
        top5: in percent.
        mAP: in percent.
        model_ms_per_clip: median.
        read_ms_per_clip: median, to open, decode and preprocess a clip.
        gflops_per_clip: multiply-adds in units of 1e9.
        per_step: accuracy after each step.
        exit: with early exit; absent without thresholds.
        classes: their names.
        confusion: how many clips of each class (rows) were taken for each class (columns).
        predictions: one per clip.
    """

    data: str
    notes: list[str]
    clips: int
    failed: list[FailedClip]
    top1: float
    top1_interval_95: list[float]
    top5: float
    mAP: float  # noqa: N815 - the key in JSON
    model_ms_per_clip: float
    read_ms_per_clip: float
    gflops_per_clip: float
    per_step: list[StepFigures]
    exit: ExitFigures | UnsetType
    classes: list[str]
    confusion: list[list[int]]
    predictions: list[Prediction]


@dataclass(frozen=True)
class VerdictReport:
    """Whether clips meet a demand, and whether they are enough to decide that.

    Attributes:
        demand: in words, such as ``at most 0.5 points lost``.
        limit: its number.
        found: the same on these clips.
        interval_95: the 95 % interval of its true value.
        clips: how many there were.
        met: whether these clips meet the demand.
        conclusive: whether the whole interval is on one side of the limit.
    """

    demand: str
    limit: float
    found: float
    interval_95: list[float]
    clips: int
    met: bool
    conclusive: bool

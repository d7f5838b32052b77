"""The JSON object of a result: its keys, in the order in which they are printed."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET, UnsetType


@dataclass(frozen=True)
class GuessReport:
    """A class and its softmax probability, rounded."""

    label: str
    class_id: int
    confidence: float


@dataclass(frozen=True)
class StepReport:
    """One glimpse.

    Attributes:
        step: from 0.
        frame_index: number of the frame in the source, from 0.
        time_s: when that frame is shown, in seconds, or None where frames have no times.
        patch: (y, x, size) in pixels of the preprocessed S x S frame.
        label: the best class after this step.
        class_id: of that class.
        confidence: of that class.
        logits: [C] after this step; absent unless requested.
    """

    step: int
    frame_index: int
    time_s: float | None
    patch: list[float]
    label: str
    class_id: int
    confidence: float
    logits: list[float] | UnsetType = UNSET


@dataclass(frozen=True)
class ResultReport:
    """One clip, or one window of a stream.

    Attributes:
        source: its name.
        start_s: where the clip begins, in seconds of the source, or None where frames have no times.
        end_s: where it ends.
        label: the best class.
        class_id: of that class.
        confidence: of that class.
        top: the best classes, best first.
        steps: one per glimpse.
        steps_used: how many those are.
        exited_early: whether the model was sure before the last glimpse.
        latency_ms: from opening the clip to the result; for a stream, from capturing its last frame.
        model_ms: the part of it inside the glimpse loop; for a stream, of the last glimpse.
        backend: that ran it.
        variant: that was run.
        decode: how the file was decoded, unless exactly; absent otherwise.
    """

    source: str
    start_s: float | None
    end_s: float | None
    label: str
    class_id: int
    confidence: float
    top: list[GuessReport]
    steps: list[StepReport]
    steps_used: int
    exited_early: bool
    latency_ms: float
    model_ms: float
    backend: str
    variant: str
    decode: str | UnsetType = UNSET

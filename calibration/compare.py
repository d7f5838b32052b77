"""Compare a variant's run over clips with the float model's, and time both in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.evaluation.evidence import drop_interval
from adafocus_edge.evaluation.metrics import wilson_interval
from adafocus_edge.model.exits import Order, viewing_order
from adafocus_edge.runtime.glimpse import GlimpseStream, patch_of, see_clip
from calibration.samples import Clips

LARGEST = 1e9
"""Stands for an infinite error."""
TIMED_CLIPS = 4
TIMED_ROUNDS = 7
TIMED_STEPS = 8
"""Streamed frames per round; the first one is not counted."""


SAME_PATCH_PX = 0.5
"""Patches whose corners differ by less are the same: cells differ by a pixel or more, points by rounding."""


@dataclass(frozen=True)
class Run:
    """A model's outputs for clips.

    Attributes:
        logits: float32 [N, T, C], after each step.
        patches: float64 [N, T, 2], top-left corner (y, x) of each step's patch, in pixels.
    """

    logits: NDArray[np.float32]
    patches: NDArray[np.float64]

    def right(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each clip is classified correctly after each step, bool [N, T]."""
        return np.asarray(self.logits.argmax(axis=2) == labels[:, None])


@dataclass(frozen=True)
class Difference:
    """How a variant's run differs from the float model's, on the same clips.

    Attributes:
        top1: the variant's accuracy, in percent.
        top1_interval_95: its 95 % interval.
        top1_drop: points of accuracy lost.
        top1_drop_interval_95: its 95 % interval.
        label_agreement: share of the clips with the same label, in percent.
        action_agreement: share of the steps with the same patch, in percent.
        clips_with_other_patches: number of clips with at least one other patch.
        logit_error_max: largest absolute difference of a logit.
        logit_error_mean: mean absolute difference of the logits.
        logit_scale: largest absolute logit of the float model.
    """

    top1: float
    top1_interval_95: tuple[float, float]
    top1_drop: float
    top1_drop_interval_95: tuple[float, float]
    label_agreement: float
    action_agreement: float
    clips_with_other_patches: int
    logit_error_max: float
    logit_error_mean: float
    logit_scale: float


@dataclass(frozen=True)
class Times:
    """A model's times: median milliseconds per clip (clip schedule) and per streamed frame."""

    ms_per_clip: float
    ms_per_step: float


def run(
    model: LoadedModel, clips: Clips, order: Order = "clip", progress: Callable[[int], None] = lambda _: None
) -> Run:
    """Run a model over clips, their frames in the given order."""
    logits, patches = [], []
    for done, frames in enumerate(clips.frames, start=1):
        glimpses = list(see_clip(model, frames[viewing_order(order, len(frames))]))
        logits.append(np.concatenate([glimpse.logits for glimpse in glimpses]))
        patches.append([patch_of(model.spec, glimpse.origins[0])[:2] for glimpse in glimpses])
        progress(done)
    return Run(np.stack(logits), np.array(patches, np.float64))


def compare(found: Run, reference: Run, labels: NDArray[np.int64]) -> Difference:
    """Return how a variant's run differs from the float model's: accuracy, labels, patches, logits.

    Args:
        found: the variant's run.
        reference: the float model's run.
        labels: class ids of the clips, int64 [N].
    """
    right, before = found.right(labels)[:, -1], reference.right(labels)[:, -1]
    low, high = wilson_interval(int(right.sum()), len(right))
    same_patch = np.asarray((np.abs(found.patches - reference.patches) < SAME_PATCH_PX).all(axis=2))
    # JSON has neither NaN nor infinity: such an error counts as the largest possible one.
    error = np.nan_to_num(np.abs(found.logits - reference.logits), nan=LARGEST, posinf=LARGEST)
    last = (found.logits[:, -1].argmax(axis=1), reference.logits[:, -1].argmax(axis=1))
    return Difference(
        top1=_percent(right),
        top1_interval_95=(round(low * 100, 2), round(high * 100, 2)),
        top1_drop=round(_percent(before) - _percent(right), 4),
        top1_drop_interval_95=drop_interval(before.tolist(), right.tolist()),
        label_agreement=_percent(last[0] == last[1]),
        action_agreement=_percent(same_patch),
        clips_with_other_patches=int((~same_patch).any(axis=1).sum()),
        logit_error_max=float(error.max()),
        logit_error_mean=float(error.mean()),
        logit_scale=float(np.abs(reference.logits).max()),
    )


def _percent(flags: NDArray[np.bool_]) -> float:
    return round(float(flags.mean() * 100), 4)


def timed(models: Mapping[str, LoadedModel], clips: Clips) -> dict[str, Times]:
    """Time models in turns; return the times of each, by its name."""
    chosen = clips.frames[:TIMED_CLIPS]
    per_clip: dict[str, list[float]] = {name: [] for name in models}
    per_step: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(TIMED_ROUNDS + 1):
        for name, model in models.items():
            frames = chosen[round_number % len(chosen)]
            before = time.perf_counter()
            for _ in see_clip(model, frames):
                pass
            clip_ms = (time.perf_counter() - before) * 1e3
            stream = GlimpseStream(model)
            steps = []
            for step in range(min(TIMED_STEPS, len(frames))):
                before = time.perf_counter()
                stream.see(frames[step : step + 1])
                steps.append((time.perf_counter() - before) * 1e3)
            if round_number:  # the first round warms up
                per_clip[name].append(clip_ms)
                per_step[name].extend(steps[1:])
    return {
        name: Times(
            ms_per_clip=round(statistics.median(per_clip[name]), 3),
            ms_per_step=round(statistics.median(per_step[name] or per_clip[name]), 3),
        )
        for name in models
    }

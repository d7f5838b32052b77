"""Compare a variant's run over clips with the float model's, and time both in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.evaluation.evidence import drop_interval
from adafocus_edge.evaluation.metrics import wilson_interval
from adafocus_edge.model.exits import Order, viewing_order
from adafocus_edge.runtime.glimpse import GlimpseStream, patch_of, see_clip
from calibration.samples import Clips
from calibration.workers import SERIAL, Workers

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
    model: LoadedModel,
    clips: Clips,
    order: Order = "clip",
    progress: Callable[[int], None] = lambda _: None,
    workers: Workers = SERIAL,
) -> Run:
    """Run a model over clips, their frames in the given order."""
    logits, patches = [], []
    ordered = (frames[viewing_order(order, len(frames))] for frames in clips.frames)
    for done, (one, seen) in enumerate(workers.map(partial(_run_clip, model), ordered), start=1):
        logits.append(one)
        patches.append(seen)
        progress(done)
    return Run(np.stack(logits), np.array(patches, np.float64))


class Comparison:
    """How a model differs from the float model on clips, found clip by clip and no further than it is asked for.

    Args:
        model: the model.
        clips: the clips, with their labels.
        reference: the float model's run over them.
        progress: called with the number of clips done.
        workers: run the next clips at once.
        order: places of all clips, those first that are likely to be lost; None for their own order.
    """

    def __init__(
        self,
        model: LoadedModel,
        clips: Clips,
        reference: Run,
        progress: Callable[[int], None] = lambda _: None,
        workers: Workers = SERIAL,
        order: Sequence[int] | None = None,
    ) -> None:
        self._model, self._clips, self._reference = model, clips, reference
        self._progress, self._workers = progress, workers
        self._before = reference.right(clips.labels)[:, -1]
        self._left = list(range(len(clips)) if order is None else order)
        self.right: dict[int, bool] = {}
        """Whether each clip that is done was classified correctly, by its place."""
        self._outputs: dict[int, tuple[NDArray[np.float32], list[tuple[float, float]]]] = {}

    @property
    def done(self) -> bool:
        """Whether all clips are done."""
        return not self._left

    def advance(self) -> None:
        """Run the model over the next clip, or the next few at once."""
        places, self._left = self._left[: self._workers.at_once], self._left[self._workers.at_once :]
        frames = [self._clips.frames[place] for place in places]
        for place, outputs in zip(places, self._workers.map(partial(_run_clip, self._model), frames), strict=True):
            self._outputs[place] = outputs
            self.right[place] = bool(outputs[0][-1].argmax() == self._clips.labels[place])
        self._progress(len(self.right))

    def drop_if(self, *, right: bool) -> float:
        """Return the points of accuracy lost if the clips that are not done yet are all right, or all wrong."""
        return _drop(self._before, np.array([self.right.get(place, right) for place in range(len(self._clips))]))

    def loses_more(self, limit: float) -> bool:
        """Return whether more points are lost than ``limit``; runs only as many clips as this takes."""
        while not self.done and self.drop_if(right=True) <= limit:
            self.advance()
        return self.drop_if(right=True) > limit

    def difference(self) -> Difference:
        """Return the difference on all clips."""
        while not self.done:
            self.advance()
        logits, patches = zip(*(self._outputs[place] for place in range(len(self._clips))), strict=True)
        found = Run(np.stack(logits), np.array(patches, np.float64))
        return compare(found, self._reference, self._clips.labels)


def _run_clip(model: LoadedModel, frames: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[tuple[float, float]]]:
    """Return the logits after each of a clip's steps, and the top-left corner of each step's patch."""
    glimpses = list(see_clip(model, frames))
    corners = [patch_of(model.spec, glimpse.origins[0])[:2] for glimpse in glimpses]
    return np.concatenate([glimpse.logits for glimpse in glimpses]), corners


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
        top1_drop=_drop(before, right),
        top1_drop_interval_95=drop_interval(before.tolist(), right.tolist()),
        label_agreement=_percent(last[0] == last[1]),
        action_agreement=_percent(same_patch),
        clips_with_other_patches=int((~same_patch).any(axis=1).sum()),
        logit_error_max=float(error.max()),
        logit_error_mean=float(error.mean()),
        logit_scale=float(np.abs(reference.logits).max()),
    )


def _drop(before: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    """Return the points of accuracy lost."""
    return round(_percent(before) - _percent(right), 4)


def _percent(flags: NDArray[np.bool_]) -> float:
    return round(float(flags.mean() * 100), 4)


def timed(
    models: Mapping[str, LoadedModel], clips: Clips, progress: Callable[[int, int], None] = lambda *_: None
) -> dict[str, Times]:
    """Time models in turns; return the times of each, by its name.

    Args:
        models: the models.
        clips: clips to run them over.
        progress: called with the number of turns done and their total.
    """
    chosen = clips.frames[:TIMED_CLIPS]
    per_clip: dict[str, list[float]] = {name: [] for name in models}
    per_step: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(TIMED_ROUNDS + 1):
        for place, (name, model) in enumerate(models.items()):
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
            progress(round_number * len(models) + place + 1, (TIMED_ROUNDS + 1) * len(models))
    return {
        name: Times(
            ms_per_clip=round(statistics.median(per_clip[name]), 3),
            ms_per_step=round(statistics.median(per_step[name] or per_clip[name]), 3),
        )
        for name in models
    }

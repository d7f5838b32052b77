"""Judge models on the report's clips: against the float model, and with each set of exit thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.errors import DataError
from adafocus_edge.evaluation.dataset import Example
from adafocus_edge.evaluation.evaluate import exit_figures
from adafocus_edge.model.exits import ExitThresholds, Order
from adafocus_edge.model.logits import check_logits
from calibration.compare import Difference, Run, compare, run
from calibration.samples import Clips, read_windows
from calibration.thresholds import Goal
from calibration.workers import SERIAL, Workers

Key = tuple[Order, float | None]
"""A frame order, and for live windows the glimpses per second."""


@dataclass(frozen=True)
class Seen:
    """Clips in one frame order, with the float model's run over them."""

    clips: Clips
    run: Run


@dataclass(frozen=True)
class Judgement:
    """A model's figures on the report's clips.

    Attributes:
        difference: how it differs from the float model.
        per_step_top1: accuracy after each step, in percent.
        exits: figures with exit thresholds, by the set's name and the frame order.
        clips: number of clips.
    """

    difference: Difference
    per_step_top1: tuple[float, ...]
    exits: dict[str, dict[Order, dict[str, Any]]]
    clips: int

    def to_json(self) -> dict[str, Any]:
        """Return it as fields of the report's row."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {**found.pop("difference"), **found}


class Viewer:
    """Clips in every frame order, each order read and run by the float model once.

    Args:
        reference: the float model.
        clips: the clips, their frames in order of time.
        examples: the clips' files, to read live windows from.
        labelled: whether the labels are real; if not, the float model's predictions replace them.
        progress: called with the current activity, the clips done and their number.
        workers: run clips at once.
    """

    def __init__(
        self,
        reference: LoadedModel,
        clips: Clips,
        examples: Sequence[Example],
        *,
        labelled: bool,
        progress: Callable[[str, int, int], None],
        workers: Workers = SERIAL,
    ) -> None:
        self._reference, self._clips, self._examples = reference, clips, examples
        self._labelled, self._progress, self._workers = labelled, progress, workers
        self._seen: dict[Key, Seen] = {}

    def seen(self, order: Order, glimpse_fps: float | None = None) -> Seen:
        """Return the clips in a frame order. Raises ``DataError`` if they are too short for live windows.

        Raises ``BackendError`` if the float model's logits are not finite.
        """
        key = order, glimpse_fps
        if key not in self._seen:
            clips = self._clips
            if order == "live":
                assert glimpse_fps is not None
                self._progress("reading live windows", 0, 0)
                clips = read_windows(self._examples, self._reference.spec, glimpse_fps, len(clips))
            found = self._run(self._reference, clips, order)
            check_logits(found.logits)
            if not self._labelled:
                clips = replace(clips, labels=found.logits[:, -1].argmax(axis=1).astype(np.int64))
            self._seen[key] = Seen(clips, found)
        return self._seen[key]

    def _run(self, model: LoadedModel, clips: Clips, order: Order) -> Run:
        """Run a model over clips in a frame order."""
        what = f"{model.variant} over {len(clips)} clips" + ("" if order == "clip" else f", {order}")
        return run(model, clips, order, lambda done: self._progress(what, done, len(clips)), self._workers)

    def judge(self, model: LoadedModel, sets: Iterable[tuple[str, ExitThresholds]], gflops: float) -> Judgement:
        """Return what a model loses against the float model, and its figures with each set of thresholds.

        Args:
            model: the model to judge.
            sets: names and thresholds.
            gflops: multiply-adds of one step, in units of 1e9.

        Sets whose frame order needs longer clips than these are skipped.
        """
        plain = self.seen("clip")
        runs: dict[Key, Run] = {("clip", None): self._run(model, plain.clips, "clip")}
        exits: dict[str, dict[Order, dict[str, Any]]] = {}
        for name, thresholds in sets:
            key = thresholds.order, thresholds.glimpse_fps
            try:
                seen = self.seen(*key)
            except DataError:
                continue
            if key not in runs:
                runs[key] = self._run(model, seen.clips, thresholds.order)
            exits.setdefault(name, {})[thresholds.order] = {
                **exit_figures(runs[key].logits, seen.clips.labels, thresholds, gflops),
                "top1_all_steps": round(float(runs[key].right(seen.clips.labels)[:, -1].mean() * 100), 4),
                "clips": len(seen.clips),
            }
            if (goal := Goal.said(name, thresholds.goal)) is not None:
                verdict = goal.verdict(runs[key].logits, seen.clips.labels, thresholds, gflops)
                if verdict is not None:
                    exits[name][thresholds.order]["verdict"] = verdict.to_json()
        found = runs["clip", None]
        per_step = found.right(plain.clips.labels).mean(axis=0) * 100
        return Judgement(
            difference=compare(found, plain.run, plain.clips.labels),
            per_step_top1=tuple(round(float(value), 4) for value in per_step),
            exits=exits,
            clips=len(plain.clips),
        )

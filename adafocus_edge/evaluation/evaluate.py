"""Runs a model over labelled clips and measures its accuracy: mAP, top-1, top-5, per step and per class."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from adafocus_edge.errors import DataError, SourceError, UsageError
from adafocus_edge.evaluation.evidence import few_clips_note, reuse_note, share_interval
from adafocus_edge.evaluation.metrics import accuracy_curve, top_k_accuracy, wilson_interval
from adafocus_edge.evaluation.oracle import Oracle, tried_grid
from adafocus_edge.evaluation.reports import EvaluationReport, ExitFigures, FailedClip, Prediction, StepFigures
from adafocus_edge.evaluation.settings import Patches
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.preprocess import sampled_frames
from adafocus_edge.model.exits import exit_steps, random_exit_top1, viewing_order
from adafocus_edge.model.logits import check_logits, softmax
from adafocus_edge.model.spec import GRAPHS, TensorSpec
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from adafocus_edge.system.addresses import shown_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.evaluation.dataset import Example, Split
    from adafocus_edge.model.exits import ExitThresholds
    from adafocus_edge.model.spec import ModelSpec


class Predict(Protocol):
    """A callable from a clip's model frames, uint8 [T, S, S, 3], to the logits after each frame, float32 [T, C]."""

    def __call__(self, frames: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Predict one clip."""


def graphs_used(spec: ModelSpec, patches: Patches) -> tuple[str, ...]:
    """Return the graphs that run: fixed patches need no policy, and no glancer that only serves the policy."""
    unused = set() if patches == "policy" else {"policy"} if spec.with_glancer else {"policy", "glancer"}
    return tuple(graph for graph in GRAPHS if graph not in unused)


def gflops_per_step(costs: Mapping[str, float], spec: ModelSpec, patches: Patches) -> float:
    """Return the multiply-adds per frame in units of 1e9; the oracle focuses on every cell and classifies each.

    Args:
        costs: of each graph, per frame.
        spec: the model's shapes.
        patches: where patches are.
    """
    tried = tried_grid(spec) ** 2
    times = {"focuser": tried, "classifier": tried} if patches == "oracle" else {}
    return sum(costs[graph] * times.get(graph, 1) for graph in graphs_used(spec, patches))


class FixedPolicy:
    """Replaces a policy's session by centre or random patches, to measure the policy's benefit.

    Args:
        inputs: of the session that it replaces.
        outputs: of that session.
        seed: of random patches; None for the centre.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], seed: int | None) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._random = None if seed is None else np.random.default_rng(seed)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Return origins that do not depend on the feature map."""
        state = feeds["policy_state"]
        shape = (state.shape[0], 2)
        origin = np.full(shape, 0.5) if self._random is None else self._random.random(shape)
        action = np.full(shape[0], -1, np.int64)
        made = {"origin": origin.astype(np.float32), "action": action, "policy_state_out": state}
        return {tensor.name: made[tensor.name] for tensor in self.outputs}

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


def with_patches(model: LoadedModel, patches: Patches, seed: int = 0) -> LoadedModel:
    """Return the same model with its policy replaced, unless ``patches`` is ``policy``.

    Raises ``UsageError`` for patches that are no policy's, such as the oracle's.
    """
    if patches == "policy":
        return model
    if patches not in ("centre", "random"):
        raise UsageError(f"patches {patches!r}: must be policy, centre or random")
    fixed = FixedPolicy(model.policy.inputs, model.policy.outputs, seed if patches == "random" else None)
    return replace(model, policy=fixed, resident=None)  # the runner's loops use the model's own policy


def predict_at(model: LoadedModel, patches: Patches, schedule: str = "clip") -> Predict | Oracle:
    """Return the glimpse loop over one clip, with patches of this kind."""
    return Oracle(model) if patches == "oracle" else predict_with(with_patches(model, patches), schedule)


def predict_with(model: LoadedModel, schedule: str = "clip") -> Predict:
    """Return the glimpse loop over one clip, on either schedule."""
    live = GlimpseStream(model) if schedule == "stream" else None

    def clip(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate([glimpse.logits for glimpse in see_clip(model, frames)])

    def stream(frames: NDArray[np.uint8], live: GlimpseStream) -> NDArray[np.float32]:
        live.reset()
        return np.concatenate([live.see(frames[step : step + 1]).logits for step in range(len(frames))])

    return clip if live is None else lambda frames: stream(frames, live)


@dataclass(frozen=True)
class Scored:
    """One clip that the model has seen.

    Attributes:
        example: the clip.
        logits: float32 [T, C], after each step.
        read_ms: time to open, decode and preprocess it.
        model_ms: time in the model.
    """

    example: Example
    logits: NDArray[np.float32]
    read_ms: float
    model_ms: float


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a run over a split.

    Attributes:
        origin: of the split.
        classes: class names.
        scored: the clips that the model has seen, at least one.
        failed: name and error of each clip that could not be read.
        multi_label: whether mAP counts all labels of a clip (FCVID) or only the first (ActivityNet).
        gflops_per_clip: multiply-adds in units of 1e9.
        exits: thresholds that stop clips early, or None; all other figures are for all steps.
        reused: how many of the clips the bundle's calibration has used; see :func:`reused_clips`.
        data_notes: what reading the clips has shown, a line each.
    """

    origin: str
    classes: tuple[str, ...]
    scored: tuple[Scored, ...]
    failed: tuple[tuple[str, str], ...]
    multi_label: bool
    gflops_per_clip: float
    exits: ExitThresholds | None = None
    reused: Mapping[str, int] = field(default_factory=dict)
    data_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Return the limits of these figures, a line each, and what reading the clips has shown."""
        return [*self.limits, *self.data_notes]

    @property
    def limits(self) -> list[str]:
        """Return the limits of these figures, a line each."""
        right, count = int((self.probabilities[:, -1].argmax(axis=1) == self.labels).sum()), len(self.labels)
        missing = len(self.classes) - len({label for s in self.scored for label in self._counted(s)})
        empty = f"no clip shows {missing} of the {len(self.classes)} classes: mAP counts 0 for each of them"
        found = (
            few_clips_note(share_interval(right, count), count),
            empty if missing else None,
            reuse_note(self.reused, count),
        )
        return [note for note in found if note is not None]

    def _counted(self, scored: Scored) -> tuple[int, ...]:
        return scored.example.labels if self.multi_label else scored.example.labels[:1]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Return the first label of each clip, int64 [N]."""
        return np.array([s.example.labels[0] for s in self.scored], np.int64)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Return the probability of each class after each step, float32 [N, T, C]."""
        return softmax(np.stack([s.logits for s in self.scored]))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Return the confusion matrix, int64 [C, C]: clips of each true class (rows) by predicted class (columns)."""
        found = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(found, (self.labels, self.probabilities[:, -1].argmax(axis=1)), 1)
        return found

    def curve(self) -> list[StepFigures]:
        """Return top-1 and mAP in percent after each step."""
        labels = [s.example.labels for s in self.scored]
        steps = accuracy_curve(self.probabilities, labels, multi_label=self.multi_label)
        return [StepFigures(n, round(step["top1"], 4), round(step["mAP"], 4)) for n, step in enumerate(steps)]

    def early(self) -> ExitFigures:
        """Return mean steps, top-1 and GFLOPs with early exit, and top-1 of as many exits at random clips."""
        assert self.exits is not None
        logits = np.stack([s.logits for s in self.scored])
        found = exit_figures(logits, self.labels, self.exits, self.gflops_per_clip / logits.shape[1])
        return ExitFigures(**found)

    def report(self) -> EvaluationReport:
        """Return everything as the object that `--json` prints."""
        curve, probabilities, labels = self.curve(), self.probabilities[:, -1], self.labels
        right = int((probabilities.argmax(axis=1) == labels).sum())
        low, high = wilson_interval(right, len(labels))
        predictions = [
            Prediction(
                clip=s.example.name,
                true=self.classes[s.example.labels[0]],
                label=self.classes[int(p.argmax())],
                confidence=round(float(p.max()), 6),
            )
            for s, p in zip(self.scored, probabilities, strict=True)
        ]
        return EvaluationReport(
            data=self.origin,
            notes=self.notes,
            clips=len(labels),
            failed=[FailedClip(name, error) for name, error in self.failed],
            top1=curve[-1].top1,
            top1_interval_95=[round(low * 100, 2), round(high * 100, 2)],
            top5=round(top_k_accuracy(probabilities, labels, min(5, len(self.classes))), 4),
            mAP=curve[-1].mAP,
            model_ms_per_clip=round(float(np.median([s.model_ms for s in self.scored])), 3),
            read_ms_per_clip=round(float(np.median([s.read_ms for s in self.scored])), 3),
            gflops_per_clip=round(self.gflops_per_clip, 4),
            per_step=curve,
            exit=msgspec.UNSET if self.exits is None else self.early(),
            classes=list(self.classes),
            confusion=self.confusion.tolist(),
            predictions=predictions,
        )

    def to_json(self) -> dict[str, Any]:
        """Return :meth:`report` as dicts and lists."""
        found: dict[str, Any] = msgspec.to_builtins(self.report())
        return found


def exit_figures(
    logits: NDArray[np.float32], labels: NDArray[np.int64], exits: ExitThresholds, gflops_per_step: float
) -> dict[str, float]:
    """Return figures of early exit: mean steps, GFLOPs, top-1, and top-1 with as many exits at random clips.

    Args:
        logits: [N, T, C], in the thresholds' order.
        labels: [N].
        exits: the thresholds.
        gflops_per_step: multiply-adds in units of 1e9.
    """
    right = logits.argmax(axis=2) == labels[:, None]
    steps = exit_steps(logits, exits)
    mean_steps = float(steps.mean() + 1)
    return {
        "mean_steps": round(mean_steps, 4),
        "gflops_per_clip": round(mean_steps * gflops_per_step, 4),
        "top1": round(float(right[np.arange(len(steps)), steps].mean() * 100), 4),
        "top1_random_exit": round(random_exit_top1(right, steps), 4),
    }


def evaluate(
    predict: Predict | Oracle,
    spec: ModelSpec,
    split: Split,
    *,
    gflops_per_clip: float,
    multi_label: bool = False,
    exits: ExitThresholds | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Run a model over every clip of a split, sampled as the official evaluation does.

    Args:
        predict: the model; an oracle is given each clip's first label.
        spec: its shapes.
        split: the clips.
        gflops_per_clip: multiply-adds of one clip in units of 1e9.
        multi_label: see :class:`Evaluation`.
        exits: see :class:`Evaluation`; frames are seen in their order.
        progress: called with the number of clips that are done.

    A clip that cannot be read is listed as failed, and the run continues. Raises ``DataError`` if all clips fail, and
    ``BackendError`` if the model's logits are not finite.
    """
    scored: list[Scored] = []
    failed: list[tuple[str, str]] = []
    for done, (example, frames, read_ms) in enumerate(_read(split, spec), start=1):
        if isinstance(frames, SourceError):
            failed.append(shown_failure(example.name, frames))
        else:
            seen = frames if exits is None else frames[viewing_order(exits.order, len(frames))]
            before = time.perf_counter()
            logits = predict(seen, example.labels[0]) if isinstance(predict, Oracle) else predict(seen)
            check_logits(logits)
            scored.append(Scored(example, logits, read_ms, (time.perf_counter() - before) * 1e3))
        progress(done)
    if not scored:
        raise DataError(f"{split.origin}: none of its {len(failed)} clips can be read; the first: {failed[0][1]}")
    return Evaluation(
        split.origin, split.classes, tuple(scored), tuple(failed), multi_label, gflops_per_clip, exits,
        data_notes=split.notes,
    )  # fmt: skip


def _read(split: Split, spec: ModelSpec) -> Iterator[tuple[Example, ModelFrame | SourceError, float]]:
    for example in split.examples:
        before = time.perf_counter()
        try:
            sampled = sampled_frames(example.open_clip(), spec)
            frames: ModelFrame | SourceError = ModelFrame.of(np.stack([pixels for _, pixels in sampled]), spec)
        except SourceError as error:
            frames = error
        yield example, frames, (time.perf_counter() - before) * 1e3

"""Trajectory calibration: record the inputs that each graph gets while the float model classifies real clips.

The focuser's inputs are the patches that the policy picks, and the recurrent graphs' inputs the states they reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.backends.base import Session
from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.errors import DataError, SourceError
from adafocus_edge.evaluation.dataset import Example, Split
from adafocus_edge.evaluation.evidence import content_of
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.preprocess import model_frames, sampled_frames
from adafocus_edge.model.spec import GRAPHS, ModelSpec, TensorSpec
from adafocus_edge.runtime.glimpse import see_clip
from adafocus_edge.system.addresses import shown_failure

Feeds = dict[str, NDArray[Any]]
"""A graph's inputs by name, batch axis first."""
MAX_WINDOWS = 4
"""Max live windows per clip."""


@dataclass(frozen=True)
class Clips:
    """Clips in memory.

    Attributes:
        frames: each clip's frames, uint8 [T, S, S, 3].
        labels: each clip's class id, int64 [N]; meaningless for clips without labels.
        names: each clip's name in messages.
    """

    frames: tuple[NDArray[np.uint8], ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Samples:
    """Recorded inputs of each graph, M rows each: arrays [M, ...] by input name."""

    of: dict[str, Feeds]

    def batches(self, graph: str, size: int = 4, most: int | None = None) -> Iterator[Feeds]:
        """Yield one graph's inputs, ``size`` rows at a time."""
        feeds = self.of[graph]
        count = min(len(next(iter(feeds.values()))), most or len(next(iter(feeds.values()))))
        for start in range(0, count, size):
            yield {name: rows[start : min(start + size, count)] for name, rows in feeds.items()}


class WrappedSession:
    """A session around another one, to be changed by a subclass.

    Attributes:
        wrapped: the other one.
    """

    def __init__(self, session: Session) -> None:
        self.wrapped = session

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the inputs."""
        return self.wrapped.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the outputs."""
        return self.wrapped.outputs

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph."""
        return self.wrapped.run(feeds)

    def close(self) -> None:
        """Close the session."""
        self.wrapped.close()


class _Recorder(WrappedSession):
    """A session that records its inputs."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.seen: list[Feeds] = []

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.seen.append({name: np.asarray(value) for name, value in feeds.items()})
        return super().run(feeds)

    def take(self, rows: Sequence[int]) -> Feeds:
        """Return the inputs of some steps of the last clip, and clear the record."""
        names = self.seen[0]
        taken = {name: np.concatenate([feeds[name] for feeds in self.seen])[list(rows)] for name in names}
        self.seen = []
        return taken


def record(
    model: LoadedModel, clips: Clips, count: int, seed: int, progress: Callable[[int], None] = lambda _: None
) -> Samples:
    """Run the float loop over clips and keep the inputs of some of its steps.

    Args:
        model: the float model, whose policy may have been replaced
            (:func:`adafocus_edge.evaluation.evaluate.with_patches`).
        clips: the clips to run it on.
        count: how many steps to keep: the same number from each clip, drawn at random, until there are enough.
        seed: random seed for the order of the clips and the steps.
        progress: called with the number of clips done.
    """
    random = np.random.default_rng(seed)
    recorders = {graph: _Recorder(getattr(model, graph)) for graph in GRAPHS}
    glancer, policy, focuser, classifier = recorders.values()
    watched = replace(model, glancer=glancer, policy=policy, focuser=focuser, classifier=classifier, resident=None)
    each = -(-count // len(clips))
    kept: dict[str, list[Feeds]] = {graph: [] for graph in GRAPHS}
    for done, number in enumerate(random.permutation(len(clips)), start=1):
        frames = clips.frames[number]
        for _ in see_clip(watched, frames):
            pass
        rows = sorted(random.choice(len(frames), min(each, len(frames)), replace=False))
        for graph, recorder in recorders.items():
            kept[graph].append(recorder.take(rows))
        progress(done)
        if done * each >= count:
            break
    return Samples(
        {graph: {name: np.concatenate([feeds[name] for feeds in parts])[:count] for name in parts[0]}
         for graph, parts in kept.items()}
    )  # fmt: skip


def choose_clips(split: Split, most: int, seed: int) -> list[Example]:
    """Draw at most ``most`` clips at random, as evenly over the classes as possible."""
    random = np.random.default_rng(seed)
    by_class: dict[int, list[Example]] = {}
    for number in random.permutation(len(split.examples)):
        example = split.examples[number]
        by_class.setdefault(example.labels[0], []).append(example)
    chosen: list[Example] = []
    while len(chosen) < most and any(by_class.values()):
        for examples in by_class.values():
            if examples and len(chosen) < most:
                chosen.append(examples.pop())
    return chosen


def halve(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split clips into those to calibrate on and those to report on; clips of one source stay together.

    Args:
        examples: the clips.
        share: share of the first part, 0..1.
        seed: random seed for the order in which sources are assigned.

    Each source goes to the side that has fewer clips, relative to its share, of the source's first class; a tie goes to
    the side with fewer clips of all classes.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        # Copies of one file count as one source.
        groups.setdefault(example.source or f"\0{content_of(example.path) or example.name}", []).append(example)
    names = list(groups)
    np.random.default_rng(seed).shuffle(names)
    names.sort(key=lambda name: -len(groups[name]))  # large sources first; sources of one size stay shuffled
    sides: tuple[list[Example], list[Example]] = ([], [])
    dealt: dict[tuple[int, int], int] = {}
    for name in names:
        label = groups[name][0].labels[0]
        parts = list(enumerate((share, 1 - share)))
        filled = [(dealt.get((side, label), 0) / part, len(sides[side]) / part) for side, part in parts]
        side = int(filled[1] < filled[0])
        sides[side].extend(groups[name])
        for example in groups[name]:
            key = (side, example.labels[0])
            dealt[key] = dealt.get(key, 0) + 1
    return sides


def read_clips(
    examples: Sequence[Example], spec: ModelSpec, failed: list[tuple[str, str]], progress: Callable[[int], None]
) -> Clips:
    """Read clips as the official evaluation samples them; add the name and error of unreadable ones to ``failed``."""
    frames, labels, names = [], [], []
    for done, example in enumerate(examples, start=1):
        try:
            stacked = np.stack([pixels for _, pixels in sampled_frames(example.open_clip(), spec)])
            frames.append(ModelFrame.of(stacked, spec))
            labels.append(example.labels[0])
            names.append(example.name)
        except SourceError as error:
            failed.append(shown_failure(example.name, error))
        progress(done)
    return Clips(tuple(frames), np.array(labels, np.int64), tuple(names))


def read_windows(examples: Sequence[Example], spec: ModelSpec, glimpse_fps: float, most: int) -> Clips:
    """Read clips as a live source would show them: consecutive whole windows of T frames at a glimpse rate.

    Args:
        examples: the clips.
        spec: the model's shapes and names.
        glimpse_fps: glimpses per second.
        most: max number of windows.

    Raises ``DataError`` if every clip is shorter than a window.
    """
    frames: list[ModelFrame] = []
    labels: list[int] = []
    names: list[str] = []
    longest_s = 0.0
    window_s = (spec.segments - 1) / glimpse_fps
    for example in examples:
        try:
            clip = example.open_clip()
            if not clip.fps:
                continue
            step = clip.fps / glimpse_fps
            longest_s = max(longest_s, (clip.frame_count - 1) / clip.fps)
            count = min(MAX_WINDOWS, int((clip.frame_count - 1 + step) / (step * spec.segments)))
            for window in range(min(count, most - len(frames))):
                indices = [round((window * spec.segments + number) * step) for number in range(spec.segments)]
                indices = [min(index, clip.frame_count - 1) for index in indices]
                stacked = np.stack([pixels for _, pixels in model_frames(clip, indices, spec)])
                frames.append(ModelFrame.of(stacked, spec))
                labels.append(example.labels[0])
                names.append(f"{example.name}, window {window}")
        except SourceError:
            continue  # already reported by read_clips
    if not frames:
        needed = (
            f"live thresholds need clips of {window_s:.1f} s ({spec.segments} glimpses, {glimpse_fps:g} per second)"
        )
        if not longest_s:
            raise DataError(f"{needed}, and none of these has a frame rate (for a folder of frames: add fps.txt)")
        fits = math.ceil((spec.segments - 1) / longest_s * 100) / 100
        raise DataError(f"{needed}, but the longest lasts {longest_s:.1f} s: give --glimpse-fps {fits:g} or more")
    return Clips(tuple(frames), np.array(labels, np.int64), tuple(names))

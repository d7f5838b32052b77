"""Trajectory calibration: what each graph really meets, recorded while the float model looks at real clips.

The focuser is shown the patches that the policy picks, and the recurrent graphs the states that they reach.
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
"""Inputs of a graph by name, the batch first."""
MAX_WINDOWS = 4
"""Live windows taken from one clip at most."""


@dataclass(frozen=True)
class Clips:
    """Clips that were read.

    Attributes:
        frames: uint8 [T, S, S, 3] of each.
        labels: class id of each, int64 [N]; without meaning where there are no labels.
        names: how each is shown.
    """

    frames: tuple[NDArray[np.uint8], ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Samples:
    """Recorded inputs: of each graph, as many rows as were asked for, [M, ...] by input name."""

    of: dict[str, Feeds]

    def batches(self, graph: str, size: int = 4, most: int | None = None) -> Iterator[Feeds]:
        """Yield one graph's inputs, ``size`` rows at a time."""
        feeds = self.of[graph]
        count = min(len(next(iter(feeds.values()))), most or len(next(iter(feeds.values()))))
        for start in range(0, count, size):
            yield {name: rows[start : min(start + size, count)] for name, rows in feeds.items()}


class _Recorder:
    """A session that keeps what it is given."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.seen: list[Feeds] = []

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.seen.append({name: np.asarray(value) for name, value in feeds.items()})
        return self._session.run(feeds)

    def close(self) -> None:
        self._session.close()

    def take(self, rows: Sequence[int]) -> Feeds:
        """Return some steps' inputs of the clip that was seen last, and forget it."""
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
        clips: what it looks at.
        count: how many steps to keep: as many of each clip, at random places, and the first of them all.
        seed: of those places.
        progress: told how many clips are done.
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
    """Return at most that many clips at random, every class as often as can be."""
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
        share: of the first part, 0..1.
        seed: of the order in which sources are dealt.

    Each source goes to the side that lacks most of its first clip's class, or clips at all where both lack as much.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        # Copies of one file are one source, too.
        groups.setdefault(example.source or f"\0{content_of(example.path) or example.name}", []).append(example)
    names = list(groups)
    np.random.default_rng(seed).shuffle(names)
    names.sort(key=lambda name: -len(groups[name]))  # the large ones first; chance orders equals
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
    """Read clips as the official evaluation samples them; those that cannot be read are added to ``failed``."""
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
    """Read what a live source would show of clips: whole windows of T frames at a glimpse rate, one after another.

    Args:
        examples: the clips.
        spec: the model's shapes and names.
        glimpse_fps: glimpses per second.
        most: how many windows to read at most.

    Raises ``DataError`` if no clip lasts as long as a window.
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
            continue  # it was told when the clips were read
    if not frames:
        needed = (
            f"live thresholds need clips of {window_s:.1f} s ({spec.segments} glimpses, {glimpse_fps:g} per second)"
        )
        if not longest_s:
            raise DataError(f"{needed}, and none of these tells its frame rate (a folder of frames: in fps.txt)")
        fits = math.ceil((spec.segments - 1) / longest_s * 100) / 100
        raise DataError(f"{needed}, and the longest has {longest_s:.1f} s: give --glimpse-fps {fits:g} or more")
    return Clips(tuple(frames), np.array(labels, np.int64), tuple(names))

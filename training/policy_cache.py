"""Stage 2 on features that are computed once: what the frozen glancer and focuser see of every cell of every frame.

Glancer, focuser and classifier do not change at stage 2. So each clip is read once (in some augmented versions, with
``policy_views``), and the glancer's feature maps and the focuser's features of all cells are kept in half precision, in
memory or in a file; an update then takes milliseconds instead of decoding clips and running both backbones. Random
patches are cells of the grid then, where the official code draws them from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from adafocus_edge.errors import TrainingError, UsageError
from adafocus_edge.model.spec import ModelSpec
from training.datasets import VALIDATION, Batch, ClipDataset, EpochSampler
from training.frame_cache import available_memory
from training.looks import KeptBatch
from training.options import TrainOptions

if TYPE_CHECKING:
    from training.stages import PolicyStage

FOLDER = "policy-cache"
"""Within the run's folder."""
MEMORY_SHARE = 0.6
"""Of the memory that is free, how much the cache may take."""
FEATURE_BYTES = 2
"""Of a float16."""
IDENTITY_OPTIONS = (
    "seed", "dense_sample", "colour_jitter", "flip", "crop_scales", "policy_views", "amp", "cache_frames", "augment_on",
)  # fmt: skip
"""Options that decide features, beside those of the model, and whether frames come at the size they are kept at."""
MISSING, KEPT, UNREADABLE = 0, 1, 2
"""What has become of a clip."""


def update_clips(options: TrainOptions, clips: int) -> int:
    """Return how many clips an update takes, over all processes: with the cache at most all of a split."""
    if options.train_stage != 2 or not options.policy_batch:
        return options.batch_size
    return options.policy_batch if options.policy_cache == "off" else max(1, min(options.policy_batch, clips))


def batch_option(options: TrainOptions) -> str:
    """Return the option that says how many clips an update takes, with its value."""
    name = "policy_batch" if options.train_stage == 2 and options.policy_batch else "batch_size"
    return f"{name}={getattr(options, name)}"


def resolve_cache(options: TrainOptions, processes: int) -> str | None:
    """Set ``policy_cache`` to ``off`` where it is not for this run; return a note if that was not asked for.

    Raises ``UsageError`` if it was asked for and cannot be.
    """
    if options.train_stage != 2 or options.evaluate:
        options.policy_cache = "off"
        return None
    if options.policy_cache == "off" or processes == 1:
        return None
    if options.policy_cache != "auto":
        raise UsageError(
            f"policy_cache={options.policy_cache}: is for one process, and {processes} are asked for: with features at "
            "hand one is fast enough (multiprocessing_distributed=false), or give policy_cache=off"
        )
    options.policy_cache, options.policy_views = "off", 1
    return f"policy_cache=auto: off, since {processes} processes share this run"


@dataclass(frozen=True)
class Shape:
    """What is kept of one clip.

    Attributes:
        segments: T.
        map_shape: of a feature map: dim, h, w.
        cell_shape: of the focuser's features of a frame: cells, dim.
    """

    segments: int
    map_shape: tuple[int, int, int]
    cell_shape: tuple[int, int]

    @classmethod
    def of(cls, spec: ModelSpec) -> Shape:
        """Return that of a model."""
        side = spec.feature_map_size
        return cls(spec.segments, (spec.glance_dim, side, side), (spec.actions, spec.focus_dim))

    @property
    def map_values(self) -> int:
        """How many numbers the feature maps of a clip are."""
        return self.segments * int(np.prod(self.map_shape))

    @property
    def values(self) -> int:
        """How many numbers are kept of a clip."""
        return self.map_values + self.segments * int(np.prod(self.cell_shape))


class FeatureStore:
    """Features of the samples of a split, in memory or in a file beside a list of which are there.

    Args:
        keys: (epoch, number) of every sample.
        shape: of one.
        folder: of the files; None for memory.
        identity: of all that decides the features: files of another one are not used.

    Raises ``TrainingError`` if there is no room.
    """

    def __init__(self, keys: list[tuple[int, int]], shape: Shape, folder: Path | None, identity: str) -> None:
        self.keys, self.shape = keys, shape
        self._row = {key: row for row, key in enumerate(keys)}
        size = (len(keys), shape.values)
        if folder is None:
            self._features: NDArray[np.float16] = np.empty(size, np.float16)
            self._states: NDArray[np.uint8] = np.zeros(len(keys), np.uint8)
            return
        made = folder / "made_of.json"
        content = json.dumps({"identity": identity, "samples": len(keys)})
        try:
            if not made.is_file() or made.read_text() != content:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                _reserve(folder / "features", len(keys) * shape.values * FEATURE_BYTES)
                _reserve(folder / "states", len(keys))
                made.write_text(content)
            self._features = np.memmap(folder / "features", np.float16, "r+", shape=size)
            self._states = np.memmap(folder / "states", np.uint8, "r+", shape=(len(keys),))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{folder}: the policy cache cannot be written ({error})") from None

    def missing(self) -> list[tuple[int, int]]:
        """Return the samples that are not there yet, those that cannot be read left out."""
        return [key for key, state in zip(self.keys, self._states, strict=True) if state == MISSING]

    def put(self, keys: list[tuple[int, int]], feature_maps: Tensor, cells: Tensor) -> None:
        """Keep the features of some samples: [B, T, dim, h, w] and [B, T, cells, dim]."""
        values = torch.cat([feature_maps.flatten(1), cells.flatten(1)], dim=1).half()
        if not torch.isfinite(values).all():
            raise TrainingError(
                "policy_cache: features are too large for half precision, or no numbers: give policy_cache=off"
            )
        self._features[[self._row[key] for key in keys]] = values.cpu().numpy()

    def finish(self, keys: list[tuple[int, int]], kept: list[tuple[int, int]]) -> None:
        """Note what became of some samples at once: those that were kept, and the others, that cannot be read."""
        _flush(self._features)
        self._states[[self._row[key] for key in keys]] = UNREADABLE
        self._states[[self._row[key] for key in kept]] = KEPT
        _flush(self._states)

    def get(self, keys: list[tuple[int, int]]) -> tuple[list[int], Tensor, Tensor]:
        """Return which of some samples are there, and their features as :meth:`put` takes them, float16."""
        there = [place for place, key in enumerate(keys) if self._states[self._row[key]] == KEPT]
        values = torch.from_numpy(self._features[[self._row[keys[place]] for place in there]])
        maps, cells = values[:, : self.shape.map_values], values[:, self.shape.map_values :]
        segments = self.shape.segments
        return (
            there,
            maps.view(-1, segments, *self.shape.map_shape),
            cells.view(-1, segments, *self.shape.cell_shape),
        )


def _flush(values: NDArray[Any]) -> None:
    if isinstance(values, np.memmap):
        values.flush()


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose room is taken now: a disk that is full later would kill the process that maps it."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


class KeptBatches:
    """Batches of kept features; what the training loop takes in place of a data loader.

    Args:
        store: the features.
        data: gives each sample's label and draws.
        sampler: of an epoch's samples.
        batch: clips per update.
        views: in how many versions each clip is kept.
    """

    num_workers = 0

    def __init__(self, store: FeatureStore, data: ClipDataset, sampler: EpochSampler, batch: int, views: int) -> None:
        self.sampler = sampler
        self._store, self._data, self._batch, self._views = store, data, batch, views

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self._batch)

    def __iter__(self) -> Iterator[KeptBatch | list[tuple[str, str]]]:
        keys = list(self.sampler)
        for start in range(0, len(keys), self._batch):
            yield self._read(keys[start : start + self._batch])

    def _read(self, keys: list[tuple[int, int]]) -> KeptBatch | list[tuple[str, str]]:
        there, maps, cells = self._store.get([(self._view(epoch), number) for epoch, number in keys])
        if not there:
            return []
        samples = [self._data.without_frames(keys[place])[0] for place in there]

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([sample[name] for sample in samples]))

        return KeptBatch(maps, cells, stack("target"), stack("number"), stack("origins"), stack("draws"), [])

    def _view(self, epoch: int) -> int:
        return epoch if epoch == VALIDATION else epoch % self._views


@dataclass
class CacheBuilder:
    """Computes and keeps the features of both splits.

    Attributes:
        options: of the run.
        stage: whose networks look.
        run_dir: that a cache on a disk lies in.
        autocast: context in which networks compute.
        readable: turns a loader into batches on the device, None for one without a readable clip.
        say: prints a line.
        advance: is told how many samples are done, and how many there are.
    """

    options: TrainOptions
    stage: PolicyStage
    run_dir: Path
    autocast: Any
    readable: Callable[[DataLoader[Any]], Iterator[Batch | None]]
    say: Callable[[str], None]
    advance: Callable[[int, int], None]

    def build(self, train: DataLoader[Any], validation: DataLoader[Any]) -> tuple[KeptBatches, KeptBatches]:
        """Fill the cache, in memory or from what is on the disk already, and return its batches.

        Raises ``TrainingError`` if there is no room.
        """
        shape, views = Shape.of(self.stage.model.spec), self.options.policy_views
        splits = (_dataset(train), _dataset(validation))
        counts = [len(data) for data in splits]
        keys = [
            [(view, number) for view in range(views) for number in range(counts[0])],
            [(VALIDATION, number) for number in range(counts[1])],
        ]
        if self.options.policy_batch > counts[0]:
            self.say(f"note: policy_batch={self.options.policy_batch}: all {counts[0]} clips in each update")
        folder = self._place(shape, sum(map(len, keys)), counts)
        started = time.monotonic()
        made = []
        for name, loader, data, asked in zip(("train", "val"), (train, validation), splits, keys, strict=True):
            own = None if folder is None else folder / name
            store = FeatureStore(asked, shape, own, self._identity(data, name))
            made.append((store, loader, data))
        missing = sum(len(store.missing()) for store, _, _ in made)
        done = 0
        for store, loader, _ in made:
            done = self._fill(store, loader, done, missing)
        self.say(
            f"policy cache: {missing} clips computed in {time.monotonic() - started:.0f} s"
            + (f", {sum(map(len, keys)) - missing} were there" if sum(map(len, keys)) > missing else "")
        )
        batches = []
        for (store, loader, data), kept_views in zip(made, (views, 1), strict=True):
            size = loader.batch_size
            assert size is not None
            sampler = loader.sampler
            assert isinstance(sampler, EpochSampler)
            batches.append(KeptBatches(store, data, sampler, size, kept_views))
        return batches[0], batches[1]

    def _place(self, shape: Shape, samples: int, counts: list[int]) -> Path | None:
        """Choose where to keep features, and say how much that is; return a folder, or None for memory."""
        kind, need = self.options.policy_cache, samples * shape.values * FEATURE_BYTES
        folder, memory = self.run_dir / FOLDER, int(available_memory() * MEMORY_SHARE)
        room = shutil.disk_usage(self.run_dir).free
        if kind == "auto":
            kind = "ram" if need <= memory else "disk"
        size = f"{need / 1e6:,.0f} MB"
        views = self.options.policy_views
        what = (
            f"{counts[0]}{f' x {views} views' if views > 1 else ''} + {counts[1]} clips, {shape.segments} frames of "
            f"{shape.cell_shape[0]} patches each"
        )
        if kind == "ram" and need > memory:
            raise TrainingError(
                f"policy_cache=ram: {what} need {size}, of {memory / 1e6:,.0f} MB that may be used: give "
                "policy_cache=disk or off, fewer policy_views or a smaller action_dim"
            )
        if kind == "disk" and need > room and not folder.exists():
            raise TrainingError(
                f"policy_cache={self.options.policy_cache}: {what} need {size}, of {memory / 1e6:,.0f} MB of memory "
                f"that may be used and {room / 1e6:,.0f} MB on the disk of {self.run_dir}: give policy_cache=off, "
                "another hydra.run.dir, fewer policy_views or a smaller action_dim"
            )
        self.say(f"policy cache: {what}: {size} " + ("of memory" if kind == "ram" else f"in {folder}"))
        return None if kind == "ram" else folder

    def _fill(self, store: FeatureStore, loader: DataLoader[Any], done: int, total: int) -> int:
        sampler = loader.sampler
        assert isinstance(sampler, EpochSampler)
        assert loader.batch_size is not None
        sampler.only = missing = store.missing()
        size = loader.batch_size
        self.stage.train(False)
        try:
            # The loader makes its batches of so many samples in order; those that cannot be read are not in them.
            for start, batch in zip(
                range(0, len(missing), size), self.readable(loader) if missing else (), strict=True
            ):
                asked = missing[start : start + size]
                kept: list[tuple[int, int]] = []
                if batch is not None:
                    kept = _in_order(asked, batch.number.tolist())
                    with self.autocast:
                        store.put(kept, *self.stage.look_everywhere(batch))
                store.finish(asked, kept)
                self.advance(done + start + len(asked), total)
        finally:
            sampler.only = None
        return done + len(missing)

    def _identity(self, data: ClipDataset, split: str) -> str:
        """Return a digest of all that decides the features of a split."""
        options = {name: value for name, value in asdict(self.options).items() if name in IDENTITY_OPTIONS} | {
            "kept_frames": self.options.cache != "off"
        }
        clips = [(str(example.path), example.labels) for example in data.examples]
        digest = hashlib.sha256(json.dumps([split, options, asdict(self.stage.model.spec), clips]).encode())
        digest.update(str(self.stage.model.mean.device.type).encode())
        for part in (self.stage.model.glancer, self.stage.model.focuser.net):
            for value in part.state_dict().values():
                digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()


def remove_cache(run_dir: Path) -> None:
    """Remove what a finished run kept on the disk."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def _in_order(keys: list[tuple[int, int]], numbers: list[int]) -> list[tuple[int, int]]:
    """Return which samples some clips' numbers stand for, both in the same order."""
    found, rest = [], iter(keys)
    for number in numbers:
        found.append(next(key for key in rest if key[1] == number))
    return found


def _dataset(loader: DataLoader[Any]) -> ClipDataset:
    data = loader.dataset
    assert isinstance(data, ClipDataset)
    return data

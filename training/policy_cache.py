"""Features computed once: the frozen glancer's and focuser's, of every cell of every frame.

Glancer and focuser do not change at stages 2 and 3, nor at stage 1 with ``freeze_backbones``. So each clip is read once
(in several augmented versions, with ``policy_views``), and the glancer's feature maps and the focuser's features of all
cells are kept in half precision, in memory or in a file; an update then takes milliseconds instead of decoding clips
and running both backbones. Random patches are then cells of the grid, while the official code draws them anywhere.
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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from adafocus_edge.errors import TrainingError, UsageError
from adafocus_edge.model.spec import ModelSpec
from training.backbones import HEAD_PREFIXES
from training.datasets import VALIDATION, Batch, ClipDataset, EpochSampler
from training.frame_cache import available_memory
from training.options import TrainOptions
from training.patch_features import KeptBatch

if TYPE_CHECKING:
    from training.stages import GlimpseStage

FOLDER = "policy-cache"
"""Folder of the cache in the run folder, unless ``policy_cache_dir`` names another."""
MADE_OF = "made_of.json"
"""File that says what decides the features of a folder."""
MEMORY_SHARE = 0.6
"""Share of the free memory that the cache may take."""
FEATURE_BYTES = 2
"""Bytes of one kept value, a float16."""
IDENTITY_OPTIONS = (
    "seed", "dense_sample", "colour_jitter", "flip", "crop_scales", "policy_views", "amp", "cache_frames", "augment_on",
)  # fmt: skip
"""Options that decide features, beside the model's; whether a frame cache resizes frames decides them, too."""
SPLITS = ("train", "val")
MISSING, KEPT, UNREADABLE = 0, 1, 2
"""States of a clip."""


def update_clips(options: TrainOptions, clips: int) -> int:
    """Return the number of clips per update, over all processes; with the cache at most the whole split."""
    if options.train_stage != 2 or not options.policy_batch:
        return options.batch_size
    return options.policy_batch if options.policy_cache == "off" else max(1, min(options.policy_batch, clips))


def batch_option(options: TrainOptions) -> str:
    """Return the option that sets the number of clips per update, with its value."""
    name = "policy_batch" if options.train_stage == 2 and options.policy_batch else "batch_size"
    return f"{name}={getattr(options, name)}"


def resolve_cache(options: TrainOptions, processes: int) -> str | None:
    """Set ``policy_cache`` to ``off`` if this run cannot use it; return a note where ``auto`` would have used it.

    Raises ``UsageError`` if the cache was given explicitly.
    """
    if options.evaluate or not (
        options.train_stage == 2 or (options.freeze_backbones and options.train_stage in (1, 3))
    ):
        options.policy_cache = "off"
        return None
    if options.policy_cache == "off" or processes == 1:
        return None
    if options.policy_cache != "auto":
        raise UsageError(
            f"policy_cache={options.policy_cache}: is for one process, this run has {processes}: with kept features "
            "one is fast enough (multiprocessing_distributed=false); else give policy_cache=off"
        )
    options.policy_cache, options.policy_views = "off", 1
    return f"policy_cache=auto: off, because this run has {processes} processes"


@dataclass(frozen=True)
class Shape:
    """Shapes of one clip's features.

    Attributes:
        segments: T, frames.
        map_shape: shape of a feature map: dim, h, w.
        cell_shape: shape of the focuser's features of a frame: cells, dim.
    """

    segments: int
    map_shape: tuple[int, int, int]
    cell_shape: tuple[int, int]

    @classmethod
    def of(cls, spec: ModelSpec) -> Shape:
        """Return the shapes of a model's features."""
        side = spec.feature_map_size
        return cls(spec.segments, (spec.glance_dim, side, side), (spec.actions, spec.focus_dim))

    @property
    def map_values(self) -> int:
        """Number of values in the feature maps of a clip."""
        return self.segments * int(np.prod(self.map_shape))

    @property
    def values(self) -> int:
        """Number of values kept per clip."""
        return self.map_values + self.segments * int(np.prod(self.cell_shape))


class FeatureStore:
    """Features of the samples of a split, in memory, or in a file beside a list of each sample's state.

    Args:
        keys: (epoch, number) of every sample.
        shape: shapes of one clip's features.
        folder: folder of the files; None for memory.
        identity: digest of all that decides the features; files with another digest are replaced.

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
        content = json.dumps({"identity": identity, "samples": len(keys)})
        try:
            if not _made_of(folder, content):
                self._create(folder, content)
            self._features = np.memmap(folder / "features", np.float16, "r+", shape=size)
            self._states = np.memmap(folder / "states", np.uint8, "r+", shape=(len(keys),))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{folder}: the policy cache cannot be written ({error})") from None

    def _create(self, folder: Path, content: str) -> None:
        """Create the files, complete before they have their place: several runs may share a folder."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as name:
            new = Path(name) / folder.name
            new.mkdir()
            _reserve(new / "features", len(self.keys) * self.shape.values * FEATURE_BYTES)
            _reserve(new / "states", len(self.keys))
            (new / MADE_OF).write_text(content)
            if not _made_of(folder, content):  # another run may have been quicker
                shutil.rmtree(folder, ignore_errors=True)
                new.rename(folder)

    def missing(self) -> list[tuple[int, int]]:
        """Return the samples that are not kept yet, without those that cannot be read."""
        return [key for key, state in zip(self.keys, self._states, strict=True) if state == MISSING]

    def put(self, keys: list[tuple[int, int]], feature_maps: Tensor, cells: Tensor) -> None:
        """Keep the features of some samples: [B, T, dim, h, w] and [B, T, cells, dim]."""
        values = torch.cat([feature_maps.flatten(1), cells.flatten(1)], dim=1).half()
        if not torch.isfinite(values).all():
            raise TrainingError("policy_cache: features are not finite in half precision: give policy_cache=off")
        self._features[[self._row[key] for key in keys]] = values.cpu().numpy()

    def finish(self, keys: list[tuple[int, int]], kept: list[tuple[int, int]]) -> None:
        """Record the states of some samples at once: those in ``kept``, and the others, which cannot be read."""
        _flush(self._features)
        self._states[[self._row[key] for key in keys]] = UNREADABLE
        self._states[[self._row[key] for key in kept]] = KEPT
        _flush(self._states)

    def get(self, keys: list[tuple[int, int]]) -> tuple[list[int], Tensor, Tensor]:
        """Return the places of the samples that are kept, and their features as :meth:`put` takes them, float16."""
        there = [place for place, key in enumerate(keys) if self._states[self._row[key]] == KEPT]
        values = torch.from_numpy(self._features[[self._row[keys[place]] for place in there]])
        maps, cells = values[:, : self.shape.map_values], values[:, self.shape.map_values :]
        segments = self.shape.segments
        return (
            there,
            maps.view(-1, segments, *self.shape.map_shape),
            cells.view(-1, segments, *self.shape.cell_shape),
        )


def _made_of(folder: Path, content: str) -> bool:
    """Return whether a folder holds features of this content."""
    path = folder / MADE_OF
    return path.is_file() and path.read_text() == content


def _flush(values: NDArray[Any]) -> None:
    if isinstance(values, np.memmap):
        values.flush()


def _reserve(path: Path, size: int) -> None:
    """Create a file of zeros, allocated now: a disk that fills up later would kill the process that maps it."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


_in_memory: dict[str, FeatureStore] = {}
"""Features in memory by what decides them: with ``freeze_backbones``, the next stage of ``stages=all`` has the same."""


class KeptBatches:
    """Batches of kept features, which the training loop takes in place of a data loader.

    Args:
        store: the features.
        data: labels and draws of the samples.
        sampler: sampler of an epoch's samples.
        batch: clips per update.
        views: augmented versions in which each clip is kept.
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
        options: options of the run.
        stage: stage whose networks compute the features.
        run_dir: run folder, which holds a cache on disk.
        autocast: context in which networks compute.
        readable: turns a loader into batches on the device, None for one without a readable clip.
        log: logs a line.
        advance: called with the number of samples done and in all.
    """

    options: TrainOptions
    stage: GlimpseStage
    run_dir: Path
    autocast: Any
    readable: Callable[[DataLoader[Any]], Iterator[Batch | None]]
    log: Callable[[str], None]
    advance: Callable[[int, int], None]

    def build(self, train: DataLoader[Any], validation: DataLoader[Any]) -> tuple[KeptBatches, KeptBatches]:
        """Compute the missing features, and return the batches of both splits.

        Raises ``TrainingError`` if there is no room.
        """
        shape, views = Shape.of(self.stage.model.spec), self.options.policy_views
        splits = (_dataset(train), _dataset(validation))
        counts = [len(data) for data in splits]
        keys = [
            [(view, number) for view in range(views) for number in range(counts[0])],
            [(VALIDATION, number) for number in range(counts[1])],
        ]
        if self.options.stage == 2 and self.options.policy_batch > counts[0]:
            self.log(f"note: policy_batch={self.options.policy_batch}: each update has all {counts[0]} clips")
        identities = {name: self._identity(data, name) for name, data in zip(SPLITS, splits, strict=True)}
        stores = {name: _in_memory[digest] for name, digest in identities.items() if digest in _in_memory}
        _in_memory.clear()
        folder = None if len(stores) == len(SPLITS) else self._place(shape, sum(map(len, keys)), counts)
        started = time.monotonic()
        made = []
        for name, loader, data, asked in zip(SPLITS, (train, validation), splits, keys, strict=True):
            own = None if folder is None else folder / self._name(name, identities[name])
            store = stores[name] if name in stores else FeatureStore(asked, shape, own, identities[name])
            made.append((store, loader, data))
        if self.options.freeze_backbones and folder is None:
            _in_memory.update({identities[name]: store for name, (store, _, _) in zip(SPLITS, made, strict=True)})
        missing = sum(len(store.missing()) for store, _, _ in made)
        done = 0
        for store, loader, _ in made:
            done = self._fill(store, loader, done, missing)
        self.log(
            f"policy cache: {missing} clips computed in {time.monotonic() - started:.0f} s"
            + (f", {sum(map(len, keys)) - missing} were kept" if sum(map(len, keys)) > missing else "")
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
        """Choose where to keep features, and log their size; return a folder, or None for memory."""
        kind, need = self.options.policy_cache, samples * shape.values * FEATURE_BYTES
        folder, memory = cache_folder(self.options, self.run_dir), int(available_memory() * MEMORY_SHARE)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(folder.parent).free
        except OSError as error:
            raise TrainingError(f"{folder}: the policy cache cannot be written ({error})") from None
        if kind == "auto":
            kind = "ram" if need <= memory and not self.options.policy_cache_dir else "disk"
        size = f"{need / 1e6:,.0f} MB"
        views = self.options.policy_views
        what = (
            f"{counts[0]}{f' x {views} views' if views > 1 else ''} + {counts[1]} clips, {shape.segments} frames of "
            f"{shape.cell_shape[0]} patches each"
        )
        if kind == "ram" and need > memory:
            raise TrainingError(
                f"policy_cache=ram: {what} need {size}, and {memory / 1e6:,.0f} MB may be used: give "
                "policy_cache=disk or off, fewer policy_views or a smaller action_dim"
            )
        if kind == "disk" and need > room and not folder.exists():
            raise TrainingError(
                f"policy_cache={self.options.policy_cache}: {what} need {size}, and {memory / 1e6:,.0f} MB of memory "
                f"may be used, or {room / 1e6:,.0f} MB on the disk of {folder.parent}: give policy_cache=off, "
                "policy_cache_dir= on another disk, fewer policy_views or a smaller action_dim"
            )
        self.log(f"policy cache: {what}: {size} " + ("of memory" if kind == "ram" else f"in {folder}"))
        return None if kind == "ram" else folder

    def _name(self, split: str, identity: str) -> str:
        """Return the name of a split's folder; in a folder for several runs, by what decides the features."""
        return f"{split}-{identity[:16]}" if self.options.policy_cache_dir else split

    def _fill(self, store: FeatureStore, loader: DataLoader[Any], done: int, total: int) -> int:
        sampler = loader.sampler
        assert isinstance(sampler, EpochSampler)
        assert loader.batch_size is not None
        sampler.only = missing = store.missing()
        size = loader.batch_size
        self.stage.train(False)
        try:
            # The loader batches samples in order; those that cannot be read are missing from their batch.
            for start, batch in zip(
                range(0, len(missing), size), self.readable(loader) if missing else (), strict=True
            ):
                asked = missing[start : start + size]
                kept: list[tuple[int, int]] = []
                if batch is not None:
                    kept = _in_order(asked, batch.number.tolist())
                    with self.autocast:
                        store.put(kept, *self.stage.features_of_every_cell(batch))
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
        for part in (self.stage.model.glancer.net, self.stage.model.focuser.net):
            for name, value in part.state_dict().items():
                if name.startswith(HEAD_PREFIXES):
                    continue  # no feature comes from them
                digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()


def cache_folder(options: TrainOptions, run_dir: Path) -> Path:
    """Return the folder of a cache on disk."""
    return Path(options.policy_cache_dir).expanduser() if options.policy_cache_dir else run_dir / FOLDER


def remove_cache(options: TrainOptions, run_dir: Path) -> None:
    """Remove the cache of a finished run from its folder; that of ``policy_cache_dir`` stays for other runs."""
    if not options.policy_cache_dir:
        shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def _in_order(keys: list[tuple[int, int]], numbers: list[int]) -> list[tuple[int, int]]:
    """Return the samples of some clips' numbers, both in the same order."""
    found, rest = [], iter(keys)
    for number in numbers:
        found.append(next(key for key in rest if key[1] == number))
    return found


def _dataset(loader: DataLoader[Any]) -> ClipDataset:
    data = loader.dataset
    assert isinstance(data, ClipDataset)
    return data

"""Clips for training and validation: which frames, how they are cropped, and how unreadable ones are reported.

Everything random about a sample comes from one generator seeded with (seed, epoch, clip), so a run gives the same
samples for any number of processes and workers, and a resumed run the same as an uninterrupted one. That holds with
frames that are kept from epoch to epoch (:class:`Keeping`), too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from adafocus_edge.errors import SourceError
from adafocus_edge.evaluation.dataset import Example, Split
from adafocus_edge.media.clip import Clip
from adafocus_edge.media.preprocess import CropWindow, glimpse_frames, input_pixels, luminance, motion_frame_indices
from adafocus_edge.model.spec import ModelSpec
from training.augment import CROP_SCALES, Augmentation, UncroppedClips
from training.frame_cache import ClipFrames, DamagedError, FrameStore, estimate, probe_size
from training.sampling import FramePlan

VALIDATION = 1 << 31
"""Epoch number in the seeds of validation."""


@dataclass
class Batch:
    """Clips of one update.

    Attributes:
        frames: uint8 [B, T, S, S, 3]; empty while ``uncropped`` holds them.
        target: int64 [B], the class for the loss.
        number: int64 [B], the clip's index in its split.
        origins: float32 [B, T, 2], random patches as fractions of the free range.
        draws: float32 [B, T], uniform 0..1, from which the policy's actions are drawn.
        failed: name and error of each clip that could not be read.
        uncropped: frames that are augmented on the device.
        shortages: reasons why a worker keeps no more frames.
    """

    frames: Tensor
    target: Tensor
    number: Tensor
    origins: Tensor
    draws: Tensor
    failed: list[tuple[str, str]]
    uncropped: UncroppedClips | None = None
    shortages: list[str] = field(default_factory=list)

    def to(self, device: torch.device, size: int = 0) -> Batch:
        """Return the batch on a device; frames that are not cropped yet are cropped to S (``size``) there."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        if moved.uncropped is not None:
            moved.frames, moved.uncropped = moved.uncropped.crop(size), None
        return moved

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU copies in the background (PyTorch calls this)."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = (self.frames, self.target, self.number, self.origins, self.draws)
        uncropped = self.uncropped.map(change) if self.uncropped is not None else None
        frames, target, number, origins, draws = map(change, tensors)
        return Batch(frames, target, number, origins, draws, self.failed, uncropped, self.shortages)


@dataclass(frozen=True)
class Keeping:
    """How frames are kept from epoch to epoch.

    Attributes:
        most: max frames of a segment that training may draw; see :class:`FramePlan`.
        store: store of the frames; None to decode them each time, with the same samples.
    """

    most: int
    store: FrameStore | None


def shrink(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a frame, uint8 [H, W, 3] or [H, W], to the short side of kept frames; smaller frames are unchanged.

    Evaluation resizes to this short side before it crops S (``size``): 256 for 224, as the official extracted frames
    have.
    """
    height, width = pixels.shape[:2]
    window = CropWindow.of(height, width, size)
    if min(height, width) <= min(window.resized_height, window.resized_width):
        return pixels
    resized = (window.resized_width, window.resized_height)
    return np.asarray(Image.fromarray(pixels).resize(resized, Image.Resampling.BILINEAR))


class ClipDataset(Dataset[dict[str, Any]]):
    """The clips of a split as tensors; a sample's key is (epoch, number).

    Args:
        split: the clips.
        spec: the model's shapes.
        seed: random seed.
        train: whether frames, crops, flips, and one of a clip's labels are random; else as in the official evaluation.
        dense: whether sampling is dense.
        colour_jitter: max relative change of brightness and contrast in training.
        keeping: how frames are kept, or None. Training then crops them at the size of kept frames (:func:`shrink`):
            where that is smaller than the clip's, they are resized once more. Validation frames are the same.
        flip: whether training mirrors half of the clips.
        crop_scales: see :func:`crop_box`.
        crops: whether to crop frames here; else :meth:`Batch.to` does.
    """

    def __init__(
        self, split: Split, spec: ModelSpec, *, seed: int, train: bool, dense: bool = False,
        colour_jitter: float = 0.0, flip: bool = True, crop_scales: Sequence[float] = CROP_SCALES,
        keeping: Keeping | None = None, crops: bool = True,
    ) -> None:  # fmt: skip
        self.examples = split.examples
        self._spec = spec
        self._seed = seed
        self._train = train
        self._colour_jitter = colour_jitter
        self._flip = flip
        self._crop_scales = crop_scales
        self._keeping = keeping
        self._crops = crops
        self._plan = FramePlan(spec.segments, dense, keeping.most if keeping is not None else None)
        part = (self._plan, spec.motion_gap_s, spec.frame_size)
        self._settings = repr(("train", *part) if train else ("validation", *part, spec.fit))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return one sample, or its error: an unreadable clip is never replaced by another."""
        sample, random = self.without_frames(key)
        example = self.examples[key[1]]
        store = self._keeping.store if self._keeping is not None else None
        try:
            sample |= self._training_frames(example, store, random) if self._train else self._frames(example, store)
        except SourceError as error:
            sample["failed"] = (example.name, str(error))
        if store is not None and store.shortage:
            sample["shortage"] = store.shortage
        return sample

    def without_frames(self, key: tuple[int, int]) -> tuple[dict[str, Any], np.random.Generator]:
        """Return one sample without its frames, and the generator that draws them next."""
        epoch, number = key
        random = np.random.default_rng((self._seed, epoch, number))
        example = self.examples[number]
        segments = self._spec.segments
        sample = {
            "number": number,
            "target": example.labels[int(random.integers(len(example.labels))) if self._train else 0],
            "origins": random.random((segments, 2), np.float32),
            "draws": random.random(segments, np.float32),
        }
        return sample, random

    @property
    def memory_folder(self) -> Path | None:
        """Return the folder in memory that holds the kept frames, or None."""
        store = self._keeping.store if self._keeping is not None else None
        return store.folder if store is not None and store.in_memory else None

    def kept_bytes(self) -> int:
        """Return the estimated bytes of the split's clips that are not kept yet."""
        return estimate(self.examples, self._kept_bytes_of)

    def _kept_bytes_of(self, example: Example) -> int:
        spec, store = self._spec, self._keeping.store if self._keeping is not None else None
        if store is not None and (name := store.name_of(example, self._settings)) and (store.folder / name).exists():
            return 0
        if not self._train:
            return spec.segments * spec.frame_size**2 * 3
        frames, width, height = probe_size(example)
        if not frames or not width or not height:
            return 0
        window = CropWindow.of(height, width, spec.frame_size)
        pixels = min(width * height, window.resized_width * window.resized_height)
        count = len(self._plan.every(frames))
        return pixels * min(3 * count, frames) if spec.motion_gap_s else pixels * count * 3

    def _frames(self, example: Example, store: FrameStore | None) -> dict[str, Any]:
        """Read the frames of a validation clip; they are kept at the model's input size."""

        def read() -> ClipFrames:
            clip = example.open_clip()
            indices = self._plan.fixed(clip.frame_count)
            seen = input_pixels(clip, indices, spec)
            steps = range(len(indices))
            return ClipFrames(clip.frame_count, steps, [[step] for step in steps], [frame for _, frame in seen])

        spec = self._spec
        if store is None:
            return {"frames": np.stack(read().pixels)}
        return {"frames": self._kept(example, store, read, lambda _: range(spec.segments))}

    def _training_frames(
        self, example: Example, store: FrameStore | None, random: np.random.Generator
    ) -> dict[str, Any]:
        spec, keeping = self._spec, self._keeping
        if keeping is None:
            clip = example.open_clip()
            indices = self._plan.draw(clip.frame_count, random)
            augmentation = self._augmentation(random)

            def convert(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
                return augmentation.apply(pixels, spec.frame_size, spec.fit)

            seen = glimpse_frames(clip, indices, spec.motion_gap_s, convert)
            return {"frames": np.stack([frame for _, frame in seen])}
        if store is None:
            clip = example.open_clip()
            indices = self._plan.draw(clip.frame_count, random)
            frames = self._decode(clip, sorted(set(indices))).glimpses(indices)
        else:

            def read() -> ClipFrames:
                clip = example.open_clip()
                return self._decode(clip, self._plan.every(clip.frame_count))

            frames = self._kept(example, store, read, lambda count: self._plan.draw(count, random))
        augmentation = self._augmentation(random)
        if self._crops:
            return {"frames": np.stack([augmentation.apply(frame, spec.frame_size, spec.fit) for frame in frames])}
        height, width = frames.shape[1:3]
        box = augmentation.box(width, height, spec.frame_size, spec.fit)
        crop = {"box": np.array(box, np.float64), "flip": augmentation.flip, "levels": augmentation.levels}
        return {"uncropped": frames, **crop}

    def _augmentation(self, random: np.random.Generator) -> Augmentation:
        return Augmentation.draw(random, self._colour_jitter, flip=self._flip, scales=self._crop_scales)

    def _decode(self, clip: Clip, numbers: Sequence[int]) -> ClipFrames:
        """Decode the glimpses at some frames, ascending and distinct, at the size of kept frames."""
        spec = self._spec
        gap_s = spec.motion_gap_s
        parts = [motion_frame_indices(clip, n, gap_s) if gap_s else (n,) for n in numbers]
        needed = sorted({number for part in parts for number in part})

        def convert(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return shrink(luminance(rgb) if gap_s else rgb, spec.frame_size)

        pixels = [frame for _, frame in clip.select(needed, convert)]
        rows = np.searchsorted(needed, parts).tolist()
        return ClipFrames(clip.frame_count, numbers, rows, pixels)

    def _kept(
        self, example: Example, store: FrameStore, read: Callable[[], ClipFrames],
        choose: Callable[[int], Sequence[int]],
    ) -> NDArray[np.uint8]:  # fmt: skip
        """Return the glimpses at the frames that ``choose`` selects by the clip's frame count, kept or decoded."""
        name = store.name_of(example, self._settings)
        indices: Sequence[int] | None = None
        if name is not None and (kept := store.open(name)) is not None:
            with kept:
                indices = choose(kept.frame_count)
                try:
                    return kept.glimpses(indices)
                except (DamagedError, OSError):
                    store.remove(name)
        clip = read()
        if name is not None:
            store.keep(name, clip)
        return clip.glimpses(choose(clip.frame_count) if indices is None else indices)


def collate(samples: list[dict[str, Any]]) -> Batch | list[tuple[str, str]]:
    """Return a batch of the readable samples; if there are none, return their names and errors."""
    failed = [sample["failed"] for sample in samples if "failed" in sample]
    read = [sample for sample in samples if "failed" not in sample]
    if not read:
        return failed

    def stack(name: str) -> Tensor:
        first = np.asarray(read[0][name])
        made = _new_tensor((len(read), *first.shape), first.dtype)
        np.stack([sample[name] for sample in read], out=made.numpy())
        return made

    uncropped, frames = None, torch.empty(0, dtype=torch.uint8)
    if "uncropped" in read[0]:
        clips = [sample["uncropped"] for sample in read]
        pixels = _new_tensor((sum(clip.size for clip in clips),), np.dtype(np.uint8))
        np.concatenate([clip.reshape(-1) for clip in clips], out=pixels.numpy())
        shapes = [clip.shape for clip in clips]
        uncropped = UncroppedClips(pixels, shapes, stack("box"), stack("flip"), stack("levels"))
    else:
        frames = stack("frames")
    shortages = sorted({sample["shortage"] for sample in samples if "shortage" in sample})
    return Batch(
        frames, stack("target"), stack("number"), stack("origins"), stack("draws"), failed, uncropped, shortages
    )


def _new_tensor(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Return an uninitialised tensor; in a worker, its memory is shared with the trainer."""
    made = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    if get_worker_info() is not None:
        # An error here reaches the trainer; in the thread that sends batches, it would make the trainer wait for ever.
        made.share_memory_()  # type: ignore[no-untyped-call]
    return made


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, number) of every clip, shuffled by seed and epoch, or in order; each process has its share.

    Update k of W processes with b clips each holds the clips of update k of one process with W b clips.

    Args:
        count: clips in the split.
        batch: clips per update and process; in training, the last clips that fill no update are skipped.
        seed: seed of the shuffle; None for all clips in order.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, count: int, batch: int, seed: int | None, rank: int = 0, world: int = 1) -> None:
        self._count, self._batch, self._seed, self._rank, self._world = count, batch, seed, rank, world
        self.epoch = 0
        self.only: list[tuple[int, int]] | None = None
        """Samples to yield instead of an epoch's; None for the epoch's."""

    def __len__(self) -> int:
        if self._seed is None:
            return len(range(self._rank, self._count, self._world))
        return self._count // (self._batch * self._world) * self._batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.only is not None:
            return iter(self.only)
        order: Sequence[int] = range(self._count)
        epoch = VALIDATION
        if self._seed is not None:
            order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count).tolist()
            epoch = self.epoch
        mine = order[self._rank :: self._world]
        return iter([(epoch, number) for number in mine[: len(self)]])

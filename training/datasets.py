"""Clips for training and validation: which frames, how they are cut, and what is done when one cannot be read.

Everything random about a sample comes from one generator seeded with (seed, epoch, clip), so a run gives the same
samples whatever the number of processes and workers, and one that goes on after a break the same as an unbroken one.
Official ``ops/dataset.py`` and ``ops/transforms.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from adafocus_edge.data import Example, Split
from adafocus_edge.errors import SourceError
from adafocus_edge.preprocess import glimpse_frames, preprocess, sample_indices
from adafocus_edge.types import ModelSpec

CROP_SCALES = (1.0, 0.875, 0.75, 0.66)
"""Sides of the multi-scale crop, as shares of the short side."""
MOST_DISTORTION = 1
"""How many steps of :data:`CROP_SCALES` a crop's width and height may lie apart."""
CROP_OFFSETS = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2),  # the corners and the centre
    (0, 2), (4, 2), (2, 4), (2, 0),  # the middles of the sides
    (1, 1), (3, 1), (1, 3), (3, 3),  # half way between corners and centre
)  # fmt: skip
"""The 13 places of a multi-scale crop, (x, y) in quarters of the free range."""
DENSE_SPAN = 64
"""Frames that dense sampling spans."""
SQUARE = 256
"""Side of the square frame that training crops where frames are squashed: S * 8 / 7 of the usual 224."""
VALIDATION = 1 << 31
"""Stands for the epoch in the seeds of validation."""


@dataclass
class Batch:
    """Clips of one update.

    Attributes:
        frames: uint8 [B, T, S, S, 3].
        target: int64 [B], the class that counts for the loss.
        number: int64 [B], the clip's place in its split.
        origins: float32 [B, T, 2], random patches as fractions of the free range.
        draws: float32 [B, T], uniform 0..1, from which the policy's actions are drawn.
        failed: name and error of each clip that could not be read.
    """

    frames: Tensor
    target: Tensor
    number: Tensor
    origins: Tensor
    draws: Tensor
    failed: list[tuple[str, str]]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        tensors = (self.frames, self.target, self.number, self.origins, self.draws)
        frames, target, number, origins, draws = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(frames, target, number, origins, draws, self.failed)


def train_indices(frame_count: int, segments: int, random: np.random.Generator) -> list[int]:
    """Choose one random frame of each of T segments (official ``_sample_indices``); rising, from 0."""
    length = frame_count // segments
    if length > 0:
        return [i * length + int(offset) for i, offset in enumerate(random.integers(length, size=segments))]
    return sample_indices(frame_count, segments)


def dense_indices(frame_count: int, segments: int, random: np.random.Generator | None) -> list[int]:
    """Choose T frames at a steady stride over 64 frames, from a random place, or in evaluation from the middle."""
    places = max(1, 1 + frame_count - DENSE_SPAN)
    start = places // 2 if random is None else int(random.integers(places))
    stride = DENSE_SPAN // segments or 1
    return sorted((start + i * stride) % frame_count for i in range(segments))


def crop_box(width: int, height: int, size: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Choose the multi-scale crop of an image (official ``GroupMultiScaleCrop``).

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        size: S; a side that comes within 3 pixels of it is S.
        random: generator.

    Returns:
        left, top, width and height of the crop.
    """
    base = min(width, height)
    sides = [size if abs(int(base * scale) - size) < 3 else int(base * scale) for scale in CROP_SCALES]
    pairs = [
        (w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= MOST_DISTORTION
    ]  # fmt: skip
    crop_width, crop_height = pairs[int(random.integers(len(pairs)))]
    across, down = CROP_OFFSETS[int(random.integers(len(CROP_OFFSETS)))]
    step_x, step_y = max(0, width - crop_width) // 4, max(0, height - crop_height) // 4
    return across * step_x, down * step_y, min(crop_width, width), min(crop_height, height)


def augment(image: Image.Image, box: tuple[float, ...], size: int, flip: bool) -> Image.Image:
    """Cut a box (left, top, width, height) out, resize it to S x S (bilinear), and mirror it if asked."""
    left, top, width, height = box
    cut = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut


class ClipDataset(Dataset[dict[str, Any]]):
    """The clips of a split as tensors; a sample is asked for by (epoch, number).

    Args:
        split: the clips.
        spec: the model's shapes.
        seed: of everything random.
        train: random frames, crops and flips, and a random one of a clip's labels; else as the official evaluation.
        dense: dense sampling.
        colour_jitter: largest relative change of brightness and contrast in training.
    """

    def __init__(
        self, split: Split, spec: ModelSpec, *, seed: int, train: bool, dense: bool = False, colour_jitter: float = 0.0
    ) -> None:
        self.examples = split.examples
        self._spec = spec
        self._seed = seed
        self._train = train
        self._dense = dense
        self._colour_jitter = colour_jitter

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return one sample, or its error: a clip that cannot be read is never replaced by another."""
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
        try:
            sample["frames"] = self._frames(example, random)
        except SourceError as error:
            sample["failed"] = (example.name, str(error))
        return sample

    def _frames(self, example: Example, random: np.random.Generator) -> NDArray[np.uint8]:
        spec, clip = self._spec, example.open_clip()
        if self._dense:
            indices = dense_indices(clip.frame_count, spec.segments, random if self._train else None)
        elif self._train:
            indices = train_indices(clip.frame_count, spec.segments, random)
        else:
            indices = sample_indices(clip.frame_count, spec.segments)
        seed = int(random.integers(1 << 62))
        flip = bool(random.random() < 0.5)
        brightness, contrast = 1 + self._colour_jitter * random.uniform(-1, 1, 2)
        levels = (np.arange(256.0) * brightness - 128) * contrast + 128
        table = np.clip(levels, 0, 255).astype(np.uint8)

        def convert(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            if not self._train:
                return preprocess(Image.fromarray(pixels), spec.frame_size, spec.fit)
            # The same for all frames of a clip, whichever thread comes first: drawn anew from one seed.
            height, width = pixels.shape[:2]
            if spec.fit == "crop":
                box: tuple[float, ...] = crop_box(width, height, spec.frame_size, np.random.default_rng(seed))
            else:
                # As if the frame had been made square before.
                square = crop_box(SQUARE, SQUARE, SQUARE * 7 // 8, np.random.default_rng(seed))
                box = tuple(v * side / SQUARE for v, side in zip(square, (width, height) * 2, strict=True))
            image = augment(Image.fromarray(pixels), box, spec.frame_size, flip)
            return table[np.asarray(image)] if self._colour_jitter else np.asarray(image)

        return np.stack([frame for _, frame in glimpse_frames(clip, indices, spec.motion_gap_s, convert)])


def collate(samples: list[dict[str, Any]]) -> Batch | list[tuple[str, str]]:
    """Make a batch of the samples that could be read; if there are none, return their names and errors."""
    failed = [sample["failed"] for sample in samples if "failed" in sample]
    read = [sample for sample in samples if "failed" not in sample]
    if not read:
        return failed

    def stack(name: str) -> Tensor:
        made = torch.from_numpy(np.stack([sample[name] for sample in read]))
        if get_worker_info() is not None:
            # Here, what goes wrong reaches the trainer; in the thread that hands batches over, it would wait for ever.
            made.share_memory_()  # type: ignore[no-untyped-call]
        return made

    return Batch(stack("frames"), stack("target"), stack("number"), stack("origins"), stack("draws"), failed)


class EpochSampler(Sampler[tuple[int, int]]):
    """Gives (epoch, number) of every clip, shuffled by seed and epoch, or in order; each process its share.

    Update k of W processes with b clips each holds the clips of update k of one process with W b clips.

    Args:
        count: clips in the split.
        batch: clips per update and process; in training the rest of an epoch that fills no update is left out.
        seed: of the shuffle; None for the clips in order, all of them.
        rank: of this process.
        world: how many processes there are.
    """

    def __init__(self, count: int, batch: int, seed: int | None, rank: int = 0, world: int = 1) -> None:
        self._count, self._batch, self._seed, self._rank, self._world = count, batch, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        if self._seed is None:
            return len(range(self._rank, self._count, self._world))
        return self._count // (self._batch * self._world) * self._batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order: Sequence[int] = range(self._count)
        epoch = VALIDATION
        if self._seed is not None:
            order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count).tolist()
            epoch = self.epoch
        mine = order[self._rank :: self._world]
        return iter([(epoch, number) for number in mine[: len(self)]])

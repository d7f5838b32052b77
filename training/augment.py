"""Augmentation of a clip's frames: multi-scale crop, mirroring and jitter, by Pillow or by PyTorch on any device.

Official ``ops/transforms.py``. Both ways compute the same filter: bilinear, antialiased, rounded to whole grey levels
after each axis. They differ by a grey level in some pixels: Pillow takes the vertical axis first for some sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adafocus_edge.model.spec import Fit

TensorChange = Callable[[Tensor], Tensor]

CROP_SCALES = (1.0, 0.875, 0.75, 0.66)
"""Sides of the multi-scale crop, as shares of the short side."""
MAX_DISTORTION = 1
"""Max distance between the scales of a crop's width and height, in steps of :data:`CROP_SCALES`."""
CROP_OFFSETS = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2),  # the corners and the centre
    (0, 2), (4, 2), (2, 4), (2, 0),  # the middles of the sides
    (1, 1), (3, 1), (1, 3), (3, 3),  # half way between corners and centre
)  # fmt: skip
"""The 13 places of a multi-scale crop, (x, y) in quarters of the free range."""
SQUARE = 256
"""Side of the square that training crops with ``fit=squash``, in pixels: S * 8 / 7 for the usual S of 224."""


def crop_box(
    width: int, height: int, size: int, random: np.random.Generator, scales: Sequence[float] = CROP_SCALES
) -> tuple[int, int, int, int]:
    """Draw the multi-scale crop of an image (official ``GroupMultiScaleCrop``).

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        size: S; a side within 3 pixels of it becomes S.
        random: generator.
        scales: possible sides of the crop, as shares of the short side, descending.

    Returns:
        Left, top, width and height of the crop, in pixels.
    """
    base = min(width, height)
    sides = [size if abs(int(base * scale) - size) < 3 else int(base * scale) for scale in scales]
    pairs = [
        (w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= MAX_DISTORTION
    ]  # fmt: skip
    crop_width, crop_height = pairs[int(random.integers(len(pairs)))]
    across, down = CROP_OFFSETS[int(random.integers(len(CROP_OFFSETS)))]
    step_x, step_y = max(0, width - crop_width) // 4, max(0, height - crop_height) // 4
    return across * step_x, down * step_y, min(crop_width, width), min(crop_height, height)


def augment(image: Image.Image, box: tuple[float, ...], size: int, flip: bool) -> Image.Image:
    """Crop a box (left, top, width, height), resize it to S x S (bilinear), and mirror it if ``flip``."""
    left, top, width, height = box
    cut = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a clip, the same for all its frames.

    Attributes:
        seed: seed of the crop, whose sides depend on the frames' size.
        flip: whether to mirror.
        levels: uint8 [256], grey level after brightness and contrast, by grey level before.
        jitters: whether ``levels`` changes any.
        scales: scales of the crop; see :func:`crop_box`.
    """

    seed: int
    flip: bool
    levels: NDArray[np.uint8]
    jitters: bool
    scales: Sequence[float] = CROP_SCALES

    @classmethod
    def draw(
        cls, random: np.random.Generator, colour_jitter: float, *, flip: bool = True,
        scales: Sequence[float] = CROP_SCALES,
    ) -> Augmentation:  # fmt: skip
        """Draw an augmentation.

        Args:
            random: generator; the options below do not change how many numbers are drawn.
            colour_jitter: max relative change of brightness and contrast.
            flip: whether to mirror half of the clips.
            scales: scales of the crops; see :func:`crop_box`.
        """
        seed = int(random.integers(1 << 62))
        mirrored = bool(random.random() < 0.5) and flip
        brightness, contrast = 1 + colour_jitter * random.uniform(-1, 1, 2)
        levels = (np.arange(256.0) * brightness - 128) * contrast + 128
        return cls(seed, mirrored, np.clip(levels, 0, 255).astype(np.uint8), bool(colour_jitter), scales)

    def box(self, width: int, height: int, size: int, fit: Fit) -> tuple[float, ...]:
        """Return left, top, width and height of the crop of frames of this size; the same at each call."""
        random = np.random.default_rng(self.seed)
        if fit == "crop":
            return crop_box(width, height, size, random, self.scales)
        # As if the frame had been squashed to a square first.
        square = crop_box(SQUARE, SQUARE, SQUARE * 7 // 8, random, self.scales)
        return tuple(v * side / SQUARE for v, side in zip(square, (width, height) * 2, strict=True))

    def apply(self, pixels: NDArray[np.uint8], size: int, fit: Fit) -> NDArray[np.uint8]:
        """Augment one frame, uint8 [H, W, 3] or [H, W]; return uint8 [S, S, 3] or [S, S]."""
        height, width = pixels.shape[:2]
        image = augment(Image.fromarray(pixels), self.box(width, height, size, fit), size, self.flip)
        return self.levels[np.asarray(image)] if self.jitters else np.asarray(image)


@dataclass
class UncroppedClips:
    """Clips of a batch before augmentation; :meth:`crop` augments them on any device.

    Attributes:
        pixels: uint8 [n], the frames of all clips joined: one tensor to send and to copy.
        shapes: shape of each clip's frames, (T, H, W, 3).
        boxes: float64 [B, 4]: left, top, width and height of each crop, in pixels.
        flips: bool [B].
        levels: uint8 [B, 256]; see :class:`Augmentation`.
    """

    pixels: Tensor
    shapes: list[tuple[int, ...]]
    boxes: Tensor
    flips: Tensor
    levels: Tensor

    def map(self, change: TensorChange) -> UncroppedClips:
        """Return the clips with ``change`` applied to each tensor, such as a copy to a device."""
        return UncroppedClips(
            change(self.pixels), self.shapes, change(self.boxes), change(self.flips), change(self.levels)
        )

    def crop(self, size: int) -> Tensor:
        """Crop, resize, mirror and jitter on the tensors' device; return uint8 [B, T, S, S, 3]."""
        widths, heights = ([shape[axis] for shape in self.shapes] for axis in (2, 1))
        left, top, width, height = self.boxes.unbind(dim=1)
        across = filter_matrices(left, width, widths, size)
        across = torch.where(self.flips[:, None, None], across.flip(1), across)
        down = filter_matrices(top, height, heights, size)
        cropped = self.pixels.new_empty(len(self.shapes), self.shapes[0][0], size, size, 3)
        lengths = [int(np.prod(shape)) for shape in self.shapes]
        for number, (clip, shape) in enumerate(zip(torch.split(self.pixels, lengths), self.shapes, strict=True)):
            _, high, wide, _ = shape
            planes = clip.view(shape).permute(0, 3, 1, 2).float()
            # Halves are rounded up, as Pillow does.
            planes = (planes @ across[number, :, :wide].T).add_(0.5).floor_()
            planes = (down[number, :, :high] @ planes).add_(0.5).floor_().clamp_(0, 255)
            cropped[number] = self.levels[number][planes.int()].permute(0, 2, 3, 1)
        return cropped


def filter_matrices(start: Tensor, length: Tensor, sides: list[int], size: int) -> Tensor:
    """Return the matrices that resize one axis of images as Pillow does (bilinear, antialiased).

    Args:
        start: float64 [B], start of the crop, in pixels.
        length: float64 [B], length of the crop, in pixels.
        sides: length of the images along this axis, [B].
        size: S.

    Returns:
        float32 [B, S, longest side]: each row's weights over the pixels of the axis add up to 1.
    """
    step = length / size
    reach = step.clamp(min=1.0)[:, None, None]
    places = torch.arange(size, dtype=torch.float64, device=start.device) + 0.5
    centres = start[:, None] + step[:, None] * places
    pixels = torch.arange(max(sides), dtype=torch.float64, device=start.device) + 0.5
    weights = (1 - (pixels - centres[..., None]).abs() / reach).clamp(min=0)
    inside = pixels < torch.tensor(sides, device=start.device)[:, None]
    weights = weights * inside[:, None]
    return (weights / weights.sum(dim=2, keepdim=True)).float()

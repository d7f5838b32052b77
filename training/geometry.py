"""Patch geometry in PyTorch: the grid of actions, the top-left corner of a patch, and the crop."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def action_grid(side: int) -> Tensor:
    """Return the origins of the n x n actions.

    Cell ``a`` lies in row ``a // side`` and column ``a % side``; its origin is ``(row, column) / (side - 1)``, the
    patch's top-left corner as a fraction of the free range (official ``models/gfv_net.py``, ``standard_actions_set``).

    Args:
        side: n, at least 2.

    Returns:
        float32 [side * side, 2], each row (y, x) in 0..1.
    """
    if side < 2:
        raise ValueError(f"an action grid needs at least 2 x 2 cells, not {side} x {side}")
    # The quotient is taken in Python's float64 and rounded once, as the official table is.
    steps = torch.tensor([cell / (side - 1) for cell in range(side)], dtype=torch.float32)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], dim=1)


def patch_corner(origin: Tensor, frame_size: int, patch_size: int) -> Tensor:
    """Return the pixel of a patch's top-left corner: ``floor(origin * (S - P))`` in float32.

    Args:
        origin: float32 [N, 2], (y, x) in 0..1.
        frame_size: S, pixels.
        patch_size: P, pixels.

    Returns:
        int64 [N, 2], (y, x) in pixels.
    """
    return torch.floor(origin * float(frame_size - patch_size)).to(torch.int64)


def crop(frames: Tensor, corner: Tensor, patch_size: int) -> Tensor:
    """Cut one patch out of each frame, so that a graph needs no slice whose bounds are data.

    All pixels are one table, from which one ONNX Gather looks up the patches'; indexing by sample, row and column is a
    GatherND of three index planes, which takes twice as long (ONNX Runtime 1.31 on a CPU).

    Args:
        frames: any type [N, S, S, C], channels last.
        corner: int64 [N, 2], (y, x) in pixels.
        patch_size: P, pixels.

    Returns:
        [N, P, P, C], of the frames' type.
    """
    side = frames.shape[1]
    offsets = torch.arange(patch_size, device=frames.device)
    sample = torch.arange(frames.shape[0], device=frames.device)[:, None]
    rows = sample * side + corner[:, 0:1] + offsets
    pixels = rows[:, :, None] * side + (corner[:, 1:2] + offsets)[:, None, :]
    return functional.embedding(pixels, frames.flatten(0, 2))

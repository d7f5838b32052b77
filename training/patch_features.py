"""Features of the patches of a batch of clips, computed on demand or kept by a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.datasets import Batch
from training.model import AdaFocus


class PatchFeatures(Protocol):
    """A batch's clips as inputs of the policy and the classifier.

    Attributes:
        feature_maps: the policy's input, float32 [T, B, dim, h, w].
    """

    feature_maps: Tensor

    def at(self, actions: Tensor) -> Tensor:
        """Return the classifier's input for one cell per frame, float32 [B, T, inputs]; actions int64 [T, B]."""

    def at_random(self) -> Tensor:
        """Return the classifier's input for one random patch per frame, float32 [B, T, inputs]."""

    def everywhere(self, step: int) -> Tensor:
        """Return the classifier's input for all cells of frame ``step``, float32 [B, cells, inputs]."""


class LiveFeatures:
    """Features computed on demand, as in the official code; random patches may be anywhere.

    Args:
        model: model with the grid of cells.
        batch: clips.
        feature_maps: feature maps of the clips, [B * T, dim, h, w].
        features: returns the classifier's input, [B, T, inputs], for origins [B, T, 2].
    """

    def __init__(
        self, model: AdaFocus, batch: Batch, feature_maps: Tensor, features: Callable[[Tensor], Tensor]
    ) -> None:
        clips = batch.frames.shape[:2]
        self._grid, self._origins, self._features = model.grid, batch.origins, features
        self.feature_maps = feature_maps.view(*clips, *feature_maps.shape[1:]).transpose(0, 1)
        self._everywhere: Tensor | None = None

    def at(self, actions: Tensor) -> Tensor:
        """See :meth:`PatchFeatures.at`."""
        return self._features(self._grid[actions].transpose(0, 1))

    def at_random(self) -> Tensor:
        """See :meth:`PatchFeatures.at_random`."""
        return self._features(self._origins)

    def everywhere(self, step: int) -> Tensor:
        """See :meth:`PatchFeatures.everywhere`; the first call computes all frames."""
        if self._everywhere is None:
            cells = [self._features(origin.expand_as(self._origins)) for origin in self._grid]
            self._everywhere = torch.stack(cells, dim=2)
        return self._everywhere[:, step]


@dataclass
class KeptBatch:
    """Clips of one update whose features a cache keeps; takes the place of a :class:`Batch`.

    Attributes:
        feature_maps: float16 [B, T, dim, h, w].
        cells: the focuser's features of each cell, float16 [B, T, cells, dim].
        target: int64 [B].
        number: int64 [B].
        origins: float32 [B, T, 2]; the first number selects the random cell.
        draws: float32 [B, T].
        failed: empty: unreadable clips were reported when the features were computed.
        shortages: empty, for the same reason.
    """

    feature_maps: Tensor
    cells: Tensor
    target: Tensor
    number: Tensor
    origins: Tensor
    draws: Tensor
    failed: list[tuple[str, str]]
    shortages: tuple[str, ...] = ()

    def to(self, device: torch.device, _size: int = 0) -> KeptBatch:
        """Return the batch on a device; it has no frames to crop."""
        tensors = (self.feature_maps, self.cells, self.target, self.number, self.origins, self.draws)
        maps, cells, target, number, origins, draws = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return KeptBatch(maps, cells, target, number, origins, draws, self.failed)


class KeptFeatures:
    """Features that a cache keeps; random patches are cells.

    Args:
        batch: batch of the cache.
        with_glancer: whether the glance is part of the classifier's input.
    """

    def __init__(self, batch: KeptBatch, *, with_glancer: bool) -> None:
        self._batch, self._with_glancer = batch, with_glancer
        self.feature_maps = batch.feature_maps.float().transpose(0, 1)
        self._rows = torch.arange(len(batch.target), device=batch.cells.device)[:, None]
        self._steps = torch.arange(batch.cells.shape[1], device=batch.cells.device)[None]

    def at(self, actions: Tensor) -> Tensor:
        """See :meth:`PatchFeatures.at`."""
        return self._with_glance(self._batch.cells[self._rows, self._steps, actions.T].float())

    def at_random(self) -> Tensor:
        """See :meth:`PatchFeatures.at_random`."""
        count = self._batch.cells.shape[2]
        return self.at((self._batch.origins[:, :, 0] * count).long().clamp(max=count - 1).T)

    def everywhere(self, step: int) -> Tensor:
        """See :meth:`PatchFeatures.everywhere`."""
        cells = self._batch.cells[:, step].float()
        if not self._with_glancer:
            return cells
        return torch.cat([self._glance()[:, step, None].expand(-1, cells.shape[1], -1), cells], dim=2)

    def _with_glance(self, focus: Tensor) -> Tensor:
        return torch.cat([self._glance(), focus], dim=2) if self._with_glancer else focus

    def _glance(self) -> Tensor:
        return self.feature_maps.mean(dim=(3, 4)).transpose(0, 1)

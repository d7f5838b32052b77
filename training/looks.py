"""What stage 2 asks of a batch of clips: features of the patches at some places, computed on demand or kept before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.datasets import Batch
from training.model import AdaFocus


class Looks(Protocol):
    """A batch's clips as the policy and the classifier see them.

    Attributes:
        feature_maps: what the policy sees, float32 [T, B, dim, h, w].
    """

    feature_maps: Tensor

    def at(self, actions: Tensor) -> Tensor:
        """Return the classifier's input for one cell per frame, float32 [B, T, inputs]; actions int64 [T, B]."""

    def at_random(self) -> Tensor:
        """Return the same for one random patch per frame."""

    def everywhere(self, step: int) -> Tensor:
        """Return the same for all cells of one frame per clip, float32 [B, cells, inputs]."""


class LiveLooks:
    """Looks that are computed when they are asked for, as in the official code: random patches may lie anywhere.

    Args:
        model: whose grid gives each cell's place.
        batch: the clips.
        feature_maps: of the clips, [B * T, dim, h, w].
        features: gives the classifier's input, [B, T, inputs], of origins [B, T, 2].
    """

    def __init__(
        self, model: AdaFocus, batch: Batch, feature_maps: Tensor, features: Callable[[Tensor], Tensor]
    ) -> None:
        clips = batch.frames.shape[:2]
        self._grid, self._origins, self._features = model.grid, batch.origins, features
        self.feature_maps = feature_maps.view(*clips, *feature_maps.shape[1:]).transpose(0, 1)
        self._everywhere: Tensor | None = None

    def at(self, actions: Tensor) -> Tensor:
        """See :meth:`Looks.at`."""
        return self._features(self._grid[actions].transpose(0, 1))

    def at_random(self) -> Tensor:
        """See :meth:`Looks.at_random`."""
        return self._features(self._origins)

    def everywhere(self, step: int) -> Tensor:
        """See :meth:`Looks.everywhere`; all frames are computed at the first call."""
        if self._everywhere is None:
            cells = [self._features(origin.expand_as(self._origins)) for origin in self._grid]
            self._everywhere = torch.stack(cells, dim=2)
        return self._everywhere[:, step]


@dataclass
class KeptBatch:
    """Clips of one update whose features were computed before; stands for a :class:`Batch`.

    Attributes:
        feature_maps: float16 [B, T, dim, h, w].
        cells: the focuser's features of each cell, float16 [B, T, cells, dim].
        target: int64 [B].
        number: int64 [B].
        origins: float32 [B, T, 2], of which the first number chooses the random cell.
        draws: float32 [B, T].
        failed: none: what could not be read was reported when the features were computed.
        shortages: none, for the same reason.
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
        """Return the batch on a device; there are no frames to crop."""
        tensors = (self.feature_maps, self.cells, self.target, self.number, self.origins, self.draws)
        maps, cells, target, number, origins, draws = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return KeptBatch(maps, cells, target, number, origins, draws, self.failed)


class KeptLooks:
    """Looks at what a cache kept: random patches are cells.

    Args:
        batch: of the cache.
        with_glancer: whether the classifier takes the glance, too.
    """

    def __init__(self, batch: KeptBatch, *, with_glancer: bool) -> None:
        self._batch, self._with_glancer = batch, with_glancer
        self.feature_maps = batch.feature_maps.float().transpose(0, 1)
        self._rows = torch.arange(len(batch.target), device=batch.cells.device)[:, None]
        self._steps = torch.arange(batch.cells.shape[1], device=batch.cells.device)[None]

    def at(self, actions: Tensor) -> Tensor:
        """See :meth:`Looks.at`."""
        return self._with_glance(self._batch.cells[self._rows, self._steps, actions.T].float())

    def at_random(self) -> Tensor:
        """See :meth:`Looks.at_random`."""
        count = self._batch.cells.shape[2]
        return self.at((self._batch.origins[:, :, 0] * count).long().clamp(max=count - 1).T)

    def everywhere(self, step: int) -> Tensor:
        """See :meth:`Looks.everywhere`."""
        cells = self._batch.cells[:, step].float()
        if not self._with_glancer:
            return cells
        return torch.cat([self._glance()[:, step, None].expand(-1, cells.shape[1], -1), cells], dim=2)

    def _with_glance(self, focus: Tensor) -> Tensor:
        return torch.cat([self._glance(), focus], dim=2) if self._with_glancer else focus

    def _glance(self) -> Tensor:
        return self.feature_maps.mean(dim=(3, 4)).transpose(0, 1)

"""An exponential moving average of the trained weights, which is what validation and checkpoints see (``ema=``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adafocus_edge.errors import CheckpointError

STATE = "unaveraged"
"""Entry of a checkpoint's state: the weights that are not averaged, and the number of updates."""
START = 10
"""Updates over which the average grows longer: decay (1 + n) / (10 + n) after update n, at most ``ema``."""


class WeightAverage:
    """Averages parameters and statistics of the modules that a stage trains. With ``decay`` 0 it does nothing.

    Args:
        modules: the trained modules.
        decay: share of the old average that stays at an update, 0 to below 1.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._own: list[Tensor] = []
        if decay:
            # The tensors themselves: an optimiser changes them in place.
            self._own = [value for module in modules for value in module.state_dict(keep_vars=True).values()]
        self._average = [value.detach().clone() for value in self._own]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser's step."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (START + self._updates))
        for average, value in zip(self._average, self._own, strict=True):
            if average.is_floating_point():
                average.lerp_(value.detach(), 1 - decay)
            else:
                average.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the weights' place."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, value in zip(self._average, self._own, strict=True):
            kept = value.detach().clone()
            value.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint of the average needs to continue, while the average is applied; None without one."""
        if not self._decay:
            return None
        return {"updates": self._updates, "weights": [value.detach().cpu().clone() for value in self._average]}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any], path: object) -> None:
        """Continue from a checkpoint whose averaged weights are loaded. Raises ``CheckpointError``."""
        kept = state.get(STATE)
        if not self._decay or not isinstance(kept, Mapping):
            return
        try:
            weights, self._updates = list(kept["weights"]), int(kept["updates"])
            for value, given in zip(self._own, weights, strict=True):
                value.copy_(given)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"resume={path}: its weights that are not averaged do not fit ({error})") from None

"""Figures of a policy while it learns, and the warning that it has collapsed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.distributed import gather
from training.options import TrainOptions

COLLAPSED_SHARE = 80.0
"""Percent of patches in one cell above which a policy no better than random patches counts as collapsed."""
COLLAPSED_ENTROPY = 0.05
"""Share of the max entropy below which it counts as collapsed, too."""
MIN_GAIN = 0.01
"""Min confidence beyond that of random patches that counts as better."""
MAX_LOSS = 0.02
"""Confidence below that of random patches, on validation clips, above which the policy counts as overfitted."""
PLACE_PIXELS = 32
"""Side of a cell in the picture of places, in pixels."""


@dataclass
class PolicyWatch:
    """Means over clips of a policy's figures, and how often it uses each cell.

    Attributes:
        cells: cells of the action grid.
        totals: sum of each figure over clips, and under ``clips`` the number of clips.
        places: how often each cell was used.
    """

    cells: int
    totals: dict[str, float] = field(default_factory=dict)
    places: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.places = np.zeros(self.cells, np.int64)

    def add(self, clips: int, actions: Tensor, **figures: float | Tensor) -> None:
        """Add a batch of ``clips`` clips: its actions, int64 [T, B], and means of its figures."""
        if not clips:
            return
        for name, value in {**figures, "clips": 1.0}.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(value) * clips
        self.places += torch.bincount(actions.flatten(), minlength=self.cells).cpu().numpy()

    def report(self) -> dict[str, Any]:
        """Return the means over all processes since the last report, and reset them; every process must call this.

        ``places`` are the shares of the cells, by rows of the grid; ``most_used_cell`` is the largest in percent,
        ``cells_used`` the number of cells that were used.
        """
        parts = gather((self.totals, self.places))
        self.totals, self.places = {}, np.zeros(self.cells, np.int64)
        clips = sum(totals.get("clips", 0.0) for totals, _ in parts)
        if not clips:
            return {}
        names = dict.fromkeys(name for totals, _ in parts for name in totals if name != "clips")
        found: dict[str, Any] = {name: sum(t.get(name, 0.0) for t, _ in parts) / clips for name in names}
        places = sum(places for _, places in parts)
        shares = places / places.sum()
        side = math.isqrt(self.cells)
        return {
            **found,
            "most_used_cell": float(shares.max() * 100),
            "cells_used": int((places > 0).sum()),
            "places": [[round(float(share), 5) for share in row] for row in shares.reshape(side, side)],
        }


def policy_warning(trained: dict[str, Any], found: dict[str, Any], options: TrainOptions) -> str | None:
    """Return a warning if the policy has collapsed, or fits the training clips only; else None.

    Args:
        trained: figures of an epoch.
        found: figures of the validation after it.
        options: options of the run, for the advice.
    """
    return collapse_warning(trained, found, options) or overfit_warning(trained, found, options)


def overfit_warning(trained: dict[str, Any], found: dict[str, Any], options: TrainOptions) -> str | None:
    """Return a warning if the policy gains on training clips and loses on validation clips, else None."""
    if "random_confidence" not in found or trained.get("reward", 0.0) <= 0:
        return None
    lost = found["random_confidence"] - found["confidence"]
    if lost <= MAX_LOSS:
        return None
    views = ", or policy_views=4" if options.policy_cache != "off" else ""
    return (
        f"the policy fits the training clips only: on validation clips its patches give the correct class "
        f"{lost:.3f} less confidence than random ones: give fewer epochs (now {options.epochs}), "
        f"entropy_weight={max(0.1, 3 * options.entropy_weight):g} (now {options.entropy_weight:g}), or more clips"
        f"{views}"
    )


def collapse_warning(trained: dict[str, Any], found: dict[str, Any], options: TrainOptions) -> str | None:
    """Return a warning if the policy uses one cell for any input and is no better than random patches, else None.

    Args:
        trained: figures of an epoch.
        found: figures of the validation after it.
        options: options of the run, for the advice.
    """
    if "most_used_cell" not in found or "entropy" not in trained:
        return None
    share, entropy = found["most_used_cell"], trained["entropy"]
    even = math.log(options.action_dim)
    if share <= COLLAPSED_SHARE and entropy >= COLLAPSED_ENTROPY * even:
        return None
    if found["confidence"] - found["random_confidence"] > MIN_GAIN:
        return None
    places = np.array(found["places"])
    row, column = np.unravel_index(int(places.argmax()), places.shape)
    return (
        f"the policy has collapsed: {share:.0f} % of its patches are in one cell (row {row + 1}, column {column + 1}), "
        f"entropy {entropy:.2f} of {even:.2f}, and they are no better than random ones: {_advice(options)}"
    )


def _advice(options: TrainOptions) -> str:
    clips = options.policy_batch or options.batch_size
    advice = []
    if options.policy_estimator == "ppo":
        if clips < 64:
            advice.append(f"give more clips per update, policy_batch=64 (now {clips})")
        if options.gamma > 0:
            advice.append(f"gamma=0 (now {options.gamma:g})")
    if options.policy_lr > 0.001:
        advice.append(f"policy_lr=0.001 (now {options.policy_lr:g})")
    advice.append(f"entropy_weight={max(0.03, 2 * options.entropy_weight):g} (now {options.entropy_weight:g})")
    if options.policy_estimator == "ppo":
        advice.append("or policy_estimator=expected gamma=0")
    return ", ".join(advice)


def places_picture(places: list[list[float]]) -> NDArray[np.uint8]:
    """Return a picture of the cells' shares, the most used one white; uint8 [1, H, W], for TensorBoard."""
    shares = np.array(places)
    grey = (shares / max(shares.max(), 1e-9) * 255).round().astype(np.uint8)
    return np.kron(grey, np.ones((PLACE_PIXELS, PLACE_PIXELS), np.uint8))[None]

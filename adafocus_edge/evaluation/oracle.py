"""The best patches for a clip of a known class: an estimate of the most that a policy could gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.model.logits import softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.model.spec import ModelSpec


def cell_origins(side: int) -> NDArray[np.float32]:
    """Return the origins of a grid of ``side`` x ``side`` cells, row by row: float32 [side * side, 2], (y, x)."""
    steps = (np.arange(side) / (side - 1)).astype(np.float32)
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=1)


POINTS = 5
"""Side of the grid of points that is tried for a policy that chooses points."""


def tried_grid(spec: ModelSpec) -> int:
    """Return the side of the grid whose cells are tried."""
    return spec.grid or POINTS


class Oracle:
    """Tries every cell of every frame, and takes the one with the highest confidence in the right class.

    Of a policy that chooses points, a grid of points is tried. The choice is greedy, step by step: an early cell that
    would help later steps more is not found.

    Args:
        model: the four sessions; its policy is not used.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._origins = cell_origins(tried_grid(model.spec))

    def __call__(self, frames: NDArray[np.uint8], label: int) -> NDArray[np.float32]:
        """Return the logits after each step, float32 [T, C], of a clip of a known class."""
        spec, frames = self._model.spec, np.asarray(frames)
        state: Any = np.zeros((1, spec.classifier_state), np.float32)
        chosen = []
        for step in range(len(frames)):
            frame = frames[step : step + 1]
            feeds = {"state": state}
            if spec.with_glancer:
                feeds["glance"] = self._model.glancer.run({"frame": frame})["glance"]
            # One row at a time: an engine may be built for batch 1 only.
            tried = [self._model.classifier.run({**feeds, "focus": focus}) for focus in self._focuses(frame)]
            logits = np.concatenate([np.asarray(verdict["logits"]) for verdict in tried])
            best = int(softmax(logits)[:, label].argmax())
            state = tried[best]["state_out"]
            chosen.append(logits[best])
        return np.stack(chosen)

    def _focuses(self, frame: NDArray[np.uint8]) -> list[Any]:
        """Return the focuser's features of every cell, each [1, dim]."""
        size = max(1, self._model.batch)
        found = []
        for start in range(0, len(self._origins), size):
            origins = self._origins[start : start + size]
            focus = self._model.focuser.run({"frame": np.repeat(frame, len(origins), axis=0), "origin": origins})[
                "focus"
            ]
            found += [focus[row : row + 1] for row in range(len(origins))]
        return found

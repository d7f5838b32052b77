"""Compare the exported graphs with PyTorch: each alone, and all together in the glimpse loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.backends.base import Session
from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.errors import ExportError
from adafocus_edge.model.spec import GRAPHS, ModelSpec
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from training.graphs import TorchSession, torch_model
from training.models.base import GlimpseModel

TOLERANCE = 2e-3
"""Largest error allowed, relative to the tensor's largest value if that is above 1."""
BATCHES = (1, 3)
SAME_ORIGIN = 1e-4
"""Largest difference of an origin, 0..1, at which points count as the same; cells must be equal."""


@dataclass(frozen=True)
class Comparison:
    """One row of the parity report.

    Attributes:
        what: name of a graph, or of a schedule of the whole loop.
        batch: frames per call.
        output: the tensor with the largest error.
        max_error: largest absolute difference.
        scale: largest absolute value of that tensor in PyTorch.
        same_actions: whether all actions of the policy agree; None for a graph without actions.
    """

    what: str
    batch: int
    output: str
    max_error: float
    scale: float
    same_actions: bool | None

    @property
    def ok(self) -> bool:
        """Whether the error is within tolerance and the actions are the same."""
        return self.max_error <= TOLERANCE * max(1.0, self.scale) and self.same_actions is not False


def compare(
    model: GlimpseModel, exported: LoadedModel, step: Session | None, frames: NDArray[np.uint8]
) -> list[Comparison]:
    """Compare exported graphs with PyTorch on real frames.

    Args:
        model: PyTorch model in evaluation mode.
        exported: the four sessions.
        step: session of the joined graph, or None.
        frames: uint8 [T, S, S, 3].

    Returns:
        a row for each graph and batch, and one for each schedule of the loop. Raises ``ExportError`` if an error
        exceeds the tolerance or an action differs.
    """
    reference, sessions = torch_model(model, record=True)
    glimpses = list(see_clip(reference, frames))
    rows = [
        _compare_graph(graph, getattr(exported, graph), sessions[graph], batch) for graph in GRAPHS for batch in BATCHES
    ]
    logits = np.concatenate([glimpse.logits for glimpse in glimpses])
    origins = np.concatenate([glimpse.origins for glimpse in glimpses])

    def loop(what: str, batch: int, found: list[tuple[Any, Any]]) -> Comparison:
        same = same_origins(model.spec, np.concatenate([origin for origin, _ in found]), origins)
        error = largest_error(np.concatenate([logit for _, logit in found]), logits)
        return Comparison(what, batch, "logits", error, float(np.abs(logits).max()), same)

    stream = GlimpseStream(exported)
    clip = [(g.origins, g.logits) for g in see_clip(exported, frames)]
    rows.append(loop("loop, clip schedule", exported.batch, clip))
    live = [(g.origins, g.logits) for g in (stream.see(frames[i : i + 1]) for i in range(len(frames)))]
    rows.append(loop("loop, stream schedule", 1, live))
    if step is not None:
        rows.append(loop("joined step", 1, _run_joined(model, step, frames)))
    if wrong := [row for row in rows if not row.ok]:
        row = wrong[0]
        raise ExportError(
            f"the exported graphs differ from PyTorch: {row.what} (batch {row.batch}): {row.output} is off by "
            f"{row.max_error:.2g} of {row.scale:.2g}"
            + (
                "; the policy chose other patches: if two were nearly equal, try other frames (--frames VIDEO)"
                if row.same_actions is False
                else ""
            )
        )
    return rows


def same_origins(spec: ModelSpec, found: NDArray[np.floating], expected: NDArray[np.floating]) -> bool:
    """Return whether a policy chose the same patches: equal cells, or points that differ by rounding only."""
    limit = SAME_ORIGIN if spec.choice == "point" else 0.0
    return bool(np.abs(found - expected).max() <= limit)


def largest_error(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest absolute difference; infinity if any value found is not finite."""
    return float(np.abs(found - expected).max()) if np.isfinite(found).all() else float("inf")


def _compare_graph(graph: str, session: Session, recorded: TorchSession, batch: int) -> Comparison:
    """Run a graph on the inputs recorded from PyTorch's graph in the loop, ``batch`` steps at once, and compare."""
    steps = recorded.recorded[-batch:]  # the last steps, whose states are not zero
    feeds = {name: np.concatenate([inputs[name] for inputs, _ in steps]) for name in steps[0][0]}
    found = session.run(feeds)
    worst = Comparison(graph, batch, "", -1.0, 0.0, None)
    same_actions = None
    for name in found:
        expected = np.concatenate([outputs[name] for _, outputs in steps])
        if name == "action":
            same_actions = bool(np.array_equal(found[name], expected))
            continue
        error, scale = largest_error(found[name], expected), float(np.abs(expected).max())
        if error / max(1.0, scale) > worst.max_error / max(1.0, worst.scale):
            worst = Comparison(graph, batch, name, error, scale, None)
    return Comparison(graph, batch, worst.output, worst.max_error, worst.scale, same_actions)


def _run_joined(model: GlimpseModel, step: Session, frames: NDArray[np.uint8]) -> list[tuple[Any, Any]]:
    policy_state = np.zeros((1, model.spec.policy_state), np.float32)
    state = np.zeros((1, model.spec.classifier_state), np.float32)
    found = []
    for index in range(len(frames)):
        out = step.run({"frame": frames[index : index + 1], "policy_state": policy_state, "state": state})
        policy_state, state = out["policy_state_out"], out["state_out"]
        found.append((out["origin"], out["logits"]))
    return found

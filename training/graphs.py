"""The four graphs as modules with the contract's inputs and outputs, and as sessions that PyTorch runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.model.spec import GRAPHS, TensorSpec, contract
from training.models.base import GlimpseModel

TORCH_BATCH = 16
"""Frames of a clip per call of PyTorch; recorded frames are run one by one, as steps are."""


class GlancerGraph(nn.Module):
    """``frame`` to ``feature_map`` and ``glance``."""

    def __init__(self, model: GlimpseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`GlimpseModel.glance`."""
        return self.model.glance(frame)


class PolicyGraph(nn.Module):
    """``feature_map`` and ``policy_state`` to ``origin``, ``action`` and ``policy_state_out``."""

    def __init__(self, model: GlimpseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, feature_map: Tensor, policy_state: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`GlimpseModel.choose`."""
        return self.model.choose(feature_map, policy_state)


class FocuserGraph(nn.Module):
    """``frame`` and ``origin`` to ``focus``."""

    def __init__(self, model: GlimpseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`GlimpseModel.focus`."""
        return self.model.focus(frame, origin)


class ClassifierGraph(nn.Module):
    """``glance`` (if the classifier uses it), ``focus`` and ``state`` to ``logits`` and ``state_out``."""

    def __init__(self, model: GlimpseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *features_and_state: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`GlimpseModel.classify`."""
        *glance, focus, state = features_and_state
        return self.model.classify(glance[0] if glance else None, focus, state)


GRAPH_MODULES: dict[str, type[nn.Module]] = {
    "glancer": GlancerGraph,
    "policy": PolicyGraph,
    "focuser": FocuserGraph,
    "classifier": ClassifierGraph,
}


def example(tensor: TensorSpec, batch: int) -> Tensor:
    """Return zeros in the shape of an input."""
    shape = [batch if size == "N" else int(size) for size in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


class TorchSession:
    """One graph's module, run by PyTorch with the same contract as every other backend.

    Args:
        model: model, on any device; inputs and outputs are on the host.
        graph: name of the graph.
        record: whether to keep inputs and outputs in ``recorded``.
    """

    def __init__(self, model: GlimpseModel, graph: str, *, record: bool = False) -> None:
        self.inputs, self.outputs = contract(model.spec, graph)
        self._module = GRAPH_MODULES[graph](model).eval()
        self._device = model.mean.device
        self._record = record
        self.recorded: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def compile(self) -> None:
        """Compile the module with ``torch.compile``, at its first run."""
        self._module.compile()

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the module once."""
        given = (torch.from_numpy(np.ascontiguousarray(feeds[t.name])).to(self._device) for t in self.inputs)
        with torch.inference_mode():
            made = self._module(*given)
        made = made if isinstance(made, tuple) else (made,)
        outputs = {tensor.name: value.cpu().numpy() for tensor, value in zip(self.outputs, made, strict=True)}
        if self._record:
            self.recorded.append((dict(feeds), outputs))
        return outputs

    def close(self) -> None:
        """Drop the recorded tensors."""
        self.recorded.clear()


def torch_model(model: GlimpseModel, *, record: bool = False) -> tuple[LoadedModel, dict[str, TorchSession]]:
    """Wrap a PyTorch model for the glimpse loop; also return its sessions, which can record their tensors."""
    sessions = {graph: TorchSession(model, graph, record=record) for graph in GRAPHS}
    batch = 1 if record else TORCH_BATCH
    made = LoadedModel.of(model.spec, sessions, "torch", "fp32", batch)
    return made, sessions


def count_gflops(model: GlimpseModel, graph: str) -> float:
    """Return one frame's multiply-adds in units of 1e9, counted as in the paper (convolutions, matrix products)."""
    inputs, _ = contract(model.spec, graph)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        GRAPH_MODULES[graph](model)(*(example(tensor, 1).to(model.mean.device) for tensor in inputs))
    # PyTorch counts a multiply-add as two operations.
    return int(counter.get_total_flops()) / 2 / 1e9

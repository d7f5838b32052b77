"""The four graphs as modules with the contract's inputs and outputs, and their way into ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adafocus_edge.errors import ExportError
from adafocus_edge.types import TensorSpec, contract
from training.model import AdaFocus

OPSET = 18
"""What the exporter speaks by itself. TensorRT-RTX 1.7 parses it (tested); nothing here needs a newer one."""
EXAMPLE_BATCH = 2
"""Anything but 1, which an exporter would take for a constant."""


class GlancerGraph(nn.Module):
    """``frame`` to ``feature_map`` and ``glance``."""

    def __init__(self, model: AdaFocus) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`AdaFocus.glance`."""
        return self.model.glance(frame)


class PolicyGraph(nn.Module):
    """``feature_map`` and ``policy_state`` to ``origin``, ``action`` and ``policy_state_out``."""

    def __init__(self, model: AdaFocus) -> None:
        super().__init__()
        self.model = model

    def forward(self, feature_map: Tensor, policy_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`AdaFocus.choose`."""
        return self.model.choose(feature_map, policy_state)


class FocuserGraph(nn.Module):
    """``frame`` and ``origin`` to ``focus``."""

    def __init__(self, model: AdaFocus) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, origin: Tensor) -> Tensor:
        """See :meth:`AdaFocus.focus`."""
        return self.model.focus(frame, origin)


class ClassifierGraph(nn.Module):
    """``glance`` (unless the model does without), ``focus`` and ``state`` to ``logits`` and ``state_out``."""

    def __init__(self, model: AdaFocus) -> None:
        super().__init__()
        self.model = model

    def forward(self, *features_and_state: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`AdaFocus.classify`."""
        *glance, focus, state = features_and_state
        return self.model.classify(glance[0] if glance else None, focus, state)


GRAPH_MODULES: dict[str, type[nn.Module]] = {
    "glancer": GlancerGraph,
    "policy": PolicyGraph,
    "focuser": FocuserGraph,
    "classifier": ClassifierGraph,
}


def example(tensor: TensorSpec, batch: int) -> Tensor:
    """Return zeros that fit an input."""
    shape = [batch if size == "N" else int(size) for size in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def export_graph(model: AdaFocus, graph: str, path: Path) -> None:
    """Write one graph as ONNX: weights inline, dynamic batch, batch norms folded, checked by the ONNX checker.

    Raises ``ExportError`` if the exporter gives up, or uses another opset or control flow. That names, types and shapes
    are the contract's is checked when the graph is loaded (``load_model``).
    """
    inputs, outputs = contract(model.spec, graph)
    batch = torch.export.Dim("N", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        # Each input's batch is named N, and they are the same N: the exporter warns that it keeps only one.
        warnings.filterwarnings("ignore", message=".*will not be used, since it shares the same shape.*")
        program = torch.onnx.export(
            GRAPH_MODULES[graph](model).eval(),
            tuple(example(tensor, EXAMPLE_BATCH) for tensor in inputs),
            dynamo=True,
            opset_version=OPSET,
            # A module that takes *args has one parameter, a tuple.
            dynamic_shapes=(shapes,) if graph == "classifier" else shapes,
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{graph}: the ONNX exporter returned nothing")
    proto = program.model_proto
    proto.graph.name = graph
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces of the machine that exported it
    onnx.checker.check_model(proto, full_check=True)
    if any(node.op_type in ("Loop", "Scan", "If", "GRU") for node in proto.graph.node):
        raise ExportError(f"{graph}: control flow got into the graph")
    if [opset.version for opset in proto.opset_import if not opset.domain] != [OPSET]:
        raise ExportError(f"{graph}: exported with another opset than {OPSET}")
    onnx.save_model(proto, path)


def count_gflops(model: AdaFocus, graph: str) -> float:
    """Count one frame's multiply-adds in units of 1e9, as the paper does (convolutions and matrix products)."""
    inputs, _ = contract(model.spec, graph)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        GRAPH_MODULES[graph](model)(*(example(tensor, 1) for tensor in inputs))
    # PyTorch counts a multiply-add as two operations.
    return int(counter.get_total_flops()) / 2 / 1e9

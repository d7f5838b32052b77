"""Write one graph as ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch

from adafocus_edge.errors import ExportError
from adafocus_edge.model.spec import contract
from training.graphs import GRAPH_MODULES, example
from training.models.base import GlimpseModel

OPSET = 18
"""The exporter's native opset. TensorRT-RTX 1.7 parses it (tested); no operator here needs a newer one."""
EXAMPLE_BATCH = 2
"""Any number but 1, which the exporter would treat as a constant."""


def export_graph(model: GlimpseModel, graph: str, path: Path) -> None:
    """Write one graph as ONNX: weights inline, dynamic batch, batch norms folded, checked by the ONNX checker.

    Raises ``ExportError`` if the exporter fails, or uses another opset or control flow. Names, types and shapes are
    checked against the contract when the graph is loaded (``load_model``).
    """
    inputs, outputs = contract(model.spec, graph)
    batch = torch.export.Dim("N", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        # All inputs share the batch dimension N; the exporter warns that it keeps only one of the equal names.
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
        raise ExportError(f"{graph}: the ONNX exporter returned no program")
    proto = program.model_proto
    proto.graph.name = graph
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces from the exporting machine
    onnx.checker.check_model(proto, full_check=True)
    if any(node.op_type in ("Loop", "Scan", "If", "GRU") for node in proto.graph.node):
        raise ExportError(f"{graph}: the exported graph has control flow (Loop, Scan, If or GRU)")
    if [opset.version for opset in proto.opset_import if not opset.domain] != [OPSET]:
        raise ExportError(f"{graph}: exported with an opset other than {OPSET}")
    onnx.save_model(proto, path)

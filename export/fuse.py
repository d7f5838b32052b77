"""Join the four graphs into one graph of the whole step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import compose, helper

from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, ModelSpec, contract


def fuse(spec: ModelSpec, graphs: Mapping[str, Path], path: Path) -> None:
    """Join the four graphs of one variant into ``step.onnx``.

    Tensors of the contract keep their names, so that one graph's ``feature_map`` output is the next one's input, and
    both graphs with a ``frame`` input share it; names inside a graph get the graph's name as a prefix.

    Args:
        spec: the model's shapes and names.
        graphs: paths of the four graphs.
        path: path of the graph to write.
    """
    inputs, outputs = contract(spec, STEP_GRAPH)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    infos: dict[str, onnx.ValueInfoProto] = {}
    opsets: dict[str, int] = {}
    ir_version = 0
    for name in GRAPHS:
        model = onnx.load_model(graphs[name])
        ir_version = max(ir_version, model.ir_version)
        opsets |= {opset.domain: max(opset.version, opsets.get(opset.domain, 0)) for opset in model.opset_import}
        part = compose.add_prefix(model, f"{name}/", rename_inputs=False, rename_outputs=False).graph
        nodes += part.node
        weights += part.initializer
        infos |= {info.name: info for info in (*part.input, *part.output)}
    step = helper.make_graph(
        nodes,
        STEP_GRAPH,
        [infos[tensor.name] for tensor in inputs],
        [infos[tensor.name] for tensor in outputs],
        initializer=weights,
    )
    model = helper.make_model(
        step,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=ir_version,
        producer_name="adafocus-edge",
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)

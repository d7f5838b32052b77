"""Read and rewrite ONNX graphs: helpers for making variants."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with weights, which a report counts as layers."""
MOVES = ("Transpose", "Gather", "GatherND", "Reshape", "Slice")
"""Operators that rearrange the values of their first input and compute nothing."""


def load_graph(path: Path) -> ModelProto:
    """Read a float graph, with its weights as FP32, however they are stored, and the shapes of all its tensors."""
    model = onnx.load_model(path)
    weights = initializers(model)
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in weights]:
        stored = numpy_helper.to_array(weights[node.input[0]])
        add_initializer(model, node.output[0], stored.astype(helper.tensor_dtype_to_np_dtype(node.attribute[0].i)))
        model.graph.node.remove(node)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return tidy(model)


def tidy(model: ModelProto, *, check: bool = True) -> ModelProto:
    """Drop unused nodes and constants, sort the nodes, infer the shapes again, and check the result.

    Args:
        model: the graph.
        check: whether to check it; a graph whose weights hold no values would fail.
    """
    while True:
        used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
        dead = [node for node in model.graph.node if not used.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            model.graph.node.remove(node)
    for weight in [weight for weight in model.graph.initializer if weight.name not in used]:
        model.graph.initializer.remove(weight)
    _sort(model)
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model)
    if check:
        onnx.checker.check_model(model)
    return model


def _sort(model: ModelProto) -> None:
    """Sort the nodes so that each follows its inputs, moving as few as possible: layers keep their order."""
    nodes = list(model.graph.node)
    maker = {name: number for number, node in enumerate(nodes) for name in node.output}
    opened: set[int] = set()
    done: dict[int, None] = {}
    for root in range(len(nodes)):
        stack = [root]
        while stack:
            number = stack[-1]
            needed = [maker[name] for name in nodes[number].input if name in maker and maker[name] not in done]
            if not needed:
                done[stack.pop()] = None
            elif number in opened:
                raise ValueError(f"the graph has a cycle at node {nodes[number].name}")
            else:
                opened.add(number)
                stack += reversed(needed)
    copies = [_copied(nodes[number]) for number in done]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write a graph compactly: equal constants (zero points, mostly) only once, no inferred shapes."""
    model = copy_of(model)
    del model.graph.value_info[:]
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for weight in list(model.graph.initializer):
        key = weight.data_type, tuple(weight.dims), numpy_helper.to_array(weight).tobytes()
        if first.setdefault(key, weight.name) != weight.name:
            same[weight.name] = first[key]
            model.graph.initializer.remove(weight)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def _copied(node: NodeProto) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    return made


def copy_of(model: ModelProto) -> ModelProto:
    """Return a copy, to be rewritten in place."""
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def initializers(model: ModelProto) -> dict[str, TensorProto]:
    """Return a graph's constants by name."""
    return {weight.name: weight for weight in model.graph.initializer}


def add_initializer(model: ModelProto, name: str, values: NDArray[np.generic]) -> None:
    """Add a constant."""
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def constant(model: ModelProto, name: str) -> NDArray[Any] | None:
    """Return a constant's values, or None if the tensor is not a constant."""
    weight = initializers(model).get(name)
    return None if weight is None else numpy_helper.to_array(weight)


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """Return the node that computes each tensor, by tensor name."""
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each tensor, by tensor name."""
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def replace_nodes(model: ModelProto, old: Iterable[NodeProto], new: Iterable[NodeProto]) -> None:
    """Remove nodes and append others; :func:`tidy` sorts them."""
    for node in old:
        model.graph.node.remove(node)
    model.graph.node.extend(new)


def layers(model: ModelProto) -> list[str]:
    """Return the names of the nodes with weights, in execution order."""
    weights = initializers(model)
    return [n.name for n in model.graph.node if n.op_type in LAYERS and any(name in weights for name in n.input[1:2])]


def multiplications(model: ModelProto) -> dict[str, int]:
    """Return how often each layer multiplies for one row of a batch, by its name.

    Args:
        model: from :func:`load_graph`, which knows the shapes of its tensors.
    """
    weights, made = initializers(model), float_tensors(model)
    found = {}
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in weights:
            places = 1
            if node.op_type == "Conv":
                shape = made[node.output[0]].type.tensor_type.shape
                places = math.prod(side.dim_value for side in shape.dim[2:])
            found[node.name] = places * math.prod(weights[node.input[1]].dims)
    return found


def float_tensors(model: ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return every FP32 tensor that is a graph input or computed by a node, by name."""
    infos = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {info.name: info for info in infos if info.type.tensor_type.elem_type == TensorProto.FLOAT}

"""FP16 graphs: half precision inside, FP32 at the inputs and outputs and wherever half precision is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calibration.graphs import (
    LAYERS,
    MOVES,
    consumers,
    copy_of,
    float_tensors,
    initializers,
    load_graph,
    producers,
    save_graph,
    tidy,
)

KEPT_OPERATORS = [
    # Sums over many values and quotients of sums.
    "ReduceMean", "ReduceSum", "GlobalAveragePool", "Softmax", "LogSoftmax",
    # Overflow, or lose all precision near zero.
    "Exp", "Log",
    # A patch's position: `floor` of a product in FP32, and the table of positions.
    "ArgMax", "Floor", "GatherND", "Range",
]  # fmt: skip


NEAR_OVERFLOW = 3e4
"""The largest half-precision number is 65504; a layer with recorded values above this limit stays FP32."""


def to_half(model: ModelProto, ranges: Mapping[str, tuple[float, float]] | None = None) -> ModelProto:
    """Return a graph that computes in half precision and keeps its contract.

    The types are in the graph, as a strongly typed TensorRT network requires; casts are ordinary nodes. Everything that
    decides on the patch stays FP32: the policy's last layer with its argmax, and the arithmetic of a patch's position;
    so do logarithms of probabilities.

    Args:
        model: float graph, from :func:`calibration.graphs.load_graph`.
        ranges: recorded smallest and largest value of its tensors, by name.
    """
    large = {name for name, (low, high) in (ranges or {}).items() if max(-low, high) > NEAR_OVERFLOW}
    kept = _deciding(model) | {n.name for n in model.graph.node if large.intersection((*n.input, *n.output))}
    if any(node.op_type == "Log" for node in model.graph.node):  # averages probabilities: halve the layers only
        kept |= {node.name for node in model.graph.node if node.op_type not in LAYERS}
    kept |= {node.name for node in model.graph.node if node.op_type in KEPT_OPERATORS}
    readers = consumers(model)
    for node in model.graph.node:  # pixels read by FP32 nodes only are cast straight to FP32
        if node.op_type == "Cast" and {reader.name for reader in readers.get(node.output[0], ())} <= kept:
            kept.add(node.name)
    return tidy(_Halving(copy_of(model), kept).run())


def halve(source: Path, target: Path) -> None:
    """Write a float graph's half-precision twin, made without data, so no layer is kept FP32 for fear of overflow.

    Args:
        source: float graph, its weights stored in any precision.
        target: file to write.
    """
    save_graph(to_half(load_graph(source)), target)


class _Halving:
    """Gives every float tensor the type of the node that computes it, with one cast where readers need another type.

    Args:
        model: float graph with the types of all its tensors; rewritten in place.
        kept: names of the nodes that stay FP32.
    """

    def __init__(self, model: ModelProto, kept: set[str]) -> None:
        self.model, self.kept = model, kept
        self.weights = {name: one for name, one in initializers(model).items() if one.data_type == TensorProto.FLOAT}
        self.single = {one.name for one in model.graph.input}  # FP32 tensors; all other float tensors become FP16
        self.floats = set(float_tensors(model)) | set(self.weights)
        self.casts: dict[tuple[str, int], str] = {}
        self.added: list[NodeProto] = []

    def run(self) -> ModelProto:
        """Rewrite all nodes and return the graph; its inputs and outputs keep names and types."""
        graph = self.model.graph
        for node in graph.node:
            if node.name in self.kept:
                self.single.update(node.output)
        self._free_outputs()
        for node in list(graph.node):
            wanted = TensorProto.FLOAT if node.name in self.kept else TensorProto.FLOAT16
            for place, name in enumerate(node.input):
                if name in self.floats and node.op_type != "Shape":
                    node.input[place] = self._as(name, wanted)
            if wanted == TensorProto.FLOAT16:
                _retype(node)
        graph.node.extend(self.added)
        return self.model

    def _free_outputs(self) -> None:
        """Rename each FP32 output that a half-precision node computes, and cast it back under its own name."""
        made = producers(self.model)
        for output in self.model.graph.output:
            name = output.name
            if name not in self.floats or name in self.single:
                continue
            inner = f"{name}_half"
            made[name].output[list(made[name].output).index(name)] = inner
            self.added.append(_cast(inner, name, TensorProto.FLOAT))
            self.casts |= {(name, TensorProto.FLOAT16): inner, (name, TensorProto.FLOAT): name}

    def _as(self, name: str, kind: int) -> str:
        """Return the name of a tensor in a type: its own, that of its cast, or of a constant's half-precision twin."""
        single = name in self.weights or name in self.single
        if (name, kind) not in self.casts and single == (kind == TensorProto.FLOAT):
            return name
        if (name, kind) not in self.casts:
            other = f"{name}_{'single' if kind == TensorProto.FLOAT else 'half'}"
            if name in self.weights:
                values = numpy_helper.to_array(self.weights[name])
                self.model.graph.initializer.append(numpy_helper.from_array(_halved(values), other))
            else:
                self.added.append(_cast(name, other, kind))
            self.casts[name, kind] = other
        return self.casts[name, kind]


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind)


def _halved(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to half precision; finite values stay finite, and nonzero values stay nonzero."""
    limits = np.finfo(np.float16)
    made = np.where(np.isinf(values), values, np.clip(values, limits.min, limits.max)).astype(np.float16)
    lost = (made == 0) & (values != 0)
    return np.asarray(np.where(lost, np.copysign(limits.smallest_subnormal, values), made), np.float16)


def _retype(node: NodeProto) -> None:
    """Change FP32 in a node's attributes to FP16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(_halved(numpy_helper.to_array(attribute.t))))


def _to(cast: NodeProto) -> int:
    return int(cast.attribute[0].i)


def _deciding(model: ModelProto) -> set[str]:
    """Return the names of the FP32 nodes that an index is computed by, back to and including the nearest layer."""
    made = producers(model)
    found: set[str] = set()
    waiting = [
        node for node in model.graph.node if node.op_type == "ArgMax" or (node.op_type == "Cast" and _is_index(node))
    ]
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found.add(node.name)
        if node.op_type not in LAYERS and node.op_type not in MOVES:
            waiting.extend(made[name] for name in node.input if name in made)
    return found


def _is_index(cast: NodeProto) -> bool:
    return _to(cast) in (TensorProto.INT64, TensorProto.INT32)

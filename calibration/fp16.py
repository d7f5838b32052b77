"""FP16 graphs: half precision inside, FP32 at the inputs and outputs and wherever half precision would go wrong."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from calibration.graphs import LAYERS, MOVES, copy_of, float_tensors, initializers, producers, tidy
from calibration.ranges import Range

KEPT_OPERATORS = [
    # Sums over many values and quotients of sums.
    "ReduceMean", "ReduceSum", "GlobalAveragePool", "Softmax", "LogSoftmax",
    # Overflow or lose everything near zero.
    "Exp", "Log",
    # Where a patch lies: `floor` of a product in FP32, and the table of places.
    "ArgMax", "Floor", "GatherND", "Range",
]  # fmt: skip


NEAR_OVERFLOW = 3e4
"""Half precision ends at 65504; a layer that was seen to come this near stays FP32."""


def to_half(model: ModelProto, ranges: Mapping[str, Range] | None = None) -> ModelProto:
    """Return a graph that computes in half precision and keeps its contract.

    Types stand in the graph, as a strongly typed TensorRT network wants them; casts are ordinary nodes. What decides
    which patch is taken stays FP32 from end to end: the policy's last layer with its choice, and the arithmetic of a
    patch's place; so do logarithms of probabilities.

    Args:
        model: float graph, from :func:`calibration.graphs.load_graph`.
        ranges: of its tensors, as recorded.
    """
    large = {name for name, (low, high) in (ranges or {}).items() if max(-low, high) > NEAR_OVERFLOW}
    kept = _deciding(model) | {n.name for n in model.graph.node if large.intersection((*n.input, *n.output))}
    if any(node.op_type == "Log" for node in model.graph.node):  # probabilities, averaged: layers only are halved
        kept |= {node.name for node in model.graph.node if node.op_type not in LAYERS}
    made = convert_float_to_float16(
        copy_of(model),
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=KEPT_OPERATORS,
        node_block_list=sorted(kept),
    )
    return tidy(_without_detours(tidy(made)))


def _without_detours(model: ModelProto) -> ModelProto:
    """Take out every way of an FP32 tensor through FP16 and back: it would lose what the detour's ends keep."""
    made = producers(model)
    singles = set(float_tensors(model)) | {
        name for name, weight in initializers(model).items() if weight.data_type == 1
    }
    outputs = {output.name for output in model.graph.output}
    renamed: dict[str, str] = {}
    for back in [node for node in model.graph.node if node.op_type == "Cast" and _to(node) == TensorProto.FLOAT]:
        there = made.get(back.input[0])
        if there is None or there.op_type != "Cast" or _to(there) != TensorProto.FLOAT16:
            continue
        source = renamed.get(there.input[0], there.input[0])
        if source not in singles:
            continue
        name = back.output[0]
        model.graph.node.remove(back)
        if name in outputs:  # an output keeps its name, so its source takes it
            renamed[source] = name
            made_by = made[source]
            made_by.output[list(made_by.output).index(source)] = name
            source, name = name, source
        for node in model.graph.node:
            for place, read in enumerate(node.input):
                if read == name:
                    node.input[place] = source
    return model


def _to(cast: NodeProto) -> int:
    return int(cast.attribute[0].i)


def _deciding(model: ModelProto) -> set[str]:
    """Return the nodes behind an index, up to and with the nearest layer, as far as they compute in FP32."""
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

"""FP16 graphs: half precision inside, FP32 at the inputs and outputs and wherever half precision would go wrong."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from calibration.graphs import LAYERS, MOVES, copy_of, producers, tidy

KEPT_OPERATORS = [
    # Sums over many values and quotients of sums.
    "ReduceMean", "ReduceSum", "GlobalAveragePool", "Softmax", "LogSoftmax",
    # Overflow or lose everything near zero.
    "Exp", "Log",
    # Where a patch lies: `floor` of a product in FP32, and the table of places.
    "ArgMax", "Floor", "GatherND", "Range",
]  # fmt: skip


def to_half(model: ModelProto) -> ModelProto:
    """Return a graph that computes in half precision and keeps its contract.

    Types stand in the graph, as a strongly typed TensorRT network wants them; casts are ordinary nodes. What decides
    which patch is taken stays FP32: the policy's last layer with its choice, and the arithmetic of a patch's place.

    Args:
        model: float graph, from :func:`calibration.graphs.load_graph`.
    """
    made = convert_float_to_float16(
        copy_of(model),
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=KEPT_OPERATORS,
        node_block_list=sorted(_deciding(model)),
    )
    return tidy(made)


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
    return cast.attribute[0].i in (TensorProto.INT64, TensorProto.INT32)

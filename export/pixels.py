"""The graph that makes model frames of decoded ones: `python -m export.pixels adafocus_edge/pixels.onnx`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18


def pixels_graph() -> onnx.ModelProto:
    """Return the graph; what its inputs are is told in :mod:`adafocus_edge.pixels`.

    Resize, crop, colour conversion and the luminances of motion are all linear, so three matrix products do them for a
    source of any size and layout; then values are rounded half up and clipped.
    """
    nodes = [
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "one"], ["planes_4d"]),
        helper.make_node("MatMul", ["rows", "planes_4d"], ["squeezed"]),  # [N, 3, S, B]
        helper.make_node("MatMul", ["squeezed", "columns"], ["channels"]),  # [N, 3, S, S]
        helper.make_node("Transpose", ["channels"], ["pixels"], perm=[0, 2, 3, 1]),
        helper.make_node("Unsqueeze", ["colour", "one"], ["colour_4d"]),
        helper.make_node("MatMul", ["pixels", "colour_4d"], ["coloured"]),
        helper.make_node("ReduceSum", ["coloured", "zero"], ["summed"], keepdims=1),
        helper.make_node("Add", ["summed", "offset"], ["values"]),  # offset holds the half that rounds up
        helper.make_node("Floor", ["values"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "black", "white"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["frame"], to=TensorProto.UINT8),
    ]
    constants: dict[str, NDArray[Any]] = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "black": np.array(0, np.float32),
        "white": np.array(255, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "pixels",
        [
            helper.make_tensor_value_info("planes", TensorProto.UINT8, ["N", "A", "B"]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, [3, "S", "A"]),
            helper.make_tensor_value_info("columns", TensorProto.FLOAT, [3, "B", "S"]),
            helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["N", 3, 3]),
            helper.make_tensor_value_info("offset", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "S", "S", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10, producer_name="adafocus-edge")
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save_model(pixels_graph(), Path(sys.argv[1]))

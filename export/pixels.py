"""Write the graph that turns decoded frames into model frames: `python -m export.pixels adafocus_edge/pixels.onnx`."""

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
    """Return the graph; :mod:`adafocus_edge.media.matrices` documents its inputs.

    It repeats the arithmetic of FFmpeg and Pillow on the CPU, including where they truncate and round, so that both
    paths give the same model frame: colour at full resolution, then a resize along rows and one along columns, each
    rounded to whole levels.
    """
    node = helper.make_node
    nodes = [
        node("Cast", ["luma"], ["luma_levels"], to=TensorProto.FLOAT),
        node("Sub", ["luma_levels", "black"], ["above_black"]),
        node("Mul", ["above_black", "luma_gain"], ["brightness"]),
        node("Floor", ["brightness"], ["grey"]),
        node("Unsqueeze", ["grey", "axis_1"], ["grey_4d"]),  # [N, 1, H, W]
        node("Cast", ["chroma"], ["chroma_levels"], to=TensorProto.FLOAT),
        node("Sub", ["chroma_levels", "neutral"], ["tints"]),
        node("Reshape", ["tints", "in_pairs"], ["pairs"]),  # [N, H / 2, W / 2, 2]
        node("Transpose", ["pairs"], ["u_and_v"], perm=[0, 3, 1, 2]),
        node("Unsqueeze", ["u_and_v", "axis_2"], ["u_and_v_5d"]),
        node("Mul", ["u_and_v_5d", "chroma_gain"], ["shares"]),  # [N, 2, 3, H / 2, W / 2]
        node("Floor", ["shares"], ["whole_shares"]),
        node("ReduceSum", ["whole_shares", "axis_1"], ["tint"], keepdims=0),
        node("Resize", ["tint", "", "doubled"], ["tint_of_pixels"], mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Add", ["grey_4d", "tint_of_pixels"], ["sums"]),
        node("Clip", ["sums", "lowest", "highest"], ["rgb"]),  # [N, 3, H, W]
        node("Unsqueeze", ["rgb", "axis_1"], ["rgb_5d"]),
        node("Mul", ["rgb_5d", "mix"], ["parts"]),  # [N, M, 3, H, W]
        node("ReduceSum", ["parts", "axis_2"], ["mixed"], keepdims=0),
        *_rounded("mixed", "channels"),
        node("MatMul", ["channels", "columns"], ["narrowed"]),  # [N, M, H, S]
        *_rounded("narrowed", "narrow"),
        node("MatMul", ["rows", "narrow"], ["shortened"]),  # [N, M, S, S]
        *_rounded("shortened", "small"),
        node("Clip", ["small", "lowest", "highest"], ["clipped"]),
        node("Transpose", ["clipped"], ["pixels"], perm=[2, 3, 0, 1]),
        node("Reshape", ["pixels", "three_channels"], ["pixels_3d"]),
        node("Unsqueeze", ["pixels_3d", "axis_0"], ["pixels_4d"]),
        node("Cast", ["pixels_4d"], ["frame"], to=TensorProto.UINT8),
    ]  # fmt: skip
    constants: dict[str, NDArray[Any]] = {
        "axis_0": np.array([0], np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "in_pairs": np.array([0, 0, -1, 2], np.int64),
        "three_channels": np.array([0, 0, 3], np.int64),
        "doubled": np.array([1, 1, 2, 2], np.float32),
        "neutral": np.array(128, np.float32),
        "half": np.array(0.5, np.float32),
        "lowest": np.array(0, np.float32),
        "highest": np.array(255, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "pixels",
        [
            helper.make_tensor_value_info("luma", TensorProto.UINT8, ["N", "H", "W"]),
            helper.make_tensor_value_info("chroma", TensorProto.UINT8, ["N", "P", "W"]),
            helper.make_tensor_value_info("black", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("luma_gain", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("chroma_gain", TensorProto.FLOAT, [2, 3, 1, 1]),
            helper.make_tensor_value_info("mix", TensorProto.FLOAT, ["M", 3, 1, 1]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["S", "H"]),
            helper.make_tensor_value_info("columns", TensorProto.FLOAT, ["W", "S"]),
        ],
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "S", "S", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10, producer_name="adafocus-edge")
    onnx.checker.check_model(model, full_check=True)
    return model


def _rounded(values: str, made: str) -> list[onnx.NodeProto]:
    """Return nodes that round values half up."""
    raised = f"{values}_and_half"
    return [helper.make_node("Add", [values, "half"], [raised]), helper.make_node("Floor", [raised], [made])]


if __name__ == "__main__":
    onnx.save_model(pixels_graph(), Path(sys.argv[1]))

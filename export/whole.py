"""Make the focuser process whole frames instead of patches, as a peer for `benchmark`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from adafocus_edge.errors import ExportError
from adafocus_edge.model.spec import ModelSpec


def on_whole_frames(spec: ModelSpec, focuser: Path, path: Path) -> None:
    """Rewrite a focuser's graph so that its patch is the whole frame, whatever the value of ``origin``.

    Its backbone ends in a pooling over all pixels, so it takes any size. The crop gathers pixels ``0 .. P - 1`` from a
    corner at ``floor(origin * (S - P))``; these become ``0 .. S - 1`` from a corner at 0.

    Args:
        spec: the model's shapes.
        focuser: path of the FP32 graph.
        path: path of the graph to write.

    Raises:
        ExportError: the graph was not made by `adafocus-edge export`.
    """
    model = onnx.load_model(focuser)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = [name for node in model.graph.node if "origin" in node.input for name in node.input if name in weights]
    offsets = [
        tensor.name
        for tensor in weights.values()
        if list(tensor.dims) == [spec.patch_size]
        and np.array_equal(numpy_helper.to_array(tensor), np.arange(spec.patch_size))
    ]
    if len(scales) != 1 or len(offsets) != 1:
        raise ExportError(f"{focuser}: its crop is not the one that `adafocus-edge export` writes: export it again")
    scale, offset = weights[scales[0]], weights[offsets[0]]
    scale.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(scale)), scale.name))
    kind = numpy_helper.to_array(offset).dtype
    offset.CopyFrom(numpy_helper.from_array(np.arange(spec.frame_size, dtype=kind), offset.name))
    del model.graph.value_info[:]  # these shapes are out of date
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)

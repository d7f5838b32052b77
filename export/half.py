"""Store weights in half precision: half the bundle's size, FP32 arithmetic."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adafocus_edge.errors import ExportError
from training.models.base import GlimpseModel

SMALLEST = 64
"""Weights with fewer elements stay FP32: a cast would cost more than it saves."""


def rounded(model: GlimpseModel) -> GlimpseModel:
    """Return a copy with batch norms folded into their convolutions and every weight rounded to half precision.

    Folding comes first, so that exactly the weights of the graphs are rounded. Raises ``ExportError`` if a weight is
    too large for half precision.
    """
    made = copy.deepcopy(model).eval()
    _fold(made)
    for name, parameter in made.named_parameters():
        half = parameter.detach().half()
        if not bool(torch.isfinite(half).all()):
            raise ExportError(f"{name}: has values too large for half precision: export without --half-weights")
        parameter.data = half.float()
    return made


def _fold(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it among its siblings, as torchvision's backbones order them."""
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
        else:
            _fold(child)
        before = name, child


def store_half(path: Path) -> None:
    """Rewrite a graph: store weights that are exact in half precision in it, and cast them when the graph is loaded."""
    model = onnx.load_model(path)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < SMALLEST or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(casts + nodes)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)

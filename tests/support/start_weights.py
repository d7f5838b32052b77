"""A trained MobileNetV2 as PyTorch weights: features to begin with, where no others can be downloaded.

``tests/benchmark/backbone.onnx`` is the glancer of an earlier default model, which five epochs of stage 0 made of
MobileNetV2's ImageNet weights (Apache-2.0). The present one saw ten times as many frames of pure motion, and has lost
the colours that the test of the policy needs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

FILE = Path(__file__).parents[1] / "benchmark" / "backbone.onnx"
PREFIX = "model.glancer.net."
BATCH_NORM_EPSILON = 1e-5


def start_backbone() -> dict[str, torch.Tensor]:
    """Return the weights under torchvision's names.

    Export folded each batch norm into the convolution before it: here it only adds what was left, the bias.
    """
    weights = {}
    for initializer in onnx.load(FILE).graph.initializer:
        if not initializer.name.startswith(f"{PREFIX}features."):
            continue
        value = torch.from_numpy(numpy_helper.to_array(initializer).astype(np.float32))
        name = initializer.name.removeprefix(PREFIX).removesuffix("_half")
        if name.endswith(".weight"):
            weights[name] = value
            continue
        layer, _, number = name.removesuffix(".bias").rpartition(".")
        norm = f"{layer}.{int(number) + 1}"
        weights[f"{norm}.bias"] = value
        weights[f"{norm}.weight"] = torch.ones_like(value)
        weights[f"{norm}.running_mean"] = torch.zeros_like(value)
        weights[f"{norm}.running_var"] = torch.full_like(value, 1 - BATCH_NORM_EPSILON)
    return weights


def write_start_backbone(path: Path) -> Path:
    """Write them to a file that ``glancer_weights`` and ``focuser_weights`` take."""
    torch.save(start_backbone(), path)
    return path

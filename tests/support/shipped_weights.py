"""The shipped model's networks as PyTorch weights: features to begin with, where no others can be downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from adafocus_edge.bundle.store import default_bundle

BATCH_NORM_EPSILON = 1e-5


def shipped_backbone(graph: str) -> dict[str, torch.Tensor]:
    """Return the glancer or the focuser of the default model, a MobileNetV2, under torchvision's names.

    Export folded each batch norm into the convolution before it: here it only adds what was left, the bias.
    """
    path = default_bundle() / "fp32" / f"{graph}.onnx"
    prefix, weights = f"model.{graph}.net.", {}
    for initializer in onnx.load(path).graph.initializer:
        if not initializer.name.startswith(f"{prefix}features."):
            continue
        value = torch.from_numpy(numpy_helper.to_array(initializer).astype(np.float32))
        name = initializer.name.removeprefix(prefix).removesuffix("_half")
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


def write_shipped_backbone(graph: str, path: Path) -> Path:
    """Write them to a file that ``glancer_weights`` and ``focuser_weights`` take."""
    torch.save(shipped_backbone(graph), path)
    return path

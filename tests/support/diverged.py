"""A bundle whose classifier returns NaN, as that of a checkpoint whose training diverged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from adafocus_edge.bundle.store import copy_bundle, read_bundle, sha256_of, update_bundle


def copy_diverged(source: Path, path: Path) -> Path:
    """Copy a bundle, with NaN in the bias of its FP32 classifier's last layer, and without other variants."""
    copy_bundle(source, path)
    bundle = read_bundle(path)
    file = bundle.graph_path("fp32", "classifier")
    model = onnx.load_model(file)
    (bias,) = (one for one in model.graph.initializer if list(one.dims) == [bundle.spec.classes])
    bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
    onnx.save_model(model, file)
    graphs = bundle.manifest.variants["fp32"]
    info = replace(graphs["classifier"], sha256=sha256_of(file), size_bytes=file.stat().st_size)
    graphs = {**graphs, "classifier": info}
    update_bundle(path, lambda manifest: replace(manifest, variants={"fp32": graphs}))
    return path

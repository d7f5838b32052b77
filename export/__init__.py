"""From a checkpoint to a bundle: four ONNX graphs, checked against PyTorch."""

import adafocus_edge  # noqa: F401 - before ONNX Runtime, for what it sets

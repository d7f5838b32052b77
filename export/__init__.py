"""Export a checkpoint to a bundle: four ONNX graphs, checked against PyTorch."""

import adafocus_edge  # noqa: F401 - sets what ONNX Runtime reads when it is imported

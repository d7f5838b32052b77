"""From a bundle to faster variants of it, FP16 and INT8, and exit thresholds; always with what they cost."""

import adafocus_edge  # noqa: F401 - before ONNX Runtime, for what it sets

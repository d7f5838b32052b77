"""Make FP16 and INT8 variants of a bundle and solve exit thresholds, and measure what each costs."""

import adafocus_edge  # noqa: F401 - sets what ONNX Runtime reads when it is imported

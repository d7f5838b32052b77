"""AdaFocus Edge: take an AdaFocus video model from a checkpoint to a device."""

import os

# ONNX Runtime 1.31 collects telemetry unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

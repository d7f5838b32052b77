"""AdaFocus Edge: take an AdaFocus video model from a checkpoint to a device."""

__version__ = "0.1.0"

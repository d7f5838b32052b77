"""An old path of documented names, kept for a release: import them from :mod:`adafocus_edge.backends.registry`."""

from adafocus_edge.backends.registry import load_model

__all__ = ["load_model"]

"""An old path of documented names, kept for a release: import them from :mod:`adafocus_edge.media.frames`."""

from adafocus_edge.media.frames import ModelFrame

__all__ = ["ModelFrame"]

"""An old path of documented names, kept for a release: import them from :mod:`adafocus_edge.media.sources`."""

from adafocus_edge.media.sources import Source

__all__ = ["Source"]

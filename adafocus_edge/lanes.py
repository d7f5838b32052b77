"""An old path of documented names, kept for a release: import them from :mod:`adafocus_edge.runtime.lanes`."""

from adafocus_edge.runtime.lanes import Lanes

__all__ = ["Lanes"]

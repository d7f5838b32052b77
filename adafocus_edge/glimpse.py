"""An old path of documented names, kept for a release: import them from :mod:`adafocus_edge.model.logits` and
:mod:`adafocus_edge.runtime.glimpse`.
"""

from adafocus_edge.model.logits import softmax
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip

__all__ = ["GlimpseStream", "see_clip", "softmax"]

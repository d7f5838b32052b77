"""What a live run's frames are shown with: the latest result, drawn on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adafocus_edge.runtime.annotate import Overlay, draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.live.messages import ProvisionalResult
    from adafocus_edge.model.spec import ModelSpec


def annotate_live(
    frame: NDArray[np.uint8], look: ProvisionalResult | None, spec: ModelSpec, note: str = "", lost: str = ""
) -> NDArray[np.uint8]:
    """Draw the latest look of a live source on a frame.

    Args:
        frame: RGB uint8 [H, W, 3].
        look: the latest, or None before the first: then nothing is drawn, and only the size is made to fit.
        spec: of the model.
        note: for the end of the smaller line, such as the time of day.
        lost: what became of the source since, and when: the look is faded.

    Returns:
        uint8 [h, w, 3], as :func:`draw` gives it.
    """
    if look is None:
        return draw(frame, None, spec)
    best = look.top[0]
    parts = [f"glimpse {look.step.step + 1}/{spec.segments}", f"{look.latency_ms:.0f} ms", note]
    detail = "   |   ".join(part for part in parts if part)
    headline = f"{best.label}  {best.confidence:.0%}" + (f", {lost}" if lost else "")
    return draw(frame, Overlay(look.step.patch, headline, detail, best.confidence, faded=bool(lost)), spec)

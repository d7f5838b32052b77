"""Drawing the latest result of a live source on its frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from adafocus_edge.runtime.annotate import Overlay, draw, in_square_pixels
from adafocus_edge.system.timestamps import iso

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.live.messages import Event, ProvisionalResult
    from adafocus_edge.model.spec import ModelSpec


def shown_time(wall_s: float) -> str:
    """Return a time, in seconds since 1970, as pictures show it: ``2023-11-14 22:13:20 UTC``."""
    return f"{iso(wall_s)[:19].replace('T', ' ')} UTC"


def event_picture(event: Event, spec: ModelSpec) -> Image.Image:
    """Return the picture of an event, in square pixels: its frame with the patch, the label and its confidence."""
    detail = f"{event.source}   |   {shown_time(event.wall_s)}"
    overlay = Overlay(event.patch, f"{event.label}  {event.peak:.0%}", detail, event.peak)
    drawn = Image.fromarray(np.asarray(draw(event.frame.to_rgb(), overlay, spec)))
    return in_square_pixels(drawn, event.frame.sample_aspect)


def annotate_live(
    frame: NDArray[np.uint8], latest: ProvisionalResult | None, spec: ModelSpec, note: str = "", lost: str = ""
) -> NDArray[np.uint8]:
    """Draw the latest provisional result of a live source on a frame.

    Args:
        frame: RGB uint8 [H, W, 3].
        latest: the result; None before the first: then only the size is adapted.
        spec: of the model.
        note: appended to the smaller line, such as the time of day.
        lost: what happened to the source since, and when; the result is then faded.

    Returns:
        uint8 [h, w, 3], as :func:`draw` returns it.
    """
    if latest is None:
        return draw(frame, None, spec)
    best = latest.top[0]
    parts = [f"glimpse {latest.step.step + 1}/{spec.segments}", f"{latest.latency_ms:.0f} ms", note]
    detail = "   |   ".join(part for part in parts if part)
    headline = f"{best.label}  {best.confidence:.0%}" + (f", {lost}" if lost else "")
    return draw(frame, Overlay(latest.step.patch, headline, detail, best.confidence, faded=bool(lost)), spec)

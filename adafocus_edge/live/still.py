"""One frame of a source, to see whether it works and what it shows."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from adafocus_edge.errors import SourceError
from adafocus_edge.live.capture import Capture
from adafocus_edge.live.messages import LiveFrame

if TYPE_CHECKING:
    from adafocus_edge.live.settings import CaptureOptions
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import ModelSpec

WITHIN_S = 15.0
"""A source must deliver a frame within this time."""
POLL_S = 0.05


def still_of(source: Source, spec: ModelSpec, options: CaptureOptions, within_s: float = WITHIN_S) -> LiveFrame:
    """Open a source, wait for its first frame, and close it.

    Args:
        source: to open; its masks are applied.
        spec: of the model.
        options: of the run; a source that cannot be opened is not retried.
        within_s: maximum time to wait, in seconds.

    Raises:
        AdaFocusError: why there is no frame, in one line.
    """
    frames: queue.Queue[LiveFrame] = queue.Queue()
    capture = Capture(
        source, spec, replace(options, retries=0, patient=False), threading.Condition(), on_frame=frames.put,
        is_ready=lambda: False,
    )  # fmt: skip
    capture.start()
    deadline = time.monotonic() + within_s
    try:
        while time.monotonic() < deadline:
            with suppress(queue.Empty):
                return frames.get(timeout=POLL_S)
            if capture.error is not None:
                raise capture.error
            if capture.state == "ended" and frames.empty():
                raise SourceError(f"{source.name}: has no frames")
    finally:
        capture.close(0.0)
    raise SourceError(f"{source.name}: no picture within {within_s:g} s")

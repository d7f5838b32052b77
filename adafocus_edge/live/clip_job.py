"""A file that is classified beside live sources; a thread of its own reads its frames."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from adafocus_edge.errors import AdaFocusError, BackendError, SourceError
from adafocus_edge.live.capture import CAPTURE_THREAD, POLL_S
from adafocus_edge.media.preprocess import sampled_frames

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import Glimpse
    from adafocus_edge.runtime.classifier import Classifier, Result, Step


class ClipJob:
    """A file that is classified beside the live sources: T frames, one lane, one result.

    Args:
        source: the file.
        classifier: the model and its options.
        arrived: is notified when a frame is ready, and at the end.
    """

    def __init__(self, source: Source, classifier: Classifier, arrived: threading.Condition) -> None:
        self.source = source
        self.result: Future[Result] = Future()
        self.started_s = time.monotonic()
        self.lane: int | None = None
        self.steps: list[Step] = []
        self.model_s = 0.0
        self.ready: tuple[int, float | None, NDArray[np.uint8]] | None = None
        self.duration_s: float | None = None
        self.cancelled = threading.Event()
        self._classifier, self._arrived = classifier, arrived
        self._thread = threading.Thread(target=self._read, name=f"{CAPTURE_THREAD} {source.name}", daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, float | None, NDArray[np.uint8]] | None:
        """Take the next frame: its number, time and pixels. Call it with ``arrived`` held."""
        taken, self.ready = self.ready, None
        if taken is not None:
            self._arrived.notify_all()
        return taken

    def add(self, index: int, time_s: float | None, glimpses: Mapping[int, Glimpse], model_s: float) -> None:
        """Add a step of the result. Logits that are not finite fail this clip, not the run.

        Args:
            index: number of the frame.
            time_s: when it is shown, or None.
            glimpses: of all lanes that took part in the step.
            model_s: time of the step in the model.
        """
        assert self.lane is not None
        self.model_s += model_s
        try:
            self.steps.append(self._classifier.step(len(self.steps), index, time_s, glimpses[self.lane]))
        except BackendError as error:
            self.fail(error)
            self.cancelled.set()

    def fail(self, error: AdaFocusError) -> None:
        """Make the result an error, unless there is one already."""
        if not self.result.done():
            with suppress(Exception):  # it was set meanwhile
                self.result.set_exception(error)

    def _read(self) -> None:
        try:
            clip = self.source.open_clip()
            self.duration_s = clip.duration_s
            for index, pixels in sampled_frames(clip, self._classifier.model.spec):
                with self._arrived:
                    while self.ready is not None and not self.cancelled.is_set():
                        self._arrived.wait(POLL_S)
                    if self.cancelled.is_set():
                        break
                    self.ready = (index, clip.time_s(index), pixels)
                    self._arrived.notify_all()
        except AdaFocusError as error:
            self.fail(error)
        except Exception as error:  # a file may cause any exception in a decoder
            self.fail(SourceError(f"{self.source.name}: cannot be read (unexpected {type(error).__name__})"))
        if self.cancelled.is_set():
            self.fail(SourceError(f"{self.source.name}: cancelled"))
        with self._arrived:
            self._arrived.notify_all()

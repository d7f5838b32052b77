"""Live sources: the newest frame of a camera or a stream address, glimpsed at a steady rate, one result per window."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from adafocus_edge.classify import Classifier, Result, Step
from adafocus_edge.errors import AdaFocusError, BackendError, SourceError
from adafocus_edge.glimpse import GlimpseStream
from adafocus_edge.preprocess import preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.sources import Source

OPEN_TIMEOUT_S = 10.0
"""A stream address must answer, and then deliver a frame, within this time."""
POLL_S = 0.1
"""How often a waiting reader looks whether it should stop."""


@dataclass(frozen=True)
class LiveFrame:
    """A captured frame.

    Attributes:
        index: its number since the source was opened, from 0.
        captured_s: when it arrived, by ``time.monotonic``.
        to_rgb: makes RGB uint8 [H, W, 3] of it; only glimpsed frames pay for that.
    """

    index: int
    captured_s: float
    to_rgb: Callable[[], NDArray[np.uint8]]


class LiveReader:
    """Reads a live source in a thread and keeps its newest frame only, so that a slow model never falls behind.

    Attributes:
        dropped: frames that were never taken.
    """

    def __init__(self, source: Source) -> None:
        self.dropped = 0
        self._source = source
        self._newest: LiveFrame | None = None
        self._ended = False
        self._error: AdaFocusError | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"capture {source.name}", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> LiveFrame | None:
        """Take the newest frame, waiting for it if need be; None when the source has ended.

        Raises ``SourceError`` if the source failed, or if nothing came in time.
        """
        with self._changed:
            arrived = self._changed.wait_for(lambda: self._newest is not None or self._ended, timeout_s)
            frame, self._newest = self._newest, None
            if frame is None and self._error is not None:
                raise self._error
            if frame is None and not arrived:
                raise SourceError(f"{self._source.name}: no frame for {timeout_s:.0f} s")
            return frame

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(OPEN_TIMEOUT_S)

    def _read(self) -> None:
        try:
            for index, to_rgb in enumerate(_capture(self._source, self._stop)):
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest = LiveFrame(index, time.monotonic(), to_rgb)
                    self._changed.notify_all()
        except AdaFocusError as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def windows(
    source: Source, classifier: Classifier, glimpse_fps: float, duration_s: float | None, stop: threading.Event
) -> Iterator[Result]:
    """Classify a live source window by window: T glimpses at a steady rate give one result.

    Where the classifier exits early, the result comes as soon as it is sure; the rest of the window is not looked at.

    Args:
        source: a live source.
        classifier: the model and its choices.
        glimpse_fps: glimpses per second.
        duration_s: how long to run, or None for no end.
        stop: set from elsewhere to end the run; the window under way still gives a result.
    """
    with closing(LiveReader(source)) as reader:
        segments = classifier.model.spec.segments
        size = classifier.model.spec.frame_size
        stream = GlimpseStream(classifier.model)
        steps: list[Step] = []
        model_s = 0.0
        sure = False
        first = reader.take(OPEN_TIMEOUT_S)
        begun = first.captured_s if first else 0.0
        frame, due, window_start_s, skipped = first, begun, 0.0, 0
        last_captured_s = begun

        def close_window(captured_s: float) -> Result:
            latency_ms = (time.monotonic() - captured_s) * 1e3
            end_s = captured_s - begun
            return classifier.result(source.name, window_start_s, end_s, steps, sure, latency_ms, model_s * 1e3)

        while frame is not None and not stop.is_set():
            if not sure:
                pixels = preprocess(Image.fromarray(frame.to_rgb()), size)
                before = time.perf_counter()
                glimpse = stream.see(pixels[None])
                model_s += time.perf_counter() - before
                steps.append(classifier.step(len(steps), frame.index, frame.captured_s - begun, glimpse))
                sure = classifier.is_sure(steps[-1])
                if sure or len(steps) == segments:
                    yield close_window(frame.captured_s)
            else:
                skipped += 1
            if len(steps) + skipped == segments:
                stream.reset()
                steps, model_s, sure, skipped = [], 0.0, False, 0
            due += 1 / glimpse_fps
            now = time.monotonic()
            due = max(due, now)  # the model is slower than the rate: go on from here instead of catching up
            last_captured_s = frame.captured_s
            if duration_s is not None and due - begun > duration_s:
                stop.wait(max(0.0, begun + duration_s - now))
                break
            if stop.wait(due - now):
                break
            frame = reader.take(OPEN_TIMEOUT_S)
            if frame is not None and not steps:
                window_start_s = frame.captured_s - begun
        if steps and not sure:
            yield close_window(last_captured_s)


def _capture(source: Source, stop: threading.Event) -> Iterator[Callable[[], NDArray[np.uint8]]]:
    if "://" in source.address:
        return _capture_address(source, stop)
    return _capture_camera(source, stop)


def _capture_camera(source: Source, stop: threading.Event) -> Iterator[Callable[[], NDArray[np.uint8]]]:
    try:
        import cv2
    except ImportError as error:
        raise BackendError(
            f"cameras need OpenCV, which cannot be loaded here ({error}): pip install opencv-python-headless"
        ) from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    address: int | str = int(source.address) if source.address.isdigit() else source.address
    camera = cv2.VideoCapture(address)
    try:
        if not camera.isOpened():
            raise SourceError(f"{source.name}: cannot be opened: no such camera, in use, or no permission")
        while not stop.is_set():
            there, frame = camera.read()
            if not there:
                raise SourceError(f"{source.name}: the camera gives no more frames")
            yield _from_bgr(frame)
    finally:
        camera.release()


def _from_bgr(frame: Any) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.ascontiguousarray(frame[:, :, ::-1])


def _capture_address(source: Source, stop: threading.Event) -> Iterator[Callable[[], NDArray[np.uint8]]]:
    import av

    from adafocus_edge.video import OPEN_OPTIONS, upright

    options = {"rtsp_transport": "tcp", "fflags": "nobuffer"} if source.address.startswith("rtsp") else {}
    try:
        with av.open(source.address, options=options, timeout=OPEN_TIMEOUT_S, **OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise SourceError(f"{source.name}: no video in this stream")
            for frame in container.decode(video=0):
                if stop.is_set():
                    return
                yield lambda frame=frame: upright(frame)  # type: ignore[misc]
    except av.error.FFmpegError as error:
        raise SourceError(f"{source.name}: cannot be read ({error.strerror or type(error).__name__})") from None

"""Live sources: the newest frame of a camera or a stream address, glimpsed at a steady rate, one result per window."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from adafocus_edge.classify import Classifier, Result, Step
from adafocus_edge.errors import AdaFocusError, BackendError, HasAnEndError, SourceError
from adafocus_edge.glimpse import GlimpseStream
from adafocus_edge.preprocess import luminance, preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.sources import Source
    from adafocus_edge.types import ModelSpec

OPEN_TIMEOUT_S = 10.0
"""A stream address must answer within this time."""
SILENCE_S = 10.0
"""A source that gives no frame for this long has failed."""
HISTORY_SLACK_S = 0.2
"""A model that takes its time still finds the frames that came before the one it looks at."""
CAPTURE_THREAD = "capture"
"""What the names of threads begin with that read live sources."""
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

    Args:
        source: to read.
        history_s: how long frames are kept beside, for models that see motion.
    """

    def __init__(self, source: Source, history_s: float = 0.0) -> None:
        self._source = source
        self._history_s = history_s
        self._history: deque[LiveFrame] = deque()
        self._newest: LiveFrame | None = None
        self._ended = False
        self._error: AdaFocusError | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"{CAPTURE_THREAD} {source.name}", daemon=True)
        self._thread.start()

    def take(self, until_s: float | None, stop: threading.Event) -> LiveFrame | None:
        """Take the newest frame, waiting for it if need be.

        Args:
            until_s: give up at this ``time.monotonic``, or never if None.
            stop: give up when it is set.

        Returns:
            a frame, or None when the source has ended or it was given up. Raises ``SourceError`` if the source failed,
            or if no frame came for :data:`SILENCE_S`.
        """
        silent_s = time.monotonic() + SILENCE_S
        with self._changed:
            while True:
                now = time.monotonic()
                if stop.is_set() or (until_s is not None and now >= until_s):
                    return None
                if self._newest is not None or self._ended:
                    break
                if now >= silent_s:
                    raise SourceError(f"{self._source.name}: no frame for {SILENCE_S:.0f} s")
                self._changed.wait(POLL_S)
            frame, self._newest = self._newest, None
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def before(self, captured_s: float) -> LiveFrame:
        """Return the kept frame that was captured nearest to a time; at least one must have been taken before."""
        with self._changed:
            return min(self._history, key=lambda frame: abs(frame.captured_s - captured_s))

    def close(self) -> None:
        """Stop reading. A source that hangs is left to its daemon thread."""
        self._stop.set()
        self._thread.join(POLL_S * 5)

    def _read(self) -> None:
        index = -1
        try:
            for index, to_rgb in enumerate(_capture(self._source, self._stop)):
                with self._changed:
                    self._newest = LiveFrame(index, time.monotonic(), to_rgb)
                    self._history.append(self._newest)
                    # The newest of those that are too old stays: no kept frame is nearer to its time.
                    while len(self._history) > 1 and self._history[1].captured_s < (
                        self._newest.captured_s - self._history_s
                    ):
                        self._history.popleft()
                    self._changed.notify_all()
            if index < 0 and not self._stop.is_set():
                self._error = SourceError(f"{self._source.name}: no frame in this stream")
        except AdaFocusError as error:
            self._error = error
        except Exception as error:  # whatever a decoder may raise must not end the thread without a word
            self._error = SourceError(f"{self._source.name}: cannot be read on ({type(error).__name__}: {error})")
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def windows(
    source: Source, classifier: Classifier, glimpse_fps: float, duration_s: float | None, stop: threading.Event
) -> Iterator[Result]:
    """Classify a live source window by window: T glimpses at a steady rate give one result.

    Where the classifier exits early, the result comes as soon as it is sure; the rest of the window is not looked at.
    A window that is cut off, by ``stop``, by the end of the time or by a source that fails, gives a result of what was
    seen.

    Args:
        source: a live source.
        classifier: the model and its choices.
        glimpse_fps: glimpses per second.
        duration_s: how long to run, or None for no end.
        stop: set from elsewhere to end the run.

    Raises:
        SourceError: the source failed; the window under way was given before.
    """
    spec = classifier.model.spec
    segments = spec.segments
    stream = GlimpseStream(classifier.model)
    steps: list[Step] = []
    model_s = latency_s = begun = 0.0
    seen = 0  # glimpses of this window, those left out after an early exit too
    sure = False
    due: float | None = None

    def window() -> Result:
        start_s, end_s = steps[0].time_s, steps[-1].time_s
        return classifier.result(source.name, start_s, end_s, steps, sure, latency_s * 1e3, model_s * 1e3)

    with closing(LiveReader(source, _history_s(spec))) as reader:
        until_s = None if duration_s is None else time.monotonic() + duration_s
        try:
            while (frame := reader.take(until_s, stop)) is not None:
                if due is None:
                    begun = due = frame.captured_s
                if not sure:
                    pixels = _pixels(frame, reader, spec)
                    before = time.perf_counter()
                    glimpse = stream.see([pixels])
                    model_s += time.perf_counter() - before
                    latency_s = time.monotonic() - frame.captured_s
                    steps.append(classifier.step(len(steps), frame.index, frame.captured_s - begun, glimpse))
                    sure = classifier.is_sure(steps[-1])
                    if sure or len(steps) == segments:
                        yield window()
                seen += 1
                if seen == segments:
                    stream.reset()
                    steps, model_s, sure, seen = [], 0.0, False, 0
                # A model that is slower than the rate goes on from here instead of catching up.
                due = max(due + 1 / glimpse_fps, time.monotonic())
                if stop.wait((due if until_s is None else min(due, until_s)) - time.monotonic()):
                    break
        except AdaFocusError:
            if steps and not sure:
                yield window()
            raise
    if due is None and not stop.is_set():
        raise SourceError(f"{source.name}: no frame in {duration_s:.0f} s")
    if steps and not sure:
        yield window()


def _history_s(spec: ModelSpec) -> float:
    """How long frames must be kept for a model; not at all where it sees them one by one."""
    return 2 * spec.motion_gap_s + HISTORY_SLACK_S if spec.motion_gap_s else 0.0


def _pixels(frame: LiveFrame, reader: LiveReader, spec: ModelSpec) -> NDArray[np.uint8]:
    """Return a live frame as the model sees it, uint8 [S, S, 3]; motion is taken from frames that came before."""
    if not spec.motion_gap_s:
        return preprocess(Image.fromarray(frame.to_rgb()), spec.frame_size, spec.fit)
    earlier = (reader.before(frame.captured_s - gaps * spec.motion_gap_s) for gaps in (2, 1))
    parts = (luminance(part.to_rgb()) for part in (*earlier, frame))
    return np.stack([preprocess(Image.fromarray(part), spec.frame_size, spec.fit) for part in parts], axis=-1)


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
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what fails is told by us
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
            if container.duration and source.address.startswith("http"):
                raise HasAnEndError(f"{source.name}: has an end, so it is a file and not a live source")
            for frame in container.decode(video=0):
                if stop.is_set():
                    return
                yield lambda frame=frame: upright(frame)  # type: ignore[misc]
    except av.error.FFmpegError as error:
        raise SourceError(f"{source.name}: cannot be read ({error.strerror or type(error).__name__})") from None

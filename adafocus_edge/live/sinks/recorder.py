"""The recorder sink: writes annotated frames to MP4 files that survive a power cut."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.video.frame import PictureType

from adafocus_edge.live.listener import RETRY_S, Sink
from adafocus_edge.live.messages import LiveFrame, Message, Notice, ProvisionalResult
from adafocus_edge.live.overlay import annotate_live, shown_time
from adafocus_edge.live.pacing import FrameThinner
from adafocus_edge.live.recordings import Output, RecordingFolder, check_limits
from adafocus_edge.media.encoders import ENCODER_OPTIONS, FRAGMENTED, TICKS, video_encoder
from adafocus_edge.system.retention import FailureReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from av.container import OutputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from adafocus_edge.model.spec import ModelSpec

KEY_S = 2.0
"""Time between key frames. Each one flushes the frames before it to the disk, so a crash loses at most this much."""
MAX_BETWEEN_KEYS = 600
"""Maximum number of frames between key frames that MPEG-4 Part 2 allows. Key frames are requested by time."""
ENCODER_THREADS = 2
"""More threads would take cores from the model."""
GAP_S = 10.0
"""A source that delivered no frame for this long continues in a new file, not with a still picture in the old one."""
USUAL_GAPS = 5
"""A gap must also be this many times as long as the time between the last two frames: some sources are always slow."""
JUMP_BACK_S = 0.5
"""A clock that goes back by less counts as jitter: the frame is shown directly after the one before."""


@dataclass
class _File:
    output: Output
    container: OutputContainer
    stream: VideoStream
    shape: tuple[object, ...]  # of the frames before annotation, and of their pixels
    first_s: float
    last_tick: int = -1
    key_s: float = 0.0
    fragments: int = 0  # on the disk


@dataclass
class _Series:
    source: str
    file: _File | None = None
    last_s: float | None = None  # of the source's clock
    interval_s: float = 0.0
    given_s: float = field(default_factory=time.monotonic)
    retry_s: float = 0.0  # by time.monotonic

    @property
    def gap_s(self) -> float:
        return max(GAP_S, USUAL_GAPS * self.interval_s)


class Recorder(Sink):
    """Records annotated frames as MP4 files, a series per source: ``SOURCE-YYYYmmdd-HHMMSS.mp4``, UTC.

    A file can be played while it grows, and after a crash except for its last two seconds. A new one begins when the
    picture's size changes, after a gap, and when the source's clock goes back. A full disk or a missing folder is
    reported once, and retried every few seconds; frames until then are dropped and counted.

    Args:
        folder: to write into; created if necessary.
        spec: of the model, for the place of a patch in the frame.
        report: is called with one line for each new error.
        rotate_mb: size in megabytes after which a new file begins; exceeded by up to two seconds of video.
        rotate_s: length after which a new file begins, in seconds of the source.
        keep: number of files per source that are kept, the newest, including the one being written; None for all.
        fps: maximum number of frames per second to record; None for all.
        waiting: maximum number of frames in the queue, of all sources.

    Raises:
        UsageError: a number is out of range, or ``folder`` is a file.
        AdaFocusError: ``folder`` cannot be written.
    """

    wants = (LiveFrame, ProvisionalResult)
    local = True
    unit = "frames"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        report: Callable[[str], None],
        *,
        rotate_mb: float | None = None,
        rotate_s: float | None = 3600.0,
        keep: int | None = None,
        fps: float | None = None,
        waiting: int = 8,
    ) -> None:
        check_limits(rotate_mb=rotate_mb, rotate_s=rotate_s, fps=fps)
        self._recordings = RecordingFolder(folder, keep)
        self._spec = spec
        self._rotate_bytes = None if rotate_mb is None else rotate_mb * 1e6
        self._rotate_s = rotate_s
        self._thinner = FrameThinner(fps)
        self._encoder = video_encoder()
        self._series: dict[str, _Series] = {}
        self._latest: dict[str, ProvisionalResult] = {}
        self._lost_s: dict[str, float] = {}  # by time.monotonic
        self._outage = FailureReporter(str(folder), report)
        super().__init__(str(folder), waiting, report)

    def enqueue(self, message: Message) -> None:
        """Take a frame or a provisional result; see :meth:`Sink.enqueue`.

        Results take no room in the queue, since only the latest is drawn. Results of frames from before a loss or an
        end are not drawn on the frames after it: these may be another source's that has its name.
        """
        if isinstance(message, ProvisionalResult):
            if message.frame.captured_s > self._lost_s.get(message.source, 0.0):
                self._latest[message.source] = message
        elif isinstance(message, Notice) and message.kind in ("lost", "ended"):
            self._lost_s[message.source] = time.monotonic()
        elif isinstance(message, LiveFrame) and self._thinner.is_due(message):
            super().enqueue(message)

    def process(self, message: Message) -> None:
        """Annotate and write one frame."""
        if not isinstance(message, LiveFrame):
            return
        self.idle()
        now_s = time.monotonic()
        series = self._series.setdefault(message.source, _Series(message.source))
        series.given_s = now_s
        if now_s < series.retry_s:
            self.dropped += 1
            return
        rgb = message.to_rgb()
        picture = annotate_live(rgb, self._result_for(message), self._spec, shown_time(message.wall_s))
        try:
            self._write(series, message, (*rgb.shape, message.sample_aspect), picture)
        except (OSError, av.error.FFmpegError) as error:
            self.dropped += 1
            self._give_up(series, error)

    def _result_for(self, frame: LiveFrame) -> ProvisionalResult | None:
        """Return the latest result of a frame's source; None if it was lost, or has ended, between the two."""
        latest, lost_s = self._latest.get(frame.source), self._lost_s.get(frame.source, 0.0)
        if latest is None or (latest.frame.captured_s > lost_s) != (frame.captured_s > lost_s):
            return None
        return latest

    def idle(self) -> None:
        """Finish the files of sources that have delivered no frame for a while."""
        now_s = time.monotonic()
        for series in self._series.values():
            if now_s - series.given_s > series.gap_s:
                self._end_file(series)
                self._latest.pop(series.source, None)  # it holds a frame, and guests never return

    @property
    def trouble(self) -> str:
        """Why it drops frames."""
        return "cannot be written" if self._outage.lasts else super().trouble

    def finish(self) -> None:
        """Finish all files."""
        for series in self._series.values():
            self._end_file(series)

    def _write(self, series: _Series, frame: LiveFrame, shape: tuple[object, ...], picture: NDArray[np.uint8]) -> None:
        file = series.file
        step_s = 0.0 if series.last_s is None else frame.time_s - series.last_s
        if file is not None:
            rotate = self._rotate_s is not None and frame.time_s - file.first_s >= self._rotate_s
            if rotate or shape != file.shape or not -JUMP_BACK_S < step_s < series.gap_s:
                self._end_file(series)
        series.last_s, series.interval_s = frame.time_s, max(0.0, step_s)
        is_key = series.file is not None and frame.time_s - series.file.key_s >= KEY_S
        if is_key and series.file is not None:
            output = series.file.output
            if output.is_deleted() or (self._rotate_bytes is not None and output.size_bytes >= self._rotate_bytes):
                self._end_file(series)
        if series.file is None:
            series.file = self._new_file(series.source, frame, shape, picture)
            series.retry_s = 0.0
        file = series.file
        shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
        shown.time_base = Fraction(1, TICKS)
        shown.pts = file.last_tick = max(file.last_tick + 1, round((frame.time_s - file.first_s) * TICKS))
        if is_key:
            shown.pict_type = PictureType.I
            file.key_s = frame.time_s
        self._mux(file, shown)

    def _mux(self, file: _File, shown: av.VideoFrame | None) -> None:
        for packet in file.stream.encode(shown):
            ends_fragment = packet.is_keyframe and bool(packet.pts)
            file.container.mux(packet)
            if ends_fragment:
                file.fragments += 1
                self._outage.worked()

    def _new_file(self, source: str, frame: LiveFrame, shape: tuple[object, ...], picture: NDArray[np.uint8]) -> _File:
        output = self._recordings.create(source, frame.wall_s)
        try:
            container = av.open(output, "w", format="mp4", options=FRAGMENTED)
            options = ENCODER_OPTIONS[self._encoder]
            stream = cast("VideoStream", container.add_stream(self._encoder, options=options))
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.sample_aspect_ratio = frame.sample_aspect
            stream.codec_context.time_base = Fraction(1, TICKS)
            stream.codec_context.gop_size = MAX_BETWEEN_KEYS
            stream.codec_context.thread_count = ENCODER_THREADS
        except BaseException:
            self._recordings.abandon(output)
            raise
        return _File(output, container, stream, shape, frame.time_s, key_s=frame.time_s)

    def _end_file(self, series: _Series) -> None:
        file = series.file
        if file is None:
            return
        try:
            self._mux(file, None)
            file.container.close()
            file.output.close()
        except (OSError, av.error.FFmpegError) as error:
            self._give_up(series, error)
        series.file = None

    def _give_up(self, series: _Series, error: Exception) -> None:
        """Abandon a file that cannot be written, and delete it if no part of it can be played."""
        self.failed += 1
        series.retry_s = time.monotonic() + RETRY_S
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self._outage.failed(f"recordings cannot be written ({why}): retrying every {RETRY_S:g} s")
        file, series.file = series.file, None
        if file is None:
            return
        with suppress(OSError, av.error.FFmpegError):
            file.container.close()
        if file.fragments:
            file.output.close()
        else:
            self._recordings.abandon(file.output)

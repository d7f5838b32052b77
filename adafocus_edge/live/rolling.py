"""Video that is encoded all the time and kept for some seconds, so that a clip can begin before its event."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.video.frame import PictureType

from adafocus_edge.live.fragments import Fragment, FragmentBuffer, KeptFragments, without_index
from adafocus_edge.media.encoders import ENCODER_OPTIONS, FRAGMENTED, TICKS, video_encoder

if TYPE_CHECKING:
    import numpy as np
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

KEY_S = 1.0
"""Time between key frames: the step in which clips begin and end."""
MAX_BETWEEN_KEYS = 600
MAX_BYTES = 1 << 28
"""Of the fragments that are kept; at 960 pixels, they never take so much."""


class RollingVideo:
    """Encodes the frames of one source, and keeps the fragments of the last seconds.

    Args:
        width: of the video, in pixels, even.
        height: of the video, in pixels, even.
        keep_s: seconds to keep.
        sample_aspect: a pixel's width over its height.

    Attributes:
        kept: the last seconds.
    """

    def __init__(self, width: int, height: int, keep_s: float, sample_aspect: Fraction = Fraction(1)) -> None:
        self._buffer = FragmentBuffer()
        self._container = av.open(self._buffer, "w", format="mp4", options=FRAGMENTED)
        encoder = video_encoder()
        stream = cast("VideoStream", self._container.add_stream(encoder, options=ENCODER_OPTIONS[encoder]))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.sample_aspect_ratio = sample_aspect
        context.time_base = Fraction(1, TICKS)
        context.gop_size = MAX_BETWEEN_KEYS
        context.thread_count = 1
        self._stream = stream
        self._container.start_encoding()
        self.kept = KeptFragments(self._buffer.take(), keep_s, MAX_BYTES)
        self._first_s: float | None = None
        self._key_s = self._last_s = 0.0
        self._tick = -1

    def add(self, picture: NDArray[np.uint8], time_s: float) -> Fragment | None:
        """Encode a frame; return the fragment before it, if that is now whole.

        Args:
            picture: RGB uint8 [H, W, 3], of any size.
            time_s: of the frame, in the source's seconds, later than the one before.
        """
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        begins = self._first_s is None
        if self._first_s is None:
            self._first_s = self._key_s = time_s
        is_key = not begins and time_s - self._key_s >= KEY_S
        frame.time_base = Fraction(1, TICKS)
        frame.pts = self._tick = max(self._tick + 1, round((time_s - self._first_s) * TICKS))
        if is_key:
            frame.pict_type = PictureType.I
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        whole = None
        if is_key and (data := self._buffer.take()):
            whole = self._keep(data)
            self._key_s = time_s
        self._last_s = time_s
        return whole

    def _keep(self, data: bytes) -> Fragment:
        fragment = Fragment(data, self._key_s, self._last_s, self._last_s - self._key_s)
        self.kept.keep(fragment)
        return fragment

    def close(self) -> Fragment | None:
        """End the encoder; return the last fragment. No further frames may be added."""
        if self._first_s is None:
            self._container.close()
            return None
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        data = without_index(self._buffer.take())
        return self._keep(data) if data else None

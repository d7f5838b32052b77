"""Video that is encoded all the time and kept for some seconds, so that a clip can begin before its event."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.video.frame import PictureType

from adafocus_edge.media.encoders import ENCODER_OPTIONS, FRAGMENTED, TICKS, video_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

KEY_S = 1.0
"""Time between key frames: the step in which clips begin and end."""
MAX_BETWEEN_KEYS = 600


@dataclass(frozen=True)
class Fragment:
    """A piece of fragmented MP4 that begins with a key frame.

    Attributes:
        data: its boxes.
        first_s: time of its first frame, in the source's seconds.
        last_s: time of its last frame.
    """

    data: bytes
    first_s: float
    last_s: float


class _Buffer:
    """Takes what PyAV writes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Take data."""
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken, self._parts = b"".join(self._parts), []
        return taken


class RollingVideo:
    """Encodes the frames of one source, and keeps the fragments of the last seconds.

    Args:
        width: of the video, in pixels, even.
        height: of the video, in pixels, even.
        keep_s: seconds to keep.
        sample_aspect: a pixel's width over its height.

    Attributes:
        head: what a file begins with.
        keep_s: seconds to keep; may be changed.
        kept: the fragments of the last seconds, in order.
    """

    def __init__(self, width: int, height: int, keep_s: float, sample_aspect: Fraction = Fraction(1)) -> None:
        self.keep_s = keep_s
        self._buffer = _Buffer()
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
        self.head = self._buffer.take()
        self.kept: deque[Fragment] = deque()
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
        fragment = Fragment(data, self._key_s, self._last_s)
        self.kept.append(fragment)
        while len(self.kept) > 1 and fragment.last_s - self.kept[1].first_s >= self.keep_s:
            self.kept.popleft()
        return fragment

    def close(self) -> Fragment | None:
        """End the encoder; return the last fragment. No further frames may be added."""
        if self._first_s is None:
            self._container.close()
            return None
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        boxes = [box for box in _boxes(self._buffer.take()) if box[4:8] in (b"moof", b"mdat")]
        return self._keep(b"".join(boxes)) if boxes else None


def start_of(fragment: bytes) -> int:
    """Return when a fragment begins, in ticks of its track."""
    place, size = _decode_time(fragment)
    return int.from_bytes(fragment[place : place + size], "big")


def moved(fragment: bytes, ticks: int) -> bytes:
    """Return a fragment that begins this many ticks earlier, not before 0."""
    place, size = _decode_time(fragment)
    start = max(0, int.from_bytes(fragment[place : place + size], "big") - ticks)
    return fragment[:place] + start.to_bytes(size, "big") + fragment[place + size :]


def _decode_time(fragment: bytes) -> tuple[int, int]:
    """Return place and size of the field ``baseMediaDecodeTime`` (ISO/IEC 14496-12, 8.8.12)."""
    place = fragment.index(b"tfdt") + 4
    return place + 4, 8 if fragment[place] else 4


def _boxes(data: bytes) -> Iterator[bytes]:
    """Yield the boxes of an MP4, one after the other."""
    place = 0
    while place + 8 <= len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        yield data[place : place + size]
        place += max(8, size)

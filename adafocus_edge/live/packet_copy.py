"""Joins the packets of a source into fragments of MP4, as they arrive and without decoding them."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import av

from adafocus_edge.live.fragments import FragmentBuffer, without_index
from adafocus_edge.live.messages import CopiedVideo, LiveFragment, PacketOf
from adafocus_edge.media.packet_clock import COPY_TICKS, PacketClock
from adafocus_edge.media.parameter_sets import parameter_sets, picture_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

FRAGMENT_S = 2.0
"""Maximum length of a fragment: what a crash costs."""
MAX_FRAGMENT_BYTES = 1 << 24
"""Maximum size of a fragment: of packets whose times stand still, none would be long enough."""
MOVFLAGS = "empty_moov+frag_keyframe+default_base_moof"
PLAYABLE = frozenset(("h264", "av1", "vp9"))
"""Codecs that browsers play, with 8 bits and 4:2:0."""
PLAYABLE_PIXELS = frozenset(("yuv420p", "yuvj420p"))
NO_TIMES: int = cast("Any", av.format.Flags.no_timestamps).value
"""Flag of formats without times: FFmpeg makes them up, by a rate that it guesses."""
SIZED_BY_HEADER = frozenset(("h264", "hevc", "mpeg4"))
"""Codecs whose size cannot change without their header."""
SLOW_S = 60.0
"""A decoder that is too slow is reported at most this often."""
MAX_ARRIVALS = 1000
"""Packets whose arrival is remembered: more than a decoder can be behind."""
NO_KEY_S = 30.0
"""A stream without a key frame for this long is reported: its recording cannot begin."""


class _Waiting(NamedTuple):
    """A packet of the fragment that is being made."""

    pts: int | None
    decoded: int
    shown: int
    captured_s: float
    wall_s: float
    is_key: bool


class _Muxer:
    """Writes packets to memory as fragmented MP4.

    Args:
        stream: that they are of.
        header: its parameter sets.
        size: of the picture, in pixels.
        aspect: a pixel's width over its height, which some containers have outside of the codec's header; 0 if that
            header alone knows it.

    Raises ``ValueError`` or ``FFmpegError`` if MP4 cannot hold the stream.
    """

    def __init__(self, stream: VideoStream, header: bytes | None, size: tuple[int, int], aspect: Fraction) -> None:
        self._buffer = FragmentBuffer()
        options = {
            "movflags": MOVFLAGS, "frag_duration": str(round(FRAGMENT_S * 1e6)), "frag_size": str(MAX_FRAGMENT_BYTES),
            "flush_packets": "1",
        }  # fmt: skip
        self._container: OutputContainer = av.open(self._buffer, "w", format="mp4", options=options)
        copied = self._container.add_stream_from_template(stream, opaque=True)
        copied.time_base = Fraction(1, COPY_TICKS)
        context = cast("Any", copied.codec_context)
        context.width, context.height = size
        context.sample_aspect_ratio = aspect
        if header is not None:
            context.extradata = header
        self._container.start_encoding()
        self._stream = copied
        self.head = self._buffer.take()

    def add(self, packet: Packet[Any]) -> bytes:
        """Add a packet, whose times are in ticks of the copy; return the fragment before it, if that is now whole."""
        packet.stream, packet.time_base = self._stream, Fraction(1, COPY_TICKS)
        self._container.mux_one(packet)
        return self._buffer.take()

    def close(self) -> bytes:
        """Return the last fragment."""
        self._container.close()
        return without_index(self._buffer.take())


def copy_of(packet: Packet[Any], more: bytes = b"") -> Packet[Any]:
    """Return a packet with the same data and times, so that one can be changed while the other is decoded.

    Args:
        packet: the packet.
        more: data to append.
    """
    copied: Packet[Any] = av.Packet(bytes(packet) + more)
    copied.pts, copied.dts, copied.duration = packet.pts, packet.dts, packet.duration
    copied.is_keyframe = packet.is_keyframe
    if packet.has_sidedata("new_extradata"):
        copied.set_sidedata(packet.get_sidedata("new_extradata"))
    return copied


class PacketCopier:
    """Copies the packets of one opening of a source. Use it in one thread; :meth:`close` it in any.

    A new video begins at the first key frame, at a key frame with other parameter sets or of another size, and at the
    first key frame after the stream's clock has jumped.

    Args:
        source: its name.
        opening: how often it has been opened.
        publish: is called with each fragment.
        note: is called with one line if the packets cannot be copied.
        for_clips: whether the packets arrive as a camera sends them, so that clips of events can be cut from them.

    Attributes:
        skipped_s: when the last picture was skipped by its decoder, by ``time.monotonic``.
    """

    def __init__(
        self,
        source: str,
        opening: int,
        publish: Callable[[LiveFragment], None],
        note: Callable[[str], None],
        *,
        for_clips: bool,
    ) -> None:
        self._source, self._opening = source, opening
        self._publish, self._note = publish, note
        self._clock: PacketClock | None = None
        self._has_times = True
        self._header: bytes | None = None  # that a decoder needs, as far as it is known
        self._muxer: _Muxer | None = None
        self._video: CopiedVideo | None = None
        self._made_of: tuple[object, ...] = ()
        self._for_clips, self._playable = for_clips, False
        self._jumped = False
        self._failed = self._closed = False
        self._lock = threading.RLock()
        self._waiting: list[_Waiting] = []
        self._arrived_s: dict[int, float] = {}  # of the last packets, by their own times
        self._began_s = time.monotonic()
        self._told_no_key, self._told_slow_s = False, float("-inf")
        self.skipped_s = float("-inf")

    def packet_of(self, pts: int | None) -> PacketOf | None:
        """Return the packet that a frame was decoded from; None if packets are not copied."""
        if self._failed or self._clock is None:
            return None
        return PacketOf(self._opening, pts, None if pts is None else self._arrived_s.get(pts), self._playable)

    def note_skipped(self) -> None:
        """Note that pictures are not decoded, since that takes too long; they are copied all the same."""
        now_s = self.skipped_s = time.monotonic()
        if now_s - self._told_slow_s >= SLOW_S:
            self._told_slow_s = now_s
            self._note(f"{self._source}: decoding is too slow here: pictures are skipped, and count as damaged")

    def refuse(self, why: str) -> None:
        """Copy nothing, and note why."""
        with self._lock:
            failed, self._failed = self._failed, True
            self._muxer, self._waiting = None, []
        if not failed:
            self._note(f"{self._source}: its packets cannot be copied ({why}): no recording; clips are encoded")

    def _open(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._has_times = not stream.container.format.flags & NO_TIMES
        reorder = getattr(context, "reorder_depth", None)
        self._clock = PacketClock(
            (stream.time_base or Fraction(1, COPY_TICKS)) if self._has_times else Fraction(1, COPY_TICKS),
            int(context.has_b_frames) if reorder is None else reorder,
        )
        given = context.extradata
        self._header = None if given is None else parameter_sets(context.codec.canonical_name, given) or given
        plays = context.codec.canonical_name in PLAYABLE and context.pix_fmt in PLAYABLE_PIXELS
        self._playable = plays and self._for_clips
        try:  # the stream's own header may lack what a file needs, so only its codec is checked
            av.open(FragmentBuffer(), "w", format="mp4").add_stream_from_template(stream, opaque=True)
        except (ValueError, av.error.FFmpegError):
            self.refuse(f"an MP4 file cannot hold {context.codec.canonical_name} video")

    def add(self, packet: Packet[Any], stream: VideoStream) -> None:
        """Take a packet, whose times and stream are changed."""
        with self._lock:
            if self._closed:
                return
            if self._clock is None:
                self._open(stream)
            if self._failed or not packet.size:
                return
            try:
                self._add(packet, stream)
            except (av.error.FFmpegError, ValueError, OSError, OverflowError) as error:
                self.refuse(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def close(self) -> None:
        """Publish what is left; further packets are ignored."""
        with self._lock:
            self._closed = True
            try:
                self._end_video()
            except (av.error.FFmpegError, ValueError, OSError) as error:
                self.refuse(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def _add(self, packet: Packet[Any], stream: VideoStream) -> None:
        assert self._clock is not None
        clock, now_s, pts = self._clock, time.monotonic(), packet.pts
        if pts is not None:
            self._arrived_s[pts] = now_s
            if len(self._arrived_s) > MAX_ARRIVALS:
                del self._arrived_s[next(iter(self._arrived_s))]
        if packet.is_keyframe:
            self._begin_video_if_new(packet, stream)
        if self._muxer is None:
            if now_s - self._began_s > NO_KEY_S and not self._told_no_key:
                self._told_no_key = True
                self._note(f"{self._source}: no key frame for {NO_KEY_S:.0f} s: its recording begins with the next one")
            return
        if self._has_times:
            times = clock.time_of(pts, packet.dts, packet.duration)
        else:
            arrived = round((now_s - self._began_s) * COPY_TICKS)
            times = clock.time_of(arrived, arrived)
        self._jumped |= times.jumped
        if times.jumped and packet.is_keyframe:
            self._begin_video(self._made_of, stream)
        packet.pts, packet.dts, packet.duration = times.shown, times.decoded, clock.step
        self._publish_fragment(self._muxer.add(packet))
        self._waiting.append(_Waiting(pts, times.decoded, times.shown, now_s, time.time(), packet.is_keyframe))

    def _begin_video_if_new(self, packet: Packet[Any], stream: VideoStream) -> None:
        codec = stream.codec_context.codec
        if packet.has_sidedata("new_extradata"):
            self._header = bytes(packet.get_sidedata("new_extradata"))
        data = bytes(packet)
        if (repeated := parameter_sets(codec.canonical_name, data)) is not None:
            self._header = repeated
        same_header = self._muxer is not None and self._header == self._made_of[0]
        if same_header and not self._jumped and codec.canonical_name in SIZED_BY_HEADER:
            return
        size = picture_size(codec.name, self._header, data) or (stream.codec_context.width, stream.codec_context.height)
        if not all(size):  # the decoder will know it by the next key frame
            self._end_video()
            return
        made_of = (self._header, *size)
        if self._muxer is None or self._jumped or made_of != self._made_of:
            self._begin_video(made_of, stream)

    def _begin_video(self, made_of: tuple[Any, ...], stream: VideoStream) -> None:
        self._end_video()
        header, width, height = made_of
        codec = stream.codec_context.codec.canonical_name
        is_other = bool(self._made_of) and header != self._made_of[0] and codec in SIZED_BY_HEADER
        aspect = (None if is_other else stream.sample_aspect_ratio) or Fraction(0, 1)
        self._muxer = _Muxer(stream, header, (width, height), aspect)
        self._video = CopiedVideo(self._opening, codec, width, height, self._muxer.head)
        self._made_of, self._jumped = made_of, False

    def _end_video(self) -> None:
        muxer, self._muxer = self._muxer, None
        if muxer is not None:
            self._publish_fragment(muxer.close())

    def _publish_fragment(self, data: bytes) -> None:
        """Publish a fragment of all packets that wait, if there is one."""
        if not data or not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        assert self._video is not None
        first = waiting[0]
        self._publish(
            LiveFragment(
                self._source, self._video, data, first.is_key, first.decoded,
                tuple(one.pts for one in waiting), tuple(one.shown for one in waiting),
                tuple(one.captured_s for one in waiting), first.wall_s,
            )
        )  # fmt: skip

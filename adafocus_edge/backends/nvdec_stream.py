"""Decoding streams on an NVIDIA GPU: PyAV reads the packets, with its time limits, and NVDEC decodes them.

The behaviour of PyNvVideoCodec is known from its wheel (2.2.4) and its public sources; these calls have not run on a
GPU yet: ``PacketData`` filled in by us, ``CreateDecoder``, ``Decode``. Its decoder overwrites a surface with the next
``Decode``, scales pictures of another size to the size of the first, and deinterlaces. Therefore surfaces are copied at
once, each new set of sequence parameters gets a decoder of its own, and possibly interlaced streams are decoded on the
CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from adafocus_edge.backends.gpu_frames import DeviceFrame, FrameStore
from adafocus_edge.backends.nvdec import library, wrap_errors
from adafocus_edge.errors import BackendError, SourceError
from adafocus_edge.media.fields import FieldPairs
from adafocus_edge.media.nv12 import NotOnGpuError, codec_of, layout_of
from adafocus_edge.media.pictures import Picture, decoded_picture

if TYPE_CHECKING:
    from fractions import Fraction

    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from adafocus_edge.media.matrices import Decoded
    from adafocus_edge.media.video_file import VideoFile

STREAMED = frozenset(("h264", "hevc"))
"""Codecs whose packets are passed to NVDEC one by one: their streams always signal a change of size."""
START_CODE = re.compile(rb"\x00\x00\x01")
MAX_FAILURES = 3
"""After this many failures, each within :data:`HEALTHY_PICTURES` of the previous one, the CPU decodes a stream."""
HEALTHY_PICTURES = 100
"""A failure is forgotten after this many pictures."""
MAX_BLIND = 2
"""Successive key frames that cannot be decoded on their own, as in streams with gradual refresh."""
ON_GPU = "decoded on the GPU"


@dataclass(frozen=True)
class Decoding:
    """How one source is decoded on the GPU.

    Attributes:
        store: keeps the frames.
        address: of the source, for errors.
        strict: whether to raise an error instead of decoding on the CPU.
        note: called with a line that names the decoder, whenever it changes.
        damaged: called for each packet that the GPU's decoder refuses.
    """

    store: FrameStore
    address: str
    strict: bool = field(kw_only=True)
    note: Callable[[str], None] = field(kw_only=True)
    damaged: Callable[[], None] = field(kw_only=True)

    def refuse(self, reason: str) -> None:
        """Let the CPU decode the source. Raises ``BackendError`` if ``strict``."""
        if self.strict:
            raise BackendError(f"{reason}: remove --decoder gpu")
        self.note(f"decoded on the CPU: {reason}")

    def stream_decoder(self, stream: VideoStream) -> Callable[[Packet[Any]], Iterator[Picture]]:
        """Return a callable that decodes the packets of an open track; see :meth:`StreamDecoder.decode`."""
        decoder = StreamDecoder(stream, self)
        return lambda packet: (picture for _, picture in decoder.decode(packet))

    def file_pictures(self, clip: VideoFile) -> Iterator[tuple[int, Picture]]:
        """Decode all frames of a video file in order, on the GPU if possible.

        Yields:
            Each frame number and the picture.

        Raises:
            SourceError: the file cannot be decoded.
            BackendError: the GPU cannot decode it, and ``strict`` is set.
        """
        try:
            if clip.is_counted:
                raise NotOnGpuError("its frames cannot be found by their times")
            clip.nv12()
        except NotOnGpuError as error:
            self.refuse(str(error))
            for index, frame in clip.pictures():
                yield index, decoded_picture(frame, clip.sample_aspect)
            return
        decoder: StreamDecoder | None = None
        for stream, packet in clip.packets():
            decoder = decoder or StreamDecoder(stream, self)
            try:
                pictures = list(decoder.decode(packet))
            except av.error.FFmpegError as error:
                raise clip.reading_error(error) from None
            for time, picture in pictures:
                number = None if time is None else clip.index_at(time)
                if number is not None:  # an edit list hides frames that others refer to
                    yield number, picture._replace(sample_aspect=clip.sample_aspect)


class StreamDecoder:
    """Decodes the packets of one open track on the GPU, or on the CPU if the GPU cannot.

    It begins at a key frame, which the CPU decodes as well, to learn the stream's format.

    Args:
        stream: the track, of an open container; its own decoder runs on the CPU.
        decoding: see :class:`Decoding`.

    Raises:
        BackendError: the GPU cannot decode it, and ``strict`` is set.
    """

    def __init__(self, stream: VideoStream, decoding: Decoding) -> None:
        self._stream, self._how = stream, decoding
        self._on_cpu = False
        self._decoder: Any = None
        self._layout: Decoded | None = None
        self._parameters = b""
        self._reorders = bool(stream.codec_context.has_b_frames)
        self._low_latency = False
        self._failures = 0
        self._blind = 0
        self._worked = False  # whether the present decoder has taken a packet
        self._pictures = 0  # from that decoder; with B-frames the first packets yield none
        self._newest: int | None = None
        try:
            self._codec = library()
            self._name = stream.codec_context.name
            self._kind = getattr(self._codec.cudaVideoCodec, codec_of(self._name))
            if self._name not in STREAMED:
                raise NotOnGpuError(f"{self._name} streams are not decoded on the GPU")
            self._filter = _to_annex_b(stream)
        except (BackendError, NotOnGpuError) as error:
            self._give_up(str(error))

    def decode(self, packet: Packet[Any]) -> Iterator[tuple[int | None, Picture]]:
        """Decode a packet; an empty one flushes the decoder at the end.

        Yields:
            Each picture with its time in ticks, or None.

        Raises:
            FFmpegError: the CPU cannot decode it.
            BackendError: the GPU cannot decode this stream, and ``strict`` is set.
        """
        if not self._on_cpu:
            yield from self._decode_on_gpu(packet)
        if self._on_cpu:
            yield from self._decode_on_cpu(packet)

    # -- on the CPU ---------------------------------------------------------------------------------------------------

    def _give_up(self, reason: str) -> None:
        self._decoder = None
        self._how.refuse(reason)
        self._on_cpu = True

    def _decode_on_cpu(self, packet: Packet[Any]) -> Iterator[tuple[int | None, Picture]]:
        for frame in self._stream.decode(packet):
            yield frame.pts, decoded_picture(frame, self._aspect(frame))

    def _aspect(self, frame: VideoFrame | None) -> Fraction:
        from adafocus_edge.media.containers import pixel_aspect
        from adafocus_edge.media.orientation import is_sideways

        return pixel_aspect(self._stream.sample_aspect_ratio, frame is not None and is_sideways(frame))

    # -- on the GPU ---------------------------------------------------------------------------------------------------

    def _decode_on_gpu(self, packet: Packet[Any]) -> Iterator[tuple[int | None, Picture]]:
        if packet.has_sidedata("new_extradata"):
            self._give_up("its parameters change in the middle of the stream")
            return
        units = self._annex_b(packet) if packet.size else b""
        parameters = sequence_parameters(units, self._name)
        if self._decoder is not None and parameters not in (b"", self._parameters):
            yield from self._pictures_of(b"", None)  # pictures that it still holds
            self._decoder = None  # it would scale pictures of another size to the size of the first
            if self._on_cpu:  # flushing the old decoder failed
                return
        if units and not self._is_ready(packet, parameters):
            return
        yield from self._pictures_of(units, packet.pts)

    def _pictures_of(self, units: bytes, pts: int | None) -> Iterator[tuple[int | None, Picture]]:
        """Decode a packet's units; without units, flush the decoder."""
        if self._decoder is None or self._layout is None:
            return
        layout, shape = self._layout, (self._layout.height * 3 // 2, self._layout.width)
        try:
            with wrap_errors(self._how.address):
                surfaces = self._decoder.Decode(self._packet(units, pts))
                frames = [(int(each.timestamp), self._how.store.keep(each, shape)) for each in surfaces]
        except (BackendError, NotOnGpuError) as error:
            self._fail(str(error))
            return
        self._worked = True
        for time, planes in frames:
            if self._low_latency and self._newest is not None and time < self._newest:
                # The decoding order differs from the display order, which the stream did not signal.
                self._reorders, self._decoder = True, None
                return
            self._newest = time
            self._pictures += 1
            if self._pictures >= HEALTHY_PICTURES:
                self._failures = 0
            made = DeviceFrame(self._how.store, planes, layout)
            yield time, Picture(made, layout.width, layout.height, self._aspect(None))

    def _is_ready(self, packet: Packet[Any], parameters: bytes) -> bool:
        """Open a decoder if one is needed and the packet allows it; return whether the packet can be decoded."""
        if self._decoder is None and packet.is_keyframe:
            try:
                self._open(packet, parameters)
            except NotOnGpuError as error:
                self._give_up(str(error))
        return self._decoder is not None

    def _open(self, packet: Packet[Any], parameters: bytes) -> None:
        """Decode a key frame on the CPU, and open a decoder for the packets from there on. Raises ``NotOnGpuError``."""
        context = self._stream.codec_context
        try:
            frames = [*context.decode(packet), *context.decode(None)]
        finally:
            context.flush_buffers()
        if not frames:
            self._blind += 1
            if self._blind >= MAX_BLIND:
                raise NotOnGpuError("its key frames cannot be decoded on their own")
            return
        self._blind = 0
        self._layout = layout_of(frames[0])
        known = SimpleNamespace(name=self._name, extradata=parameters)
        if FieldPairs(cast("Any", known)).possible:
            raise NotOnGpuError("it may hold fields, which the GPU would deinterlace")
        self._reorders = self._reorders or bool(context.has_b_frames)
        self._low_latency = not self._reorders and packet.pts is not None
        latency = self._codec.DisplayDecodeLatencyType
        with wrap_errors(self._how.address):
            self._decoder = self._codec.CreateDecoder(
                gpuid=0, codec=self._kind, cudacontext=0, cudastream=0, usedevicememory=True,
                latency=latency.LOW if self._low_latency else latency.NATIVE,
            )  # fmt: skip
        self._parameters, self._newest, self._pictures, self._worked = parameters, None, 0, False
        self._how.note(ON_GPU)

    def _annex_b(self, packet: Packet[Any]) -> bytes:
        """Return a packet's units with start codes, and the parameters before a key frame."""
        copy: Packet[Any] = av.Packet(bytes(packet))  # the filter consumes its packet
        copy.is_keyframe, copy.pts, copy.dts = packet.is_keyframe, packet.pts, packet.dts
        units = b"".join(bytes(each) for each in self._filter.filter(copy))
        extradata = bytes(self._stream.codec_context.extradata or b"")
        stored = not START_CODE.match(extradata, 0, 4) and not START_CODE.match(extradata, 1, 4)
        if packet.is_keyframe and not stored and not sequence_parameters(units, self._name):
            return extradata + units  # some cameras send their parameters only at the start of a session
        return units

    def _packet(self, units: bytes, time: int | None) -> Any:
        """Return a packet for the GPU's decoder; without units, it ends the stream."""
        made = self._codec.PacketData()
        content = np.frombuffer(units, np.uint8)
        made.bsl, made.bsl_data = len(units), content.ctypes.data if units else 0
        made.pts = 0 if time is None else time
        if self._low_latency and units:
            made.decode_flag = int(self._codec.VideoPacketFlag.ENDOFPICTURE)
        return made

    def _fail(self, reason: str) -> None:
        """Restart at the next key frame, or let the CPU decode the stream.

        Raises:
            BackendError: ``strict`` is set, and the GPU has never decoded it.
            SourceError: ``strict`` is set, and the GPU has decoded it before: the source is opened again.
        """
        self._decoder = None
        self._failures += 1
        self._how.damaged()
        # NVDEC rejects an unsupported stream at its first packet, which the CPU has decoded.
        if self._worked and self._failures < MAX_FAILURES:
            return
        if self._worked and self._how.strict:
            raise SourceError(f"{self._how.address}: {reason}")
        self._give_up(reason)


def sequence_parameters(units: bytes, name: str) -> bytes:
    """Return the sequence parameter sets before the first picture, with their start codes, or empty bytes.

    Args:
        units: with start codes (ITU-T H.264 and H.265, annex B).
        name: ``h264`` or ``hevc``.
    """
    found = []
    starts = START_CODE.finditer(units)
    at = next(starts, None)
    while at is not None and at.end() < len(units):
        after = next(starts, None)
        head = units[at.end()]
        kind = head & 31 if name == "h264" else head >> 1 & 63
        if kind == (7 if name == "h264" else 33):
            found.append(units[at.start() : after.start() if after else len(units)].rstrip(b"\0"))
        elif 1 <= kind <= 5 if name == "h264" else kind < 32:
            break  # a picture
        at = after
    return b"".join(found)


def _to_annex_b(stream: VideoStream) -> Any:
    """Return FFmpeg's filter that adds start codes to a stream's units where they are missing."""
    return BitStreamFilterContext(f"{stream.codec_context.name}_mp4toannexb", stream)

"""PyNvVideoCodec's decoders on the CPU: the same calls and the same traps, with PyAV as the hardware.

Names, arguments and behaviour are those of the wheel of PyNvVideoCodec 2.2.4. Like the real ones, decoders write to
their surfaces again with the next call (and spoil them at once, so that nobody reads them later by luck), scale
pictures of another size to the size of the first one, and begin only where parameters and a key frame are.
"""

from __future__ import annotations

import ctypes
import enum

import av
import numpy as np

POISON = 0xA5


class PyNvVCException(Exception):
    """What the library raises."""


class cudaVideoCodec(enum.Enum):
    MPEG1, MPEG2, MPEG4, VC1, H264, JPEG, H264_SVC, H264_MVC, HEVC, VP8, VP9, AV1 = range(12)


class VideoPacketFlag(enum.IntEnum):
    ENDOFSTREAM, TIMESTAMP, DISCONTINUITY, ENDOFPICTURE, NOTIFY_EOS = 1, 2, 4, 8, 16


class DisplayDecodeLatencyType(enum.Enum):
    NATIVE, LOW, ZERO = range(3)


class PacketData:
    """A piece of a stream: ``bsl`` bytes at ``bsl_data``."""

    def __init__(self):
        self.bsl = self.bsl_data = self.pts = self.dts = self.decode_flag = 0


class DecodedFrame:
    def __init__(self, surface, timestamp):
        self.surface, self.timestamp = surface, timestamp
        self.shape = surface.shape

    def __dlpack__(self, stream=0):
        return self.surface.__dlpack__()


class _Surfaces:
    """Memory that every call uses again."""

    def __init__(self):
        self._pool = []

    def spoil(self):
        for surface in self._pool:
            surface[:] = POISON

    def fill(self, number, planes):
        if number == len(self._pool):
            self._pool.append(np.empty_like(planes))
        if self._pool[number].shape != planes.shape:
            raise PyNvVCException("surfaces of another size")
        self._pool[number][:] = planes
        return self._pool[number]


made: list[PyNvDecoder] = []
"""All decoders of streams that were created."""


class PyNvDecoder:
    def __init__(self, codec, latency):
        self._context = av.CodecContext.create(codec.name.lower(), "r")
        self._context.thread_type, self._context.thread_count = "SLICE", 1
        self.latency = latency
        if latency is DisplayDecodeLatencyType.LOW:
            self._context.flags |= av.codec.context.Flags.low_delay
        self._surfaces = _Surfaces()
        self._size = None
        self.fails = 0
        made.append(self)

    def Decode(self, packet):
        self._surfaces.spoil()
        if self.fails:
            self.fails -= 1
            raise PyNvVCException("cuvidParseVideoData failed\nwith a second line")
        try:
            if packet.bsl:
                piece = av.Packet(ctypes.string_at(packet.bsl_data, packet.bsl))
                piece.pts = packet.pts
                frames = self._context.decode(piece)
            else:
                frames = self._context.decode(None)
        except av.error.FFmpegError as error:
            raise PyNvVCException(str(error)) from None
        found = []
        for number, frame in enumerate(frames):
            self._size = self._size or (frame.width, frame.height)
            planes = frame.reformat(*self._size, format="nv12").to_ndarray()
            found.append(DecodedFrame(self._surfaces.fill(number, planes), frame.pts))
        return found


def CreateDecoder(
    gpuid=0, codec=cudaVideoCodec.H264, cudacontext=0, cudastream=0, usedevicememory=False, maxwidth=0, maxheight=0,
    latency=DisplayDecodeLatencyType.NATIVE,
):  # fmt: skip
    assert usedevicememory
    return PyNvDecoder(codec, latency)


class SimpleDecoder:
    """Frames of a file by number."""

    def __init__(self, enc_file_path, gpu_id=0, cuda_context=0, cuda_stream=0, use_device_memory=True):
        with av.open(enc_file_path) as container:
            self._frames = [frame.reformat(format="nv12").to_ndarray() for frame in container.decode(video=0)]
        self._surfaces = _Surfaces()

    def __len__(self):
        return len(self._frames)

    def __getitem__(self, index):
        self._surfaces.spoil()
        return DecodedFrame(self._surfaces.fill(0, self._frames[index]), index)

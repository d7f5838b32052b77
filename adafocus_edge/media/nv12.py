"""Selection of videos that an NVIDIA GPU decodes to NV12 as the CPU path would; the CPU decodes all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adafocus_edge.errors import SourceError
from adafocus_edge.media.matrices import Decoded

if TYPE_CHECKING:
    import numpy as np
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

CODECS = {
    "h264": "H264",
    "hevc": "HEVC",
    "av1": "AV1",
    "libdav1d": "AV1",
    "vp9": "VP9",
    "libvpx-vp9": "VP9",
    "vp8": "VP8",
    "mpeg4": "MPEG4",
    "mpeg2video": "MPEG2",
    "mpeg1video": "MPEG1",
}
"""NVDEC's names of codecs (``cudaVideoCodec``), by FFmpeg's decoder."""
NV12_LIKE = frozenset(("yuv420p", "yuvj420p", "nv12"))
"""Pixel formats that NVDEC returns as NV12."""
MATRICES = {1: "bt709", 2: "bt601", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
"""Colour matrices by FFmpeg's number (AVColorSpace), as FFmpeg converts them: untagged video counts as BT.601."""
LIMITED_RANGE, FULL_RANGE = 1, 2
"""FFmpeg's numbers (AVColorRange)."""


class NotOnGpuError(SourceError):
    """A video that the CPU must decode; the message is only the reason."""


def codec_of(name: str) -> str:
    """Return NVDEC's name of a codec. Raises ``NotOnGpuError`` if NVDEC does not decode it.

    Args:
        name: name of FFmpeg's decoder.
    """
    if name not in CODECS:
        raise NotOnGpuError(f"the codec {name} is not decoded on the GPU")
    return CODECS[name]


def layout_of(frame: VideoFrame) -> Decoded:
    """Return the layout in which a GPU decodes the video of a frame.

    Raises:
        NotOnGpuError: the GPU's pixels would differ from those of the CPU path; gives the reason.
    """
    from adafocus_edge.media.orientation import orientation

    if frame.format.name not in NV12_LIKE or frame.width % 2 or frame.height % 2:
        size = f"{frame.width} x {frame.height}"
        raise NotOnGpuError(f"{frame.format.name} of {size} is not decoded on the GPU: only 8-bit 4:2:0, even sides")
    if orientation(frame) != (False, 1, 1):
        raise NotOnGpuError("it has a rotation or mirror flag, which the GPU path does not support")
    if frame.interlaced_frame:
        raise NotOnGpuError("it is interlaced, which the GPU would deinterlace")
    space = int(frame.colorspace)
    if space not in MATRICES:
        raise NotOnGpuError(f"its colour matrix (number {space} of ITU-T H.273) is not converted on the GPU")
    full = int(frame.color_range) == FULL_RANGE or frame.format.name == "yuvj420p"
    return Decoded(frame.height, frame.width, MATRICES[space], full)


def frame_of(planes: NDArray[np.uint8], layout: Decoded) -> VideoFrame:
    """Return NV12 planes, uint8 [3/2 height, width], as a frame that FFmpeg converts like one decoded on the CPU."""
    from av.video.frame import VideoFrame

    # FFmpeg converts NV12 itself in another way; separating U and V first changes no sample.
    frame = VideoFrame.from_ndarray(planes, format="nv12").reformat(format="yuv420p", threads=1)
    frame.colorspace = next(number for number, name in MATRICES.items() if name == layout.matrix)
    frame.color_range = FULL_RANGE if layout.full_range else LIMITED_RANGE
    return frame

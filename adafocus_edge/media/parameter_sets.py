"""What a decoder must know before the first picture, where cameras repeat it in the packets of key frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import av

from adafocus_edge.media.images import LARGEST_IMAGE

START = b"\0\0\1"
VOL_CODES = range(0x20, 0x30)
"""Start codes of MPEG-4 Part 2 that begin a video object layer (ISO/IEC 14496-2, 6.2.1)."""
VOP_CODES = (0xB3, 0xB6)
"""Those that begin a group of pictures, or a picture."""


class _Units(NamedTuple):
    """The units of a codec that hold parameter sets.

    Attributes:
        kind: returns the type of a unit from its first byte.
        sets: types that must all be there.
        is_picture: whether a type is part of a picture: no parameter set of this key frame follows.
        header: bytes before a slice's own header, whose first bit is set in the first slice of a picture.
    """

    kind: Callable[[int], int]
    sets: frozenset[int]
    is_picture: Callable[[int], bool]
    header: int


_UNITS = {
    "h264": _Units(lambda first: first & 31, frozenset((7, 8)), lambda kind: 1 <= kind <= 5, 1),
    "hevc": _Units(lambda first: first >> 1 & 63, frozenset((32, 33, 34)), lambda kind: kind < 32, 2),
}
SLICED = frozenset(_UNITS)
"""Codecs that :func:`continues_picture` knows."""


def parameter_sets(codec: str, data: bytes) -> bytes | None:
    """Return the parameter sets at the beginning of a key frame, or of a stream's header, in one form for all.

    Cameras repeat them, in any number and order: the same sets give the same result.

    Args:
        codec: its name, such as ``h264``.
        data: with start codes (Annex B).

    Returns:
        them with start codes of four bytes; None if not all are there, or if the codec has none in its packets.
    """
    if codec == "mpeg4":
        return _video_object_layer(data)
    units = _UNITS.get(codec)
    if units is None:
        return None
    found = {(units.kind(unit[0]), unit) for unit in _starting_units(data, units)}
    sets = sorted((kind, unit) for kind, unit in found if kind in units.sets)
    if {kind for kind, _ in sets} != units.sets:
        return None
    return b"".join(b"\0" + START + unit for _, unit in sets)


def continues_picture(codec: str, data: bytes) -> bool:
    """Return whether the first slice in a packet is not the first one of its picture.

    Args:
        codec: one of :data:`SLICED`.
        data: with start codes (Annex B).
    """
    units = _UNITS[codec]
    place = data.find(START)
    while 0 <= place < len(data) - len(START) - units.header:
        begins = place + len(START)
        if units.is_picture(units.kind(data[begins])):
            return not data[begins + units.header] & 0x80
        place = data.find(START, begins)
    return False


def picture_size(decoder: str, header: bytes | None, data: bytes) -> tuple[int, int] | None:
    """Return width and height of the picture in a key frame, in pixels, or ``None`` if they cannot be read.

    FFmpeg's parser reads them from the codec's headers; where it does not look at sizes (VP9), the picture is decoded,
    except for MJPEG, where every picture is a key frame.

    Args:
        decoder: name of the decoder.
        header: what it must know before; None for nothing.
        data: the packet.
    """
    context = av.CodecContext.create(decoder, "r")
    if not isinstance(context, av.VideoCodecContext) or decoder == "mjpeg":
        return None
    if header is not None:
        context.extradata = header
    context.parse(data)
    context.parse()  # that was all of the picture: the parser may wait for the beginning of the next one
    if context.width:
        return context.width, context.height
    context.options, context.thread_count = {"max_pixels": str(LARGEST_IMAGE)}, 1
    try:
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    except av.error.FFmpegError:
        return None
    return (frames[0].width, frames[0].height) if frames else None


def _starting_units(data: bytes, units: _Units) -> Iterator[bytes]:
    """Yield the units before the first that is part of a picture."""
    place = data.find(START)
    if place not in (0, 1):  # lengths instead of start codes
        return
    while place >= 0:
        begins = place + len(START)
        if begins >= len(data) or units.is_picture(units.kind(data[begins])):
            return
        place = data.find(START, begins)
        unit = data[begins : None if place < 0 else place].rstrip(b"\0")
        if unit:
            yield unit


def _video_object_layer(data: bytes) -> bytes | None:
    ends = [place for code in VOP_CODES if (place := data.find(START + bytes([code]))) >= 0]
    header = data[: min(ends, default=len(data))]
    return header if any(START + bytes([code]) in header for code in VOL_CODES) else None

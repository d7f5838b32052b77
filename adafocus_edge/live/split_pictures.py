"""Joins the packets of pictures that were split on their way.

Parameter sets between the slices of a picture end a packet for FFmpeg; GStreamer's ``rtph264pay`` may repeat them
before each slice of a key frame. Decoded one by one, such packets give pictures that lack a part, and so do all that
refer to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adafocus_edge.live.packet_copy import copy_of
from adafocus_edge.media.parameter_sets import SLICED, continues_picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from av.packet import Packet
    from av.video.stream import VideoStream

WATCHED = 3
"""Key frames in which a split must show; if there is none, packets do not wait for the next one any more."""


def whole_pictures(packets: Iterable[Packet[Any]], stream: VideoStream) -> Iterator[Packet[Any]]:
    """Yield the packets of a stream, those of one picture of its H.264 or H.265 video joined.

    Where pictures are split, and for the first :data:`WATCHED` key frames, a packet waits for the next one.

    Args:
        packets: of all tracks that are read.
        stream: the video track.
    """
    codec = stream.codec_context.name
    held: Packet[Any] | None = None
    has_lengths = bytes(stream.codec_context.extradata or b"")[:1] == b"\1"  # instead of start codes: never split
    watched = WATCHED if codec in SLICED and not has_lengths else 0
    for packet in packets:
        if packet.stream_index != stream.index:
            yield packet
            continue
        at_once = held is not None and (held.pts == packet.pts or None in (held.pts, packet.pts))
        if held is not None and at_once and continues_picture(codec, bytes(packet)):
            held, watched = _joined(held, packet), -1
            continue
        if held is not None:
            yield held
            held = None
        if not watched or not packet.size:
            yield packet
            continue
        watched -= packet.is_keyframe and watched > 0
        held = packet
    if held is not None:
        yield held


def _joined(first: Packet[Any], second: Packet[Any]) -> Packet[Any]:
    joined = copy_of(first, bytes(second))
    joined.time_base, joined.stream = first.time_base, first.stream
    if first.pts is None:
        joined.pts, joined.dts = second.pts, second.dts
    return joined

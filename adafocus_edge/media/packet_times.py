"""The timeline of a video file from its container, without decoding: from the index, or from the packets' times."""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np

from adafocus_edge.errors import SourceError
from adafocus_edge.media.matroska import matroska_end
from adafocus_edge.media.timeline import LONGEST_GAP_S, ROUNDING_TICKS, Timeline, on_one_clock

if TYPE_CHECKING:
    from collections.abc import Iterable
    from fractions import Fraction

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from adafocus_edge.media.fields import FieldPairs

SHORTEST_SHARE = 0.95
"""A served file with less than this share of its declared duration was cut short."""


def longest_gap(container: InputContainer, tick_s: Fraction) -> float:
    """Return how many ticks two frames may be apart on one clock: unlimited in formats whose clock never resets."""
    may_jump = bool(cast("Any", container.format.flags) & av.format.Flags.ts_discont.value)
    return float(LONGEST_GAP_S / tick_s) if may_jump else float("inf")


def check_whole(path: str, name: str, container: InputContainer, stream: VideoStream) -> None:
    """Raise ``SourceError`` for a file that ends before the last frame of its index, or before its declared end.

    Args:
        path: the file.
        name: what the error calls it.
        container: the opened file.
        stream: the track that is read.
    """
    size = os.path.getsize(path)
    if container.format.name.startswith("matroska"):
        end = matroska_end(Path(path))
        if end is not None and end > size:
            raise SourceError(f"{name}: cut short: it has {size} of its {end} bytes")
        return
    entries = stream.index_entries
    complete = sum(entry.pos + entry.size <= size for entry in entries)
    if complete < len(entries):
        raise SourceError(f"{name}: cut short: it has {complete} of its {len(entries)} frames")


def index_timeline(stream: VideoStream) -> Timeline | None:
    """Return the timeline from the container's index, or None if the index does not define one.

    The index must list every frame, and its decoding times must stand for presentation times. They do at a constant
    rate, except for a fixed delay, and where frames are decoded in the order in which they are shown.
    """
    entries = stream.index_entries
    if len(entries) == 0 or len(entries) != stream.frames or not entries[0].is_keyframe:
        return None
    if any(entry.is_discard for entry in entries):
        return None
    decoded_at = np.array([entry.timestamp for entry in entries], dtype=np.int64)
    gaps = np.diff(decoded_at)
    if len(gaps):
        steady = gaps.max() - gaps.min() <= ROUNDING_TICKS
        if gaps.min() <= 0 or not (steady or stream.codec_context.has_b_frames == 0):
            return None
    start = stream.start_time if stream.start_time is not None else int(decoded_at[0])
    times = (decoded_at - decoded_at[0] + start).tolist()
    last = (stream.duration or 0) - (times[-1] - start)
    keys = [number for number, entry in enumerate(entries) if entry.is_keyframe]
    return Timeline(times, keys, times, last_ticks=last if last > 0 else None)


@dataclass
class PacketTimes:
    """The times of a stream's packets, in decoding order and in the stream's ticks.

    Packets before the first key frame are not included, because they cannot be decoded.

    Attributes:
        times: presentation time of each frame that is shown.
        keys: presentation times of the key frames.
        durations: how long a frame is shown, by its presentation time; 0 if the packet does not define it.
        untimed: whether a packet has no time, as in a raw stream of H.264 or HEVC.
        was_reset: whether the clock was reset, as in joined recordings: a time may then mean two frames.
    """

    times: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    durations: dict[int, int] = field(default_factory=dict)
    untimed: bool = False
    was_reset: bool = False
    _newest: int | None = field(default=None, init=False, repr=False)
    _decoded_at: int | None = field(default=None, init=False, repr=False)

    @classmethod
    def read(cls, packets: Iterable[Packet[Any]], fields: FieldPairs) -> PacketTimes:
        """Read all packets of a track; a second field is not a frame of its own. Raises PyAV's errors."""
        found = cls()
        for packet in packets:
            if packet.size > 0 and fields.possible and fields.is_second(packet):
                continue
            found._add(packet)
        return found

    def _add(self, packet: Packet[Any]) -> None:
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:
            self.untimed = self.untimed or packet.size > 0
            return
        self._notice_reset(packet, time)
        if packet.is_keyframe:
            self.keys.append(time)
        # An edit list discards frames that others need; they are decoded and not shown.
        if self.keys and packet.size > 0 and not packet.is_discard:
            self.times.append(time)
            self.durations[time] = packet.duration or 0

    def _notice_reset(self, packet: Packet[Any], time: int) -> None:
        # Every frame that is decoded before a key frame is shown before it, unless the clock was reset.
        late = self._newest is not None and time <= self._newest
        fell = packet.dts is not None and self._decoded_at is not None and packet.dts < self._decoded_at
        self.was_reset = self.was_reset or (late and (fell or packet.is_keyframe))
        self._newest = time if self._newest is None else max(self._newest, time)
        self._decoded_at = packet.dts if packet.dts is not None else self._decoded_at

    def check_served(self, name: str, container: InputContainer, tick_s: Fraction) -> None:
        """Raise ``SourceError`` for a served Matroska file that ends long before the duration in its header."""
        if not container.format.name.startswith("matroska") or not container.duration:
            return
        promised_s = container.duration / av.time_base
        # The last frame may be shown for as long as any.
        longest = max([self.durations[max(self.times)], *(b - a for a, b in pairwise(sorted(self.times)))])
        found_s = float((max(self.times) + longest) * tick_s)
        if found_s + 0.25 < promised_s * SHORTEST_SHARE:
            raise SourceError(f"{name}: cut short: it has {found_s:.1f} of its {promised_s:.1f} s")

    def check_avi(self, name: str, container: InputContainer, stream: VideoStream) -> None:
        """Raise ``SourceError`` for an AVI file with fewer frames than its header declares.

        AVI counts time in frames, and stores no packets for frames that a capture dropped.
        """
        if container.format.name == "avi" and self.times[-1] + 1 < stream.frames:
            raise SourceError(f"{name}: cut short: it has {self.times[-1] + 1} of its {stream.frames} frames")

    def timeline(self, container: InputContainer, stream: VideoStream, tick_s: Fraction) -> Timeline | None:
        """Return the timeline, or None where times are rounded so badly that two frames share one."""
        # Open groups of pictures: frames shown before the first key frame depend on frames that are missing.
        shown = sorted(time for time in self.times if time >= self.keys[0])
        if any(before == after for before, after in pairwise(shown)):
            return None
        starts = sorted({min(bisect.bisect_left(shown, time), len(shown) - 1) for time in self.keys})
        keys = [0, *(start for start in starts if start > 0)]
        clock = on_one_clock(shown, longest_gap(container, tick_s))
        last = self.durations[shown[-1]]
        if stream.frames and stream.duration:  # in MP4, a packet's duration is that of decoding, not of display
            last = (stream.start_time or 0) + stream.duration - shown[-1]
        return Timeline(shown, keys, clock, last_ticks=last if last > 0 else None)

"""Pieces of fragmented MP4: made in memory, kept for some seconds, and joined to files."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Fragment:
    """A piece of fragmented MP4.

    Attributes:
        data: its boxes.
        first_s: time of its first frame, in seconds of the clock that its video keeps.
        last_s: time of its last frame.
        length_s: from its first frame to its last one, as players show it.
        is_key: whether it begins with a key frame.
    """

    data: bytes
    first_s: float
    last_s: float
    length_s: float
    is_key: bool = True


class FragmentBuffer:
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


class KeptFragments:
    """The last seconds of a video, so that a clip can begin before its event.

    Args:
        head: what a file of this video begins with.
        keep_s: seconds to keep; more, up to the key frame before.
        max_bytes: size to keep at most. A video with fewer key frames than that is kept from the next one on.
    """

    def __init__(self, head: bytes, keep_s: float, max_bytes: int) -> None:
        self.head = head
        self.keep_s, self._max_bytes = keep_s, max_bytes
        self._kept: deque[Fragment] = deque()
        self._bytes = 0

    def keep(self, fragment: Fragment) -> None:
        """Add a fragment, and forget those before the oldest key frame that is still needed."""
        if not self._kept and not fragment.is_key:
            return
        self._kept.append(fragment)
        self._bytes += len(fragment.data)
        keys = [number for number, one in enumerate(self._kept) if one.is_key and number]
        while keys and (fragment.last_s - self._kept[keys[0]].first_s >= self.keep_s or self._bytes > self._max_bytes):
            number = keys.pop(0)
            for _ in range(number):
                self._bytes -= len(self._kept.popleft().data)
            keys = [key - number for key in keys]
        if self._bytes > self._max_bytes:
            self._kept.clear()
            self._bytes = 0

    def since(self, begins_s: float) -> list[Fragment]:
        """Return the fragments from the last key frame before a time on, or all where none is kept."""
        kept = list(self._kept)
        keys = [number for number, one in enumerate(kept) if one.is_key]
        before = [number for number in keys if kept[number].first_s <= begins_s]
        return kept[(before[-1:] or keys[:1] or [len(kept)])[0] :]

    @property
    def last_s(self) -> float | None:
        """Time of the last frame."""
        return self._kept[-1].last_s if self._kept else None


def without_index(data: bytes) -> bytes:
    """Return the end of a fragmented MP4 without the index that closes it."""
    return b"".join(box for box in _boxes(data) if box[4:8] in (b"moof", b"mdat"))


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

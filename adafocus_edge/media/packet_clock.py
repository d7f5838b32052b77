"""Times of a stream's packets as a file can hold them: from 0, in decoding order, without jumps."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import NamedTuple

COPY_TICKS = 90_000
"""Ticks per second of copied video: the clock of MPEG-TS and RTP, and a multiple of those of FLV and Matroska."""
JUMP_BACK_S = 0.5
"""A clock that goes back by less counts as jitter: the packet follows directly on the one before."""
JUMP_S = 10.0
"""A clock that goes on by more has jumped: the time between is not part of the video."""
MAX_REORDER_S = 5.0
"""A picture that is shown later than this after it is decoded has a wrong time."""
USUAL_STEP = COPY_TICKS // 25
"""Between two packets, until two had times."""


class PacketTime(NamedTuple):
    """When a packet is decoded and shown, in ticks of :data:`COPY_TICKS` since the first packet.

    Attributes:
        decoded: later than that of the packet before.
        shown: not before ``decoded``.
        jumped: whether the stream's own clock has jumped since the packet before.
    """

    decoded: int
    shown: int
    jumped: bool


class PacketClock:
    """Gives the packets of a stream times that a file can hold, whatever the stream's own are.

    They may begin anywhere, wrap, jump, repeat or be missing. Where the stream's clock jumps, the video goes on after
    one usual step; everywhere else, its pace is kept to the tick.

    Args:
        time_base: seconds per tick of the stream.
        reorder: number of pictures that may be decoded before one that is shown earlier: 0 without B-frames.

    Attributes:
        step: ticks between the last two packets.
    """

    def __init__(self, time_base: Fraction, reorder: int) -> None:
        self._scale = time_base * COPY_TICKS
        self._reorder = reorder
        self._newest_shown: deque[int] = deque(maxlen=reorder + 1)
        self.step = USUAL_STEP
        self._last_own: int | None = None  # when the packet before was decoded, by the stream's clock
        self._last = -1
        self._offset = 0  # from the stream's clock to the file's
        self._begun = False

    def time_of(self, pts: int | None, dts: int | None, duration: int | None = None) -> PacketTime:
        """Return the times of the next packet.

        Args:
            pts: when it is shown, in the stream's ticks; None if the stream does not say.
            dts: when it is decoded.
            duration: how long it is shown.
        """
        if not self._begun and duration and duration > 0:
            self.step = max(1, round(duration * self._scale))
        shown_own = None if pts is None else round(pts * self._scale)
        own = self._own_time(shown_own, None if dts is None else round(dts * self._scale))
        jumped = self._follow(own)
        decoded = 0 if not self._begun else self._last + self.step
        if own is not None:
            decoded = own + self._offset
        elif self._last_own is not None:
            self._last_own += self.step
        decoded = max(decoded, self._last + 1)
        shown = decoded if shown_own is None else shown_own + self._offset
        if not decoded <= shown <= decoded + MAX_REORDER_S * COPY_TICKS:
            shown = decoded
        self._begun, self._last = True, decoded
        return PacketTime(decoded, shown, jumped)

    def _own_time(self, shown: int | None, decoded: int | None) -> int | None:
        """Return when a packet is decoded by the stream's clock; without such a time, from those of the pictures."""
        if shown is None:
            return decoded
        self._newest_shown.append(shown)
        if decoded is not None:
            return decoded
        missing = self._reorder + 1 - len(self._newest_shown)
        return min(self._newest_shown) - missing * self.step

    def _follow(self, own: int | None) -> bool:
        """Take the stream's next decoding time; return whether its clock has jumped."""
        if own is None:
            return False
        last, self._last_own = self._last_own, own
        if last is None:
            self._offset = (self._last + self.step if self._begun else 0) - own
            return False
        step = own - last
        if -JUMP_BACK_S * COPY_TICKS < step < JUMP_S * COPY_TICKS:
            if step > 0:
                self.step = step
            return False
        self._offset = self._last + self.step - own
        self._newest_shown.clear()
        return True

"""Reads the packets of a stream ahead of its decoder, so that a slow decoder neither delays nor loses any of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from adafocus_edge.live.packet_copy import copy_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from av.packet import Packet
    from av.video.stream import VideoStream

    from adafocus_edge.live.meters import Counters
    from adafocus_edge.live.packet_copy import PacketCopier

MAX_AHEAD_S = 5.0
"""A packet that waits longer for the decoder is skipped, and all up to the next key frame."""
MAX_AHEAD_BYTES = 1 << 25
POLL_S = 0.1


class PacketsAhead:
    """Gives each packet to a copier as soon as it arrives, and to a decoder when that is ready.

    Args:
        packets: of the opened stream.
        stream: the video track that is copied.
        copier: takes its packets.
        counters: whose ``damaged`` counts the pictures that the decoder will not see.
        stop: ends it.
    """

    def __init__(
        self,
        packets: Iterable[Packet[Any]],
        stream: VideoStream,
        copier: PacketCopier,
        counters: Counters,
        stop: threading.Event,
    ) -> None:
        self._packets, self._stream, self._copier, self._counters = packets, stream, copier, counters
        self._stop, self._closed = stop, False
        self._waiting: deque[tuple[float, Packet[Any]]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._skips = False  # up to the next key frame
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._read, name=f"{threading.current_thread().name} packets", daemon=True
        )

    def __enter__(self) -> PacketsAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._thread.join()  # the container must not be closed before

    def __iter__(self) -> Iterator[Packet[Any]]:
        """Yield the packets of all tracks that are read. Raises what reading them raised."""
        while not self._stop.is_set():
            with self._changed:
                if not self._waiting:
                    if self._over:
                        break
                    self._changed.wait(POLL_S)
                    continue
                _, packet = self._waiting.popleft()
                self._bytes -= packet.size
            yield packet
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            for packet in self._packets:
                if self._closed or self._stop.is_set():
                    break
                if packet.stream_index == self._stream.index and packet.size:
                    self._copier.add(copy_of(packet), self._stream)
                self._keep(packet)
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _keep(self, packet: Packet[Any]) -> None:
        now_s, is_video, skipped = time.monotonic(), packet.stream_index == self._stream.index, 0
        with self._changed:
            if self._waiting and (now_s - self._waiting[0][0] > MAX_AHEAD_S or self._bytes > MAX_AHEAD_BYTES):
                skipped = sum(one.stream_index == self._stream.index for _, one in self._waiting)
                self._waiting.clear()
                self._bytes, self._skips = 0, True
            if is_video and packet.is_keyframe:
                self._skips = False
            if is_video and self._skips:
                skipped += 1
            else:
                self._waiting.append((now_s, packet))
                self._bytes += packet.size
            self._changed.notify_all()
        if skipped:
            self._counters.damaged += skipped
            self._copier.note_skipped()

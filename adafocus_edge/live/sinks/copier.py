"""The copying recorder: stores the packets of sources as they are, in MP4 files with the results beside them."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adafocus_edge.live.fragments import moved, start_of
from adafocus_edge.live.listener import RETRY_S, FragmentSink
from adafocus_edge.live.messages import CopiedVideo, Event, LiveFragment, Message, Notice, ProvisionalResult, Window
from adafocus_edge.live.recordings import Output, RecordingFolder, check_limits
from adafocus_edge.live.result_track import RECORDS, SUBTITLES, Result, ResultTrack
from adafocus_edge.media.packet_clock import COPY_TICKS
from adafocus_edge.system.retention import FailureReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adafocus_edge.model.spec import ModelSpec

RESULTS_WAITING = 512
"""Results of each source that wait for the fragment with their frame, and places in the queue for them."""
ENDED_SERIES = 8
"""Sources that have ended whose frames are remembered."""
PLACED_FRAGMENTS, PLACED_PACKETS = 64, 8192
"""Fragments of each source whose frames are remembered, and more if they have fewer packets than this together: results
that are later are not recorded."""


@dataclass
class _Part:
    """A file that is being written."""

    output: Output
    video: CopiedVideo
    track: ResultTrack
    origin: int  # where it begins, in ticks of its video's boxes
    start: int  # and of its packets
    fragments: int = 0


@dataclass(frozen=True)
class _Placed:
    """Where the packets of a fragment are."""

    part: _Part
    opening: int
    media_s: dict[int, float]  # in the part, by the packets' own times
    captured_s: tuple[float, ...]
    in_order_s: tuple[float, ...]  # in the part, in the order of ``captured_s``


@dataclass
class _Series:
    """The recordings of one source."""

    part: _Part | None = None
    placed: deque[_Placed] = field(default_factory=deque)
    packets: int = 0  # in ``placed``
    by_packet: dict[tuple[int, int], _Placed] = field(default_factory=dict)  # by opening and time of each packet
    results: deque[Result] = field(default_factory=deque)
    ended: bool = False
    last: tuple[_Part, float] | None = None  # place of the last result
    retry_s: float = 0.0  # by time.monotonic


class CopyRecorder(FragmentSink):
    """Records sources without decoding them: ``SOURCE-YYYYmmdd-HHMMSS.mp4``, UTC, with the same packets as the source.

    Beside each file lie the results: as subtitles (``.vtt``) and as JSON lines (``.jsonl``) with ``media_s``, the time
    in the file. A file can be played while it grows, and after a crash except for its last fragment. A new one begins
    at a key frame: after ``rotate_s`` or ``rotate_mb``, and with a new video (another size, a reconnection, a jump of
    the stream's clock). A full disk or a missing folder is reported once, and retried every few seconds; frames until
    then are dropped and counted.

    Args:
        folder: to write into; created if necessary.
        spec: of the model, for the place of a patch in the picture.
        report: is called with one line for each new error.
        rotate_mb: size in megabytes after which a new file begins; exceeded up to the next key frame.
        rotate_s: length after which a new file begins, in seconds.
        keep: number of files per source that are kept, the newest, including the one being written; None for all.
        waiting: maximum number of fragments in the queue, of all sources.

    Raises:
        UsageError: a number is out of range, or ``folder`` is a file.
        AdaFocusError: ``folder`` cannot be written.
    """

    wants = (LiveFragment, ProvisionalResult, Window, Event, Notice)
    local = True

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        report: Callable[[str], None],
        *,
        rotate_mb: float | None = None,
        rotate_s: float | None = 3600.0,
        keep: int | None = None,
        waiting: int = 256,
    ) -> None:
        check_limits(rotate_mb=rotate_mb, rotate_s=rotate_s)
        self._recordings = RecordingFolder(folder, keep, (SUBTITLES, RECORDS))
        self._spec = spec
        self._rotate_bytes = None if rotate_mb is None else rotate_mb * 1e6
        self._rotate_ticks = None if rotate_s is None else rotate_s * COPY_TICKS
        self._series: dict[str, _Series] = {}
        self._outage = FailureReporter(str(folder), report)
        super().__init__(str(folder), waiting + RESULTS_WAITING, report)

    def enqueue(self, message: Message) -> None:
        """Take a fragment, a result, or the loss of a source; see :meth:`Sink.enqueue`."""
        if isinstance(message, LiveFragment):
            self.enqueue_fragment(message)
        elif not isinstance(message, Notice) or message.kind in ("lost", "ended", "failed"):
            super().enqueue(message)

    @property
    def trouble(self) -> str:
        """Why it drops frames."""
        return "cannot be written" if self._outage.lasts else super().trouble

    def process(self, message: Message) -> None:
        """Write a fragment, or keep a result until the fragment with its frame is written."""
        if isinstance(message, LiveFragment):
            self.took_fragment(message)
            series = self._series.setdefault(message.source, _Series())
            series.ended = False
            self._record(series, message)
            return
        if isinstance(message, Notice):
            if message.source in self._series:
                self._end(message)
        elif isinstance(message, (ProvisionalResult, Event)) and message.frame.packet is not None:
            # The first ones come before the first fragment.
            self._wait(self._series.setdefault(message.source, _Series()), message)
        elif isinstance(message, (ProvisionalResult, Window, Event)) and message.source in self._series:
            series = self._series[message.source]
            if not isinstance(message, Window):
                series.results.clear()  # nothing is copied any more
                series.last = None
            elif series.results or series.last is not None:
                self._wait(series, message)

    def _end(self, notice: Notice) -> None:
        """End the file of a source that was lost or has ended; its last results may follow, and find their frames."""
        series = self._series[notice.source]
        self._end_part(series)
        series.ended = notice.kind != "lost"
        ended = [name for name, one in self._series.items() if one.ended]
        for name in ended[:-ENDED_SERIES]:
            del self._series[name]

    def _wait(self, series: _Series, result: Result) -> None:
        """Keep a result until the fragment with its frame is written."""
        series.results.append(result)
        if len(series.results) > RESULTS_WAITING:
            series.results.popleft()
            while series.results and isinstance(series.results[0], Window):  # the glimpse before it was dropped
                series.results.popleft()
        self._place_results(series)

    def finish(self) -> None:
        """Finish all files."""
        for series in self._series.values():
            self._place_results(series)
            self._end_part(series)

    # -- video --------------------------------------------------------------------------------------------------------

    def _record(self, series: _Series, fragment: LiveFragment) -> None:
        if time.monotonic() < series.retry_s:
            self.dropped += self.count(fragment)
            return
        try:
            if series.part is None or self._is_over(series.part, fragment):
                self._end_part(series)
                if not fragment.is_key:  # those before it could not be written
                    self.dropped += self.count(fragment)
                    return
                series.part = self._new_part(fragment)
                series.retry_s = 0.0
            self._write(series.part, fragment)
        except OSError as error:
            self.dropped += self.count(fragment)
            self._give_up(series, error)
            return
        self._outage.worked()
        self._place(series, series.part, fragment)
        self._place_results(series)

    def _is_over(self, part: _Part, fragment: LiveFragment) -> bool:
        """Return whether a new file must begin."""
        if fragment.video is not part.video:
            return True
        is_full = self._rotate_bytes is not None and part.output.size_bytes >= self._rotate_bytes
        is_long = self._rotate_ticks is not None and fragment.start - part.start >= self._rotate_ticks
        return fragment.is_key and (is_full or is_long or part.output.is_deleted())

    def _new_part(self, fragment: LiveFragment) -> _Part:
        output = self._recordings.create(fragment.source, fragment.wall_s)
        try:
            output.write(fragment.video.head)
            track = ResultTrack(output.path, fragment.source, fragment.video, fragment.wall_s, self._spec)
            return _Part(output, fragment.video, track, start_of(fragment.data), fragment.start)
        except BaseException:
            self._recordings.abandon(output)
            raise

    def _write(self, part: _Part, fragment: LiveFragment) -> None:
        before = part.output.size_bytes
        try:
            part.output.write(moved(fragment.data, part.origin))
            part.output.sync()
        except OSError:
            part.output.take_back(before)
            raise
        part.fragments += 1

    def _end_part(self, series: _Series) -> None:
        part, series.part = series.part, None
        if part is None:
            return
        try:
            part.output.close()
            part.track.close()
        except OSError as error:
            self._failed(error)

    def _give_up(self, series: _Series, error: OSError) -> None:
        """Abandon a file that cannot be written, and delete it if nothing is in it."""
        series.retry_s = time.monotonic() + RETRY_S
        self._failed(error)
        part, series.part = series.part, None
        if part is None:
            return
        if part.fragments:
            part.output.close()
        else:
            self._recordings.abandon(part.output)

    def _failed(self, error: OSError) -> None:
        self.failed += 1
        self._outage.failed(f"recordings cannot be written ({error.strerror or error}): retrying every {RETRY_S:g} s")

    # -- results ------------------------------------------------------------------------------------------------------

    def _place(self, series: _Series, part: _Part, fragment: LiveFragment) -> None:
        """Remember where the packets of a fragment are."""
        in_order_s = tuple((shown - part.start) / COPY_TICKS for shown in fragment.shown)
        media_s = {pts: at_s for pts, at_s in zip(fragment.pts, in_order_s, strict=True) if pts is not None}
        placed = _Placed(part, fragment.video.opening, media_s, fragment.captured_s, in_order_s)
        series.placed.append(placed)
        series.by_packet.update(dict.fromkeys(((placed.opening, pts) for pts in media_s), placed))
        series.packets += len(in_order_s)
        while len(series.placed) > PLACED_FRAGMENTS and series.packets > PLACED_PACKETS:
            oldest = series.placed.popleft()
            series.packets -= len(oldest.in_order_s)
            for key in ((oldest.opening, pts) for pts in oldest.media_s):
                if series.by_packet.get(key) is oldest:
                    del series.by_packet[key]

    def _place_results(self, series: _Series) -> None:
        """Write the results whose frames are in a file by now, and those before them that never will be."""
        found: list[tuple[Result, tuple[_Part, float]]] = []
        waiting: list[Result] = []
        for result in series.results:
            place = self._place_of(series, result, follows=not waiting)
            if place is None:
                waiting.append(result)
                continue
            series.last = place
            waiting = []  # their frames were not recorded: frames come in order
            found.append((result, place))
        series.results = deque(waiting)
        while found:
            part = found[0][1][0]
            mine = [(result, place[1]) for result, place in found if place[0] is part]
            found = [one for one in found if one[1][0] is not part]
            try:
                part.track.add(mine)
                if part is not series.part:
                    part.track.close()
            except OSError as error:
                self._failed(error)

    def _place_of(self, series: _Series, result: Result, *, follows: bool) -> tuple[_Part, float] | None:
        """Return the file with the frame of a result, and the time in it, in seconds; None if it is not written yet.

        A window has no frame of its own: it belongs to its last glimpse, the result before it, if that is written
        (``follows``).
        """
        if isinstance(result, Window):
            return series.last if follows else None
        packet = result.frame.packet
        if packet is None:
            return None
        if packet.pts is not None:
            placed = series.by_packet.get((packet.opening, packet.pts))
            return None if placed is None else (placed.part, placed.media_s[packet.pts])
        at_s = result.frame.captured_s
        for placed in reversed(series.placed):
            if placed.opening == packet.opening and placed.captured_s[0] <= at_s <= placed.captured_s[-1]:
                return placed.part, placed.in_order_s[bisect_right(placed.captured_s, at_s) - 1]
        return None

"""Video files as clips: how many frames there are and when, and exactly the requested frames, by seeking to them."""

from __future__ import annotations

import bisect
import itertools
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import av
import numpy as np
from av.codec.context import ThreadType

from adafocus_edge.errors import SourceError
from adafocus_edge.media.containers import (
    open_container,
    open_track,
    pixel_aspect,
    reading_error,
    skip_loop_filter,
    use_threads,
)
from adafocus_edge.media.decode_modes import FILTERING_DECODERS, reached_soonest
from adafocus_edge.media.fields import FieldPairs
from adafocus_edge.media.grey import grey_frame
from adafocus_edge.media.nv12 import NotOnGpuError, codec_of, layout_of
from adafocus_edge.media.orientation import is_sideways, upright
from adafocus_edge.media.packet_times import PacketTimes, check_whole, index_timeline, longest_gap
from adafocus_edge.media.timeline import Timeline, on_one_clock
from adafocus_edge.media.tracks import describe_track, ranked_tracks, requested_track
from adafocus_edge.system.addresses import without_password
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from adafocus_edge.media.decode_modes import DecodeMode
    from adafocus_edge.media.matrices import Decoded
    from adafocus_edge.model.spec import Fit

T = TypeVar("T")
PacketTap = Callable[["Packet[Any]", "VideoStream"], None]

SKIPPING_DECODERS = frozenset(("h264", "hevc", "mpeg4", "mpeg2video"))
"""Decoders that can be asked to skip the frames that no other frame refers to, and nothing else (libdav1d cannot)."""
NEAREST_S = 1.0
NEAREST_FRAMES = 3
"""A frame that cannot be decoded is replaced by the nearest one within this time or number of frames, whichever is
longer.
"""
HELD_BYTES = 1 << 25
"""Frames that were decoded to count them are kept for the first reader, as the decoder returns them, if they take no
more than this: such a file is then decoded once, not twice.
"""


def _close_all(containers: list[InputContainer]) -> None:
    for container in containers:
        container.close()


class VideoFile:
    """A video file, or the HTTP address of one, as a clip of numbered frames.

    Opening it reads the container's index or, without one, its packets. Frames are decoded only if the container's
    times do not find them.

    Args:
        path: the file or address.
        track: the video track to read, from 0; None for the one with the main picture
            (:mod:`adafocus_edge.media.tracks`).
        name: display name; by default the path as given, or the address without its password.
        decode: how the frames that a model sees are chosen and decoded. Frames that must be counted, and all frames in
            order, are always decoded exactly.

    Attributes:
        name: display name.
        address: the path or address itself.
        frame_count: number of frames in the file.
        fps: mean frame rate, or 0 if it is unknown.
        duration_s: seconds from the first frame to the end of the last one.
        is_constant_rate: whether all frames are shown equally long.
        track_note: which of several video tracks was selected; empty if there is only one.
        decode: how it is decoded; ``exact`` if the requested mode has no effect on this file.

    Raises:
        SourceError: it does not exist, is not a video, has no frames, or was cut short.
        ShortageError: this machine is short of memory, threads or open files.
    """

    def __init__(
        self, path: str, track: int | None = None, name: str | None = None, decode: DecodeMode = "exact"
    ) -> None:
        self.name = without_password(path) if name is None else name
        self.address = path
        self._held: list[VideoFrame] | None = None
        self._unread: list[InputContainer] = []
        with ExitStack() as opened:
            container = opened.enter_context(self._open())
            tracks = [requested_track(container, self.name, track)] if track is not None else ranked_tracks(container)
            if not tracks:
                raise SourceError(f"{self.name}: no video in this file (only sound, subtitles or a cover picture)")
            for stream in tracks:
                self._open_track(container, stream)
                self.frame_count = len(self._timeline.times)
                if self.frame_count or stream is tracks[-1]:
                    break
                container.seek(0)
            self.track_note = describe_track(container, stream)
            has_filter = stream.codec_context.codec.name in FILTERING_DECODERS
            if self._is_unread:
                self._unread.append(container)
                # A container and its streams hold each other: without this, the file would stay open for a while.
                weakref.finalize(self, _close_all, self._unread)
                opened.pop_all()
        if self.frame_count == 0:
            raise SourceError(f"{self.name}: the video holds no frames")
        is_exact = self.is_counted or (decode == "unfiltered" and not has_filter)
        self.decode: DecodeMode = "exact" if is_exact else decode
        self.is_constant_rate = self._timeline.is_constant_rate(self._time_base)
        self.duration_s: float | None = self.time_s(self.frame_count - 1) + self._last_frame_s()

    def _open_track(self, container: InputContainer, stream: VideoStream) -> None:
        self._track = stream.index
        stream = self._stream(container)
        self._time_base = stream.time_base or Fraction(1, av.time_base)
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else 0.0
        self._timeline = self._read_timeline(container, stream)
        clock = self._timeline.clock
        if self._timeline.in_fields and clock is not None and len(clock) > 1:  # containers may store the rate of fields
            self.fps = float((len(clock) - 1) / ((clock[-1] - clock[0]) * self._time_base))

    def _last_frame_s(self) -> float:
        """Return how long the last frame is shown: as the file defines it, or one frame at its mean rate."""
        if self._timeline.last_ticks is not None:
            return float(self._timeline.last_ticks * self._time_base)
        return 1 / self.fps if self.fps else 0.0

    def time_s(self, index: int) -> float:
        """Return when frame ``index`` is shown, in seconds after the first frame."""
        clock = self._timeline.clock
        if clock is None:
            return index / self.fps if self.fps else 0.0
        return float((clock[index] - clock[0]) * self._time_base)

    @cached_property
    def sample_aspect(self) -> Fraction:
        """The width of a displayed pixel over its height: 1 for most videos."""
        with self._to_read() as container:
            stream = self._stream(container)
            if pixel_aspect(stream.sample_aspect_ratio, sideways=False) == 1:
                return Fraction(1)
            frame = next(self._decode(container, stream), None)
            return pixel_aspect(stream.sample_aspect_ratio, sideways=frame is not None and is_sideways(frame))

    def cheaper_indices(self, usual: Sequence[int], parts_of: Callable[[int], Sequence[int]]) -> list[int]:
        """Return the frames to see instead of the usual ones: others if only ``key-frames`` are decoded.

        See :func:`adafocus_edge.media.decode_modes.reached_soonest`.
        """
        if self.decode != "key-frames":
            return list(usual)
        return reached_soonest(usual, self.frame_count, self._timeline.keys, parts_of)

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Decode the frames with these numbers as RGB; see :meth:`select_decoded`.

        Args:
            indices: rising frame numbers; a repeated one is decoded once.
            convert: applied to each RGB frame, uint8 [H, W, 3], in the thread that decoded it.

        Yields:
            each frame's number and what ``convert`` returned, in the order of ``indices``.
        """
        yield from self.select_decoded(indices, lambda frame: convert(upright(frame)))

    def select_grey(self, indices: Sequence[int], size: int, fit: Fit) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode the frames with these numbers as luminance at a model's size: :func:`grey.grey_frame`."""
        yield from self.select_decoded(indices, lambda frame: grey_frame(frame, size, fit))

    def select_decoded(self, indices: Sequence[int], convert: Callable[[VideoFrame], T]) -> Iterator[tuple[int, T]]:
        """Decode the frames with these numbers, and no others than decoding them requires.

        Frames that share a key frame are decoded in one run, and runs that nearly touch in one go. They are spread
        over the cores.

        Args:
            indices: rising frame numbers; a repeated one is decoded once.
            convert: applied to each frame in the thread that decoded it.

        Yields:
            each frame's number and what ``convert`` returned, in the order of ``indices``.
        """
        runs = self._timeline.join_runs(self._timeline.runs(sorted(set(indices))))
        wanted = iter(indices)
        index = next(wanted, None)
        for found, made in self._decode_runs(runs, convert):
            while index is not None and index == found:
                yield found, made
                index = next(wanted, None)

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode all frames in order; yield each one's number and RGB pixels, uint8 [H, W, 3]."""
        for index, frame in self.pictures():
            yield index, upright(frame)

    def pictures(self, on_packet: PacketTap = lambda _packet, _stream: None) -> Iterator[tuple[int, VideoFrame]]:
        """Decode all frames in order; yield each one's number and the frame, which :func:`upright` converts to RGB.

        Args:
            on_packet: is called with each packet once it is decoded, and with its track.
        """
        self._held = None
        with self._to_read() as container:
            stream = self._stream(container)
            use_threads(stream)
            for index, frame in enumerate(self._decode(container, stream, on_packet)):
                yield min(index, self.frame_count - 1), frame

    def packets(self) -> Iterator[tuple[VideoStream, Packet[Any]]]:
        """Read all packets in decoding order; yield each with its track, and an empty packet at the end."""
        with self._to_read() as container:
            stream = self._stream(container)
            try:
                for packet in container.demux(stream):
                    yield stream, packet
            except av.error.FFmpegError as error:
                raise self.reading_error(error) from None

    @property
    def is_counted(self) -> bool:
        """Whether frames are found by counting instead of by their times."""
        return self._timeline.counted or self._timeline.in_fields

    def index_at(self, time: int) -> int | None:
        """Return the number of the frame that a presentation time in the track's ticks means, or None if no frame."""
        return self._timeline.index_at(time)

    def nv12(self) -> Decoded:
        """Return the layout in which a GPU decodes this video. Raises ``NotOnGpuError`` if the CPU has to decode it."""
        with self._to_read() as container:
            taken = self._stream(container)
            codec_of(taken.codec_context.name)
            if FieldPairs(taken.codec_context).possible:
                raise NotOnGpuError("it may hold fields, which the GPU would deinterlace")
            if container.streams.best("video") != taken:
                raise NotOnGpuError("the GPU's decoder would select another of its video tracks")
            frame = next(self._decode(container, taken), None)
        if frame is None:
            raise SourceError(f"{self.name}: the video holds no frames")
        return layout_of(frame)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> InputContainer:
        return open_container(self.address, self.name)

    def _to_read(self) -> InputContainer:
        """Return a container to read from its start: for the first reader the one whose index was read, if it was.

        To open a file takes as long as to decode a few frames of it: FFmpeg looks at its first packets each time.
        """
        try:
            return self._unread.pop()
        except IndexError:
            return self._open()

    def reading_error(self, error: av.error.FFmpegError) -> SourceError:
        """Return the error for reading or decoding that failed half way; see :func:`containers.reading_error`."""
        return reading_error(self.address, self.name, error)

    def _stream(self, container: InputContainer) -> VideoStream:
        """Return the track that is read, of a container that was just opened."""
        return open_track(container, self.name, self._track)

    def _read_timeline(self, container: InputContainer, stream: VideoStream) -> Timeline:
        self._is_unread = False
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            # AVI stores no presentation times, and with B-frames its packets are out of order and partly empty.
            return self._count(has_times=False)
        if "://" not in self.address:
            check_whole(self.address, self.name, container, stream)
        if stream.codec_context.pix_fmt == "pal8":
            # The palette comes with the first packet only, and a seek loses it.
            return self._count()
        fields = FieldPairs(stream.codec_context)
        indexed = None if fields.possible else index_timeline(stream)
        self._is_unread = indexed is not None and "://" not in self.address
        timeline = indexed or self._packet_timeline(container, stream, fields)
        # If packets hold fields, their durations are those of fields.
        return replace(timeline, in_fields=True, last_ticks=None) if fields.found else timeline

    def _packet_timeline(self, container: InputContainer, stream: VideoStream, fields: FieldPairs) -> Timeline:
        """Return the timeline from the packets' times; decode and count frames only where the times do not suffice."""
        try:
            packets = PacketTimes.read(container.demux(stream), fields)
        except av.error.FFmpegError as error:
            raise self.reading_error(error) from None
        if packets.untimed:
            return self._count(has_times=False)
        if not packets.times:
            return Timeline([], [])
        if "://" in self.address:
            packets.check_served(self.name, container, self._time_base)
        if packets.was_reset:
            return self._count()
        packets.check_avi(self.name, container, stream)
        return packets.timeline(container, stream, self._time_base) or self._count(has_times=False)

    def _count(self, *, has_times: bool = True) -> Timeline:
        """Decode the whole file once to find how many frames it has, and when they are shown."""
        with self._open() as container:
            stream = self._stream(container)
            use_threads(stream)
            frames = []
            held, size = [], 0
            for frame in self._decode(container, stream):
                frames.append((frame.pts, frame.duration))
                size += sum(plane.buffer_size for plane in frame.planes)
                if size <= HELD_BYTES:
                    held.append(frame)
                else:
                    held.clear()
            longest = longest_gap(container, self._time_base)
        self._held = held if len(held) == len(frames) else None
        numbers = [*range(len(frames))]
        times = [pts for pts, _ in frames if pts is not None]
        if not has_times or not times or len(times) < len(frames):
            return Timeline(numbers, [0], counted=True)
        clock = on_one_clock(times, longest)
        rising = all(before < after for before, after in pairwise(clock))
        return Timeline(numbers, [0], clock if rising else None, counted=True, last_ticks=frames[-1][1] or None)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(
        self, container: InputContainer, stream: VideoStream, on_packet: PacketTap = lambda _packet, _stream: None
    ) -> Iterator[VideoFrame]:
        try:
            for packet in container.demux(stream):
                frames = packet.decode()
                on_packet(packet, stream)
                yield from frames
        except av.error.FFmpegError as error:
            raise self.reading_error(error) from None

    def _decode_runs(self, runs: list[list[int]], convert: Callable[[VideoFrame], T]) -> Iterator[tuple[int, T]]:
        workers = min(usable_cores(), len(runs))
        if workers == 1:
            with self._to_read() as container:
                for run in runs:
                    for index, frame in self._decode_run(container, run, threads=1 if usable_cores() == 1 else 0):
                        yield index, convert(frame)
            return
        # One container and one single-threaded decoder per worker: a decoder's own threads only pay on long runs.
        containers = deque(self._to_read() for _ in range(workers))

        def work(run: list[int]) -> list[tuple[int, T]]:
            container = containers.pop()
            try:
                return [(index, convert(frame)) for index, frame in self._decode_run(container, run, threads=1)]
            finally:
                containers.append(container)

        pending: deque[Future[list[tuple[int, T]]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                waiting = iter(runs)
                for run in waiting:
                    pending.append(pool.submit(work, run))
                    # Decode only a little ahead of the reader, which may stop early.
                    if len(pending) > workers:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
                pool.shutdown(wait=True)
                for container in containers:
                    container.close()

    def _decode_run(self, container: InputContainer, run: list[int], threads: int) -> Iterator[tuple[int, VideoFrame]]:
        """Decode the frames of one run: rising numbers that share one key frame."""
        timeline = self._timeline
        if timeline.counted:
            yield from self._decode_by_count(container, run)
            return
        found = 0
        with ExitStack() as opened:
            for start in timeline.seek_targets(run[0]):
                if start is None:
                    container = opened.enter_context(self._open())
                stream = self._stream(container)
                if not stream.codec_context.is_open:
                    stream.codec_context.thread_type = ThreadType.AUTO
                    stream.codec_context.thread_count = threads
                    if self.decode == "unfiltered":
                        skip_loop_filter(stream)
                if start is not None:
                    container.seek(start, stream=stream, backward=True)
                for number, frame in enumerate(self._decode_from_here(container, stream, run)):
                    time = cast("int", frame.pts)
                    if number == 0 and time > timeline.latest(run[0]):
                        break  # the seek landed behind the frame: begin earlier
                    while found < len(run) and timeline.earliest(run[found]) <= time <= timeline.latest(run[found]):
                        yield run[found], frame
                        found += 1
                    if found == len(run):
                        return
                    if found and time > timeline.latest(run[found]):
                        break  # decoding has passed the frame without returning it
                if found:
                    break
        yield from self._decode_to_nearest(run[found:])

    def _decode_to_nearest(self, run: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the nearest decodable frame for each frame that has a packet but was not returned by the decoder.

        Decodes the whole file. Raises ``SourceError`` if no frame is near enough: the file is damaged.
        """
        times, usual = self._timeline.times, 1 / self.fps if self.fps else 0.0
        reach = float(max(NEAREST_S, NEAREST_FRAMES * usual) / self._time_base)
        wanted, before = deque(run), None
        with self._to_read() as container:
            stream = self._stream(container)
            use_threads(stream)
            for frame in itertools.chain(self._decode(container, stream), [None]):
                if frame is not None and frame.pts is None:
                    continue
                while wanted and (frame is None or cast("int", frame.pts) >= times[wanted[0]]):
                    near = [each for each in (before, frame) if each is not None]
                    distances = [abs(cast("int", each.pts) - times[wanted[0]]) for each in near]
                    if not near or min(distances) > reach:
                        raise SourceError(
                            f"{self.name}: frame {wanted[0]} of {self.frame_count} cannot be decoded: the file is "
                            "damaged or cut short"
                        )
                    yield wanted.popleft(), near[distances.index(min(distances))]
                before = frame
                if not wanted:
                    return

    def _decode_by_count(self, container: InputContainer, run: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        held, self._held = self._held, None
        if held is not None:
            yield from ((index, held[index]) for index in run)
            return
        stream = self._stream(container)
        use_threads(stream)
        wanted = set(run)
        for index, frame in enumerate(self._decode(container, stream)):
            if index in wanted:
                yield index, frame
            if index == run[-1]:
                return

    def _decode_from_here(self, container: InputContainer, stream: VideoStream, run: list[int]) -> Iterator[VideoFrame]:
        """Decode from the current key frame until the decoder has received everything that the run needs.

        Frames that no other frame refers to (most B-frames) are skipped unless they are wanted, which changes no
        pixel of the others.
        """
        timeline = self._timeline
        context = stream.codec_context
        skips = context.codec.name in SKIPPING_DECODERS and not timeline.in_fields
        unwanted: Literal["NONREF", "DEFAULT"] = "NONREF" if skips else "DEFAULT"
        reach = [timeline.earliest(index) for index in run]
        missing = set(run)
        try:
            for packet in container.demux(stream):
                time = packet.pts if packet.pts is not None else packet.dts
                if packet.size == 0 or (not missing and not timeline.in_fields):
                    break
                candidate = bisect.bisect_right(reach, time) - 1 if time is not None else -1
                wanted = candidate >= 0 and time is not None and time <= timeline.latest(run[candidate])
                if wanted:
                    missing.discard(run[candidate])
                context.skip_frame = "DEFAULT" if wanted else unwanted
                yield from (frame for frame in context.decode(packet) if frame.pts is not None)
            yield from (frame for frame in context.decode(None) if frame.pts is not None)
        except av.error.FFmpegError as error:
            raise self.reading_error(error) from None

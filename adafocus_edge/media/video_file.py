"""Video files: how many frames there are and when, and just the frames that are asked for, by seeking to them."""

from __future__ import annotations

import bisect
import itertools
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import av
import numpy as np
from av.codec.context import ThreadType

from adafocus_edge.errors import ShortageError, SourceError
from adafocus_edge.media.fields import FieldPairs
from adafocus_edge.media.images import LARGEST_IMAGE
from adafocus_edge.media.matroska import matroska_end
from adafocus_edge.media.nv12 import NotOnGpuError, codec_of, layout_of
from adafocus_edge.media.orientation import is_sideways, upright
from adafocus_edge.media.timeline import LONGEST_GAP_S, ROUNDING_TICKS, Timeline, on_one_clock
from adafocus_edge.media.tracks import asked_track, describe_track, ranked_tracks, read_only
from adafocus_edge.system.addresses import conceal, encoding_hint, shown_argument, without_password
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from adafocus_edge.media.matrices import Decoded

T = TypeVar("T")

ADDRESS_LISTS = frozenset(("concat", "vobsub", "webm_dash_manifest", "dash", "imf"))
FILE_LISTS = ADDRESS_LISTS | {"hls", "sdp", "rtsp", "rtp", "sap"}
"""Demuxers of what names other files to read: never of an address, and never of a file. Streams do need some."""
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Titles in old files are often not UTF-8; nothing here reads them. PyAV 19 takes them as they are."""
SKIPPING_DECODERS = frozenset(("h264", "hevc", "mpeg4", "mpeg2video"))
"""Decoders that leave out frames which no other refers to, and nothing else, when told to (libdav1d does not)."""
NOT_VIDEO = frozenset(("tty", "image2", "bin", "xbin", "adf", "idf"))
"""Demuxers that take any text, or a single picture, for a video."""
NEAREST_S = 1.0
NEAREST_FRAMES = 3
"""A frame that cannot be decoded may be stood for by one so near in time: the longer of both."""
SHORTEST_SHARE = 0.95
"""A served file of less than this share of its declared duration was cut short."""
READ_TIMEOUT_S = 20.0
"""A server of a file must answer within this time."""
SEEK_FRAMES = 2
"""Decoding on in a thread costs no more than seeking where so many frames or fewer lie between: a seek costs 1 to 2."""
HELD_BYTES = 1 << 25
"""Frames of a file that must be counted are kept for the first reader where they take no more, as the decoder gives
them: such a file is then decoded once, not twice."""


def pixel_aspect(aspect: Fraction | None, sideways: bool) -> Fraction:
    """Return a shown pixel's width over its height, from what a stream says of stored ones (None or 0: nothing)."""
    if not aspect or aspect < 0:
        return Fraction(1)
    return 1 / aspect if sideways else aspect


def limits(lists: frozenset[str]) -> dict[str, str]:
    """Return FFmpeg's options against what names other files, by its demuxer, and against pictures that fill memory."""
    allowed = sorted(av.formats_available - lists)
    return {"format_whitelist": ",".join(allowed), "max_pixels": str(LARGEST_IMAGE)}


def use_threads(stream: VideoStream) -> None:
    """Let a stream's decoder use as many threads as this process may: FFmpeg's own choice is one per core there is."""
    stream.thread_type = "AUTO"
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1 if usable_cores() == 1 else 0


def limit_pictures(stream: VideoStream) -> None:
    """Let a stream's decoder refuse pictures that fill memory: a small file may hold them."""
    if not stream.codec_context.is_open:
        stream.codec_context.options = {"max_pixels": str(LARGEST_IMAGE)}


def rough_shape(path: str) -> tuple[int, int, int]:
    """Return about how many frames a video file has, their width and height, from its head; zeros if it cannot be read.

    Nothing is decoded, and few packets are read.
    """
    try:
        with av.open(f"file:{path}", options=limits(FILE_LISTS), **OPEN_OPTIONS) as container:
            stream = next(iter(ranked_tracks(cast("InputContainer", container))), None)
            if stream is None or stream.codec_context is None:
                return 0, 0, 0
            rate = stream.average_rate or stream.guessed_rate or 0
            duration_s = (container.duration or 0) / av.time_base
            # Some containers list key frames only, and few say how many frames there are.
            count = stream.frames or max(len(stream.index_entries), round(duration_s * rate))
            return count, stream.width, stream.height
    except (av.error.FFmpegError, ValueError, OSError):
        return 0, 0, 0


class _Clock:
    """Notices where the clock of a file's packets, which come in decoding order, is set back."""

    def __init__(self) -> None:
        self.was_set_back = False
        self._newest: int | None = None
        self._decoded_at: int | None = None

    def read(self, packet: Packet[Any], time: int) -> None:
        """Read the next packet, which is shown at ``time``."""
        # All that is decoded before a key frame is shown before it, but for a clock that was set back.
        late = self._newest is not None and time <= self._newest
        fell = packet.dts is not None and self._decoded_at is not None and packet.dts < self._decoded_at
        self.was_set_back = self.was_set_back or (late and (fell or packet.is_keyframe))
        self._newest = time if self._newest is None else max(self._newest, time)
        self._decoded_at = packet.dts if packet.dts is not None else self._decoded_at


class VideoFile:
    """One video file (or an HTTP address of one) as a clip of numbered frames.

    Opening it reads the container's index, or, where there is none, its packets; nothing is decoded, unless the
    container's times do not find its frames. Raises ``SourceError`` for what is missing, no video, without a frame, or
    cut short.

    Args:
        path: of the file, or its address.
        track: the video track to read, from 0; None for the one with the main picture
            (:mod:`adafocus_edge.media.tracks`).
        name: how it is shown; by default as the path was given, an address without its password.

    Attributes:
        name: how it is shown.
        address: the path or address itself.
        frame_count: frames in the file.
        fps: mean frame rate, or 0 where it is unknown.
        duration_s: seconds from the first frame to the end of the last one.
        is_constant_rate: whether all frames are shown equally long.
        track_note: which of several video tracks was taken; empty if there is one.
    """

    def __init__(self, path: str, track: int | None = None, name: str | None = None) -> None:
        self.name = without_password(path) if name is None else name
        self.address = path
        self._held: list[VideoFrame] | None = None
        with self._open() as container:
            tracks = [asked_track(container, self.name, track)] if track is not None else ranked_tracks(container)
            if not tracks:
                raise SourceError(f"{self.name}: no video in it (sound, subtitles or a still cover only)")
            for stream in tracks:
                self._open_track(container, stream)
                self.frame_count = len(self._timeline.times)
                if self.frame_count or stream is tracks[-1]:
                    break
                container.seek(0)
            self.track_note = describe_track(container, stream)
        if self.frame_count == 0:
            raise SourceError(f"{self.name}: the video holds no frames")
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
        if self._timeline.in_fields and clock is not None and len(clock) > 1:  # containers may give the rate of fields
            self.fps = float((len(clock) - 1) / ((clock[-1] - clock[0]) * self._time_base))

    def _last_frame_s(self) -> float:
        """How long the last frame is shown: as the file says, or as at its mean rate."""
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
        """A shown pixel's width over its height: 1 for most videos."""
        with self._open() as container:
            stream = self._stream(container)
            if pixel_aspect(stream.sample_aspect_ratio, sideways=False) == 1:
                return Fraction(1)
            frame = next(self._decode(container, stream), None)
            return pixel_aspect(stream.sample_aspect_ratio, sideways=frame is not None and is_sideways(frame))

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Decode the frames with these numbers and no more than they need.

        Frames that share a key frame are decoded in one go; such runs are spread over the cores. ``convert`` is
        applied to each RGB frame, uint8 [H, W, 3], in the thread that decoded it.

        Args:
            indices: rising frame numbers; a repeated one is decoded once.
            convert: what to make of each frame.

        Yields:
            the number and what was made of the frame, in the order asked for.
        """
        runs = self._runs(sorted(set(indices)))
        if usable_cores() == 1:
            runs = self._joined(runs)
        wanted = iter(indices)
        index = next(wanted, None)
        for found, made in self._decode_runs(runs, convert):
            while index is not None and index == found:
                yield found, made
                index = next(wanted, None)

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode all frames in order; yield number and RGB, uint8 [H, W, 3]."""
        for index, frame in self.pictures():
            yield index, upright(frame)

    def pictures(self) -> Iterator[tuple[int, VideoFrame]]:
        """Decode all frames in order; yield number and the frame, of which :func:`upright` makes RGB."""
        self._held = None
        with self._open() as container:
            stream = self._stream(container)
            use_threads(stream)
            for index, frame in enumerate(self._decode(container, stream)):
                yield min(index, self.frame_count - 1), frame

    def packets(self) -> Iterator[tuple[VideoStream, Packet[Any]]]:
        """Read all packets in decoding order; yield each with its track, at the end an empty one."""
        with self._open() as container:
            stream = self._stream(container)
            try:
                for packet in container.demux(stream):
                    yield stream, packet
            except av.error.FFmpegError as error:
                raise self.broken(error) from None

    @property
    def is_counted(self) -> bool:
        """Whether frames are found by counting them, not by their times."""
        return self._timeline.counted or self._timeline.in_fields

    def index_at(self, time: int) -> int | None:
        """Return the number of the frame that is shown at a time in the track's ticks, or None if there is none."""
        near = bisect.bisect_left(self._timeline.times, time)
        candidates = [index for index in (near - 1, near) if 0 <= index < self.frame_count]
        return next((index for index in candidates if self._earliest(index) <= time <= self._latest(index)), None)

    def nv12(self) -> Decoded:
        """Return the layout in which a GPU decodes this video. Raises ``NotOnGpuError`` where the CPU has to."""
        with self._open() as container:
            taken = self._stream(container)
            codec_of(taken.codec_context.name)
            if FieldPairs(taken.codec_context).possible:
                raise NotOnGpuError("it may hold fields, which the GPU would deinterlace")
            if container.streams.best("video") != taken:
                raise NotOnGpuError("the GPU's decoder would take another of its video tracks")
            frame = next(self._decode(container, taken), None)
        if frame is None:
            raise SourceError(f"{self.name}: the video holds no frames")
        return layout_of(frame)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> InputContainer:
        if "://" not in self.address:
            path = Path(self.address)
            try:
                there = path.exists()
            except OSError as error:  # as of a name that is too long
                raise SourceError(f"{self.name}: {error.strerror}") from None
            if not there:
                raise SourceError(f"{shown_argument(self.name)}: no such file")
            if not path.is_file():
                raise SourceError(f"{self.name}: not a regular file, so it cannot be read at any place: save it first")
            if path.stat().st_size == 0:
                raise SourceError(f"{self.name}: the file is empty")
        try:
            if "://" in self.address:
                options = limits(ADDRESS_LISTS)
                container = av.open(self.address, options=options, timeout=READ_TIMEOUT_S, **OPEN_OPTIONS)
            else:  # the prefix keeps a colon in the name from looking like a protocol
                container = av.open(f"file:{self.address}", options=limits(FILE_LISTS), **OPEN_OPTIONS)
            if container.format.name in NOT_VIDEO or container.format.name.endswith("_pipe"):
                container.close()
                raise SourceError(f"{self.name}: not a video (frames as images go into a folder, which is then a clip)")
            return cast("InputContainer", container)
        except av.error.PermissionError:
            raise SourceError(f"{self.name}: no permission to read it{encoding_hint(self.address)}") from None
        except av.error.ArgumentError:
            hint = encoding_hint(self.address) or " (what lists other files is not followed: name those)"
            raise SourceError(f"{self.name}: not a video that can be read{hint}") from None
        except av.error.ExitError:
            hint = encoding_hint(self.address)
            raise SourceError(f"{self.name}: no answer for {READ_TIMEOUT_S:.0f} s{hint}") from None
        except (av.error.FFmpegError, ValueError, OSError) as error:
            if "://" not in self.address:
                ShortageError.check(self.name, error)
            reason = getattr(error, "strerror", None) or conceal(str(error), self.address)
            hint = encoding_hint(self.address)
            raise SourceError(f"{self.name}: not a video that can be read, or cut short ({reason}){hint}") from None

    def broken(self, error: av.error.FFmpegError) -> SourceError:
        """Say that reading or decoding failed half way. Raises ``ShortageError`` if that is no fault of the video."""
        if "://" in self.address:
            return SourceError(
                f"{self.name}: cannot be read on ({error.strerror}): its server may not serve parts of a file (HTTP "
                "ranges); download it and classify the file"
            )
        ShortageError.check(self.name, error)
        return SourceError(f"{self.name}: damaged or cut short ({error.strerror})")

    def _stream(self, container: InputContainer) -> VideoStream:
        """Return the track that is read, of a container that was just opened, and let the others be skipped."""
        stream = cast("VideoStream", container.streams[self._track])
        if stream.codec_context is None:
            raise SourceError(f"{self.name}: no decoder here for its video codec")
        if stream.width * stream.height > LARGEST_IMAGE:
            raise SourceError(f"{self.name}: {stream.width} x {stream.height} pixels are too many for a frame")
        limit_pictures(stream)
        read_only(container, [stream])
        return stream

    def _read_timeline(self, container: InputContainer, stream: VideoStream) -> Timeline:
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            # AVI stores no presentation times, and with B-frames its packets are out of order and partly empty.
            return self._count(has_times=False)
        if "://" not in self.address:
            self._check_whole(container, stream)
        fields = FieldPairs(stream.codec_context)
        indexed = None if fields.possible else self._timeline_of_index(stream)
        timeline = indexed or self._timeline_of_packets(container, stream, fields)
        # The length of a packet is that of a field then.
        return replace(timeline, in_fields=True, last_ticks=None) if fields.found else timeline

    def _check_whole(self, container: InputContainer, stream: VideoStream) -> None:
        """Refuse a file that ends before the last frame its index lists, or before the end that its head gives."""
        have = os.path.getsize(self.address)
        if container.format.name.startswith("matroska"):
            end = matroska_end(Path(self.address))
            if end is not None and end > have:
                raise SourceError(f"{self.name}: cut short: {have} of its {end} bytes are there")
            return
        entries = stream.index_entries
        there = sum(entry.pos + entry.size <= have for entry in entries)
        if there < len(entries):
            raise SourceError(f"{self.name}: cut short: {there} of its {len(entries)} frames are there")

    def _timeline_of_index(self, stream: VideoStream) -> Timeline | None:
        """Use the container's index, if it lists every frame and its decoding times stand for presentation times.

        They do at a constant rate, but for a fixed delay, and where frames are decoded in the order they are shown in.
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

    def _timeline_of_packets(self, container: InputContainer, stream: VideoStream, fields: FieldPairs) -> Timeline:
        """Read every packet's times without decoding any. What comes before the first key frame cannot be decoded."""
        lasting: dict[int, int] = {}
        times: list[int] = []
        keys: list[int] = []
        untimed = False
        clock = _Clock()
        try:
            for packet in container.demux(stream):
                if packet.size > 0 and fields.possible and fields.is_second(packet):
                    continue
                time = packet.pts if packet.pts is not None else packet.dts
                if time is None:
                    untimed = untimed or packet.size > 0
                    continue
                clock.read(packet, time)
                if packet.is_keyframe:
                    keys.append(time)
                # An edit list discards frames that others need; they are decoded and not shown.
                if keys and packet.size > 0 and not packet.is_discard:
                    times.append(time)
                    lasting[time] = packet.duration or 0
        except av.error.FFmpegError as error:
            raise self.broken(error) from None
        if untimed:  # a bare stream of H.264 or HEVC
            return self._count(has_times=False)
        if not times:
            return Timeline([], [])
        if "://" in self.address:
            self._check_duration(container, times, lasting)
        if clock.was_set_back:  # joined recordings: a time may stand for two frames
            return self._count()
        # AVI counts in frames, and leaves out the packets of frames that a capture dropped.
        if container.format.name == "avi" and times[-1] + 1 < stream.frames:
            raise SourceError(f"{self.name}: cut short: {times[-1] + 1} of its {stream.frames} frames are there")
        # Open groups of pictures: frames shown before the first key frame depend on ones that are not there.
        shown = sorted(time for time in times if time >= keys[0])
        if any(before == after for before, after in pairwise(shown)):
            # Badly rounded streams: times do not tell frames apart, so count them.
            return self._count(has_times=False)
        starts = sorted({min(bisect.bisect_left(shown, time), len(shown) - 1) for time in keys})
        keys = [0, *(start for start in starts if start > 0)]
        one_clock = on_one_clock(shown, self._longest_gap(container))
        last = lasting[shown[-1]]
        if stream.frames and stream.duration:  # MP4: its packets last as long as decoding waits, not as they are shown
            last = (stream.start_time or 0) + stream.duration - shown[-1]
        return Timeline(shown, keys, one_clock, last_ticks=last if last > 0 else None)

    def _check_duration(self, container: InputContainer, times: list[int], lasting: dict[int, int]) -> None:
        """Refuse a Matroska file of a server that ends long before the duration in its head."""
        if not container.format.name.startswith("matroska") or not container.duration:
            return
        promised_s = container.duration / av.time_base
        # The last frame may be shown for as long as any.
        longest = max([lasting[max(times)], *(after - before for before, after in pairwise(sorted(times)))])
        found_s = float((max(times) + longest) * self._time_base)
        if found_s + 0.25 < promised_s * SHORTEST_SHARE:
            raise SourceError(f"{self.name}: cut short: {found_s:.1f} of its {promised_s:.1f} s are there")

    def _longest_gap(self, container: InputContainer) -> float:
        """How many ticks two frames may be apart on one clock."""
        may_jump = bool(cast("Any", container.format.flags) & av.format.Flags.ts_discont.value)
        return float(LONGEST_GAP_S / self._time_base) if may_jump else float("inf")

    def _count(self, *, has_times: bool = True) -> Timeline:
        """Decode everything once, from the start, to know how many frames there are, and when."""
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
            longest = self._longest_gap(container)
        self._held = held if len(held) == len(frames) else None
        numbers = [*range(len(frames))]
        times = [pts for pts, _ in frames if pts is not None]
        if not has_times or not times or len(times) < len(frames):
            return Timeline(numbers, [0], counted=True)
        clock = on_one_clock(times, longest)
        rising = all(before < after for before, after in pairwise(clock))
        return Timeline(numbers, [0], clock if rising else None, counted=True, last_ticks=frames[-1][1] or None)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        try:
            yield from container.decode(stream)
        except av.error.FFmpegError as error:
            raise self.broken(error) from None

    def _runs(self, indices: list[int]) -> list[list[int]]:
        """Group frame numbers by the key frame that decoding must begin at."""
        runs: dict[int, list[int]] = {}
        for index in indices:
            key = bisect.bisect_right(self._timeline.keys, index)
            runs.setdefault(key, []).append(index)
        return list(runs.values())

    def _joined(self, runs: list[list[int]]) -> list[list[int]]:
        """Join runs between which decoding on costs one thread no more than a seek: :data:`SEEK_FRAMES`.

        So what needs about every frame is decoded once and in order, and what needs few is sought.
        """
        keys = self._timeline.keys
        joined = runs[:1]
        for run in runs[1:]:
            key = keys[bisect.bisect_right(keys, run[0]) - 1]
            if key - joined[-1][-1] <= SEEK_FRAMES + 1:
                joined[-1] = joined[-1] + run
            else:
                joined.append(run)
        return joined

    def _decode_runs(self, runs: list[list[int]], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        workers = min(usable_cores(), len(runs))
        if workers == 1:
            with self._open() as container:
                for run in runs:
                    for index, frame in self._decode_run(container, run, threads=1 if usable_cores() == 1 else 0):
                        yield index, convert(upright(frame))
            return
        # One container and one single-threaded decoder per worker: a decoder's own threads only pay on long runs.
        containers = deque(self._open() for _ in range(workers))

        def work(run: list[int]) -> list[tuple[int, T]]:
            container = containers.pop()
            try:
                return [
                    (index, convert(upright(frame))) for index, frame in self._decode_run(container, run, threads=1)
                ]
            finally:
                containers.append(container)

        pending: deque[Future[list[tuple[int, T]]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                waiting = iter(runs)
                for run in waiting:
                    pending.append(pool.submit(work, run))
                    # Only a little ahead of the reader, who may stop early.
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
        """Decode the frames of one run: rising numbers behind one key frame."""
        if self._timeline.counted:
            yield from self._decode_by_count(container, run)
            return
        found = 0
        with ExitStack() as opened:
            for start in self._starting_points(run[0]):
                if start is None:
                    container = opened.enter_context(self._open())
                stream = self._stream(container)
                if not stream.codec_context.is_open:
                    stream.codec_context.thread_type = ThreadType.AUTO
                    stream.codec_context.thread_count = threads
                if start is not None:
                    container.seek(start, stream=stream, backward=True)
                for number, frame in enumerate(self._decode_from_here(container, stream, run)):
                    time = cast("int", frame.pts)
                    if number == 0 and time > self._latest(run[0]):
                        break  # the seek landed behind it: begin earlier
                    while found < len(run) and self._earliest(run[found]) <= time <= self._latest(run[found]):
                        yield run[found], frame
                        found += 1
                    if found == len(run):
                        return
                    if found and time > self._latest(run[found]):
                        break  # it should have come by now
                if found:
                    break
        yield from self._decode_to_nearest(run[found:])

    def _decode_to_nearest(self, run: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode everything for frames that packets promised and decoding did not give: the nearest ones shown.

        Raises ``SourceError`` where there is none near: the file is damaged.
        """
        times, usual = self._timeline.times, 1 / self.fps if self.fps else 0.0
        reach = float(max(NEAREST_S, NEAREST_FRAMES * usual) / self._time_base)
        wanted, before = deque(run), None
        with self._open() as container:
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

    def _half_gap(self, index: int) -> int:
        around = self._timeline.times[max(0, index - 1) : index + 2]
        return min((after - before for before, after in pairwise(around)), default=0) // 2

    def _earliest(self, index: int) -> int:
        """The first tick that still means this frame: containers round their times, so half a gap is allowed."""
        return self._timeline.times[index] - self._half_gap(index)

    def _latest(self, index: int) -> int:
        return self._timeline.times[index] + self._half_gap(index)

    def _starting_points(self, index: int) -> Iterator[int | None]:
        """Where to seek for a frame: to it; if that lands behind it, to earlier key frames; at last None, the start.

        MPEG transport streams have no index, and land where they guess.
        """
        times, keys = self._timeline.times, self._timeline.keys
        yield times[index]
        key = bisect.bisect_right(keys, index) - 1
        for earlier in (key - 1, key - 2):
            if earlier > 0:
                yield times[keys[earlier]]
        yield None

    def _decode_from_here(self, container: InputContainer, stream: VideoStream, run: list[int]) -> Iterator[VideoFrame]:
        """Decode on from a key frame, and stop feeding the decoder once it has all that the run needs.

        Frames that no other frame refers to (most B-frames) are skipped unless they are wanted, which changes no
        pixel of the others.
        """
        context = stream.codec_context
        skips = context.codec.name in SKIPPING_DECODERS and not self._timeline.in_fields
        unwanted: Literal["NONREF", "DEFAULT"] = "NONREF" if skips else "DEFAULT"
        reach = [self._earliest(index) for index in run]
        missing = set(run)
        try:
            for packet in container.demux(stream):
                time = packet.pts if packet.pts is not None else packet.dts
                if packet.size == 0 or (not missing and not self._timeline.in_fields):
                    break
                candidate = bisect.bisect_right(reach, time) - 1 if time is not None else -1
                wanted = candidate >= 0 and time is not None and time <= self._latest(run[candidate])
                if wanted:
                    missing.discard(run[candidate])
                context.skip_frame = "DEFAULT" if wanted else unwanted
                yield from (frame for frame in context.decode(packet) if frame.pts is not None)
            yield from (frame for frame in context.decode(None) if frame.pts is not None)
        except av.error.FFmpegError as error:
            raise self.broken(error) from None

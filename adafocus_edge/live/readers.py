"""Readers of live sources: cameras, stream addresses, files at their own pace, and frames pushed by a program."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.errors import BackendError, HasAnEndError, SourceError, UsageError
from adafocus_edge.media.pictures import Picture, decoded_picture
from adafocus_edge.system.addresses import encoding_hint

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from adafocus_edge.backends.nvdec_stream import Decoding
    from adafocus_edge.live.meters import Counters
    from adafocus_edge.live.packet_copy import PacketCopier
    from adafocus_edge.live.settings import CameraOptions, CaptureOptions
    from adafocus_edge.media.clip import Clip
    from adafocus_edge.media.sources import Source

OPEN_TIMEOUT_S = 10.0
"""A stream address must answer within this time."""
ANALYSE_US = "1000000"
"""Time that FFmpeg analyses a stream before it delivers frames, in microseconds; its default is 5 s."""
SILENCE_S = 10.0
"""A source that delivers no picture for this long is lost."""
POLL_S = 0.1
"""How often a waiting reader checks whether it should stop."""
UNKNOWN_INTERVAL_S = 0.04
"""Time between the last frame of a looped file and its first, where its frame rate is unknown."""


class Feed:
    """A live source whose frames are pushed by a program, such as the camera of a browser."""

    def __init__(self) -> None:
        self._newest: Picture | None = None
        self._closed = False
        self._changed = threading.Condition()

    def push(self, to_rgb: Callable[[], NDArray[np.uint8]], width: int, height: int) -> None:
        """Add a frame; it replaces one that has not been read yet.

        Args:
            to_rgb: returns it as RGB uint8 [H, W, 3], in any thread.
            width: in pixels.
            height: in pixels.
        """
        with self._changed:
            self._newest = Picture(to_rgb, width, height)
            self._changed.notify_all()

    def close(self) -> None:
        """End the source."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """Yield frames as they are pushed, until the feed is closed or ``stop`` is set."""
        while not stop.is_set():
            with self._changed:
                if self._newest is None:
                    if self._closed:
                        return
                    self._changed.wait(POLL_S)
                    continue
                picture, self._newest = self._newest, None
            yield picture


def clip_pictures(
    clip: Clip, decoding: Decoding | None = None, copier: PacketCopier | None = None
) -> Iterator[tuple[int, Picture]]:
    """Yield the frames of a clip in order, each with its number.

    Args:
        clip: an opened video file or folder of frames.
        decoding: how to decode it on the GPU; None for the CPU.
        copier: takes the packets of a video file that the CPU decodes.

    Raises:
        SourceError: the clip cannot be decoded.
        BackendError: the GPU must decode it, but cannot.
    """
    from adafocus_edge.media.video_file import VideoFile

    if isinstance(clip, VideoFile):
        if decoding is not None:
            if copier is not None:
                copier.refuse("a file that the GPU decodes: give --decoder cpu")
            yield from decoding.file_pictures(clip)
            return
        for index, frame in clip.pictures(*(() if copier is None else (copier.add,))):
            yield index, decoded_picture(frame, clip.sample_aspect)
        return
    if decoding is not None:
        decoding.refuse("only video is decoded on the GPU")
    if copier is not None:
        copier.refuse("a folder of frames has none")
    for index, rgb in clip.frames():
        yield index, Picture(lambda rgb=rgb: rgb, rgb.shape[1], rgb.shape[0])  # type: ignore[misc]


@contextmanager
def closing_copier(copier: PacketCopier | None) -> Iterator[PacketCopier | None]:
    """Let a copier publish what is left when the block ends."""
    try:
        yield copier
    finally:
        if copier is not None:
            copier.close()


def played_pictures(
    clip: Clip,
    options: CaptureOptions,
    stop: threading.Event,
    new_decoding: Callable[[], Decoding | None],
    new_copier: Callable[[], PacketCopier | None] = lambda: None,
) -> Iterator[tuple[Picture, int, float, float]]:
    """Yield the frames of a clip as a live run plays it: at its own pace or as fast as possible, once or in a loop.

    Args:
        clip: an opened video file or folder of frames.
        options: ``realtime`` and ``loop``.
        stop: ends it.
        new_decoding: returns, for each pass, how to decode on the GPU; None for the CPU.
        new_copier: returns, for each pass, what takes the packets; None to copy none.

    Yields:
        each picture, its number, the time in seconds at which it is shown, and the frame rate. Numbers and times
        continue over all passes.

    Raises:
        SourceError: the clip cannot be decoded.
    """
    began_s, offset_s, base = time.monotonic(), 0.0, 0
    while True:
        time_s = 0.0
        with closing_copier(new_copier()) as copier:
            for index, picture in clip_pictures(clip, new_decoding(), copier):
                own_s = clip.time_s(index)  # None in a folder: its frames have no times of their own
                time_s = offset_s + (index / clip.fps if own_s is None else own_s)
                if options.realtime and stop.wait(began_s + time_s - time.monotonic()):
                    return
                yield picture, base + index, time_s, clip.fps
        if not options.loop or stop.is_set():
            return
        base += clip.frame_count
        offset_s = time_s + (1 / clip.fps if clip.fps else UNKNOWN_INTERVAL_S)


def camera_pictures(source: Source, stop: threading.Event, requested: CameraOptions) -> Iterator[Picture]:
    """Yield the frames of a camera until ``stop`` is set.

    Args:
        source: a camera's index or device file.
        stop: ends it.
        requested: size, rate and format to request from the camera.

    Raises:
        SourceError: the camera cannot be opened, or delivers no more frames.
        UsageError: a video track was chosen.
        BackendError: OpenCV cannot be loaded.
    """
    if source.video_track is not None:
        raise UsageError(f"{source.name}: --video-track is not for cameras, which have no tracks: remove it")
    try:
        import cv2
    except ImportError as error:
        raise BackendError(
            f"cameras need OpenCV, which cannot be loaded here ({error}): pip install opencv-python-headless"
        ) from None
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: failures are reported here
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    address: int | str = int(source.address) if source.address.isdigit() else source.address
    camera = cv2.VideoCapture(address)
    try:
        if not camera.isOpened():
            raise SourceError(
                f"{source.name}: cannot open the camera: it does not exist, is in use, or access was denied"
            )
        if requested.fourcc is not None:
            camera.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*requested.fourcc))
        for name in ("width", "height", "fps"):
            if (value := getattr(requested, name)) is not None:
                camera.set(getattr(cv2, f"CAP_PROP_{'FRAME_' if name != 'fps' else ''}{name.upper()}"), value)
        while not stop.is_set():
            delivered, bgr = camera.read()
            if not delivered:
                raise SourceError(f"{source.name}: the camera delivers no more frames")
            yield Picture(_from_bgr(bgr), bgr.shape[1], bgr.shape[0])
    finally:
        camera.release()


def _from_bgr(bgr: Any) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.ascontiguousarray(bgr[:, :, ::-1])


@contextmanager
def _packets_of(
    container: InputContainer, stream: VideoStream, copier: PacketCopier | None, counters: Counters,
    stop: threading.Event,
) -> Iterator[Iterable[Packet[Any]]]:  # fmt: skip
    """Read the packets of an opened stream while the block lasts: ahead of the decoder if they are copied."""
    from adafocus_edge.live.split_pictures import whole_pictures

    packets = whole_pictures(container.demux(), stream)
    if copier is None:
        yield packets
        return
    from adafocus_edge.live.packets_ahead import PacketsAhead

    with PacketsAhead(packets, stream, copier, counters, stop) as ahead:
        yield ahead


def address_pictures(
    source: Source,
    stop: threading.Event,
    counters: Counters,
    on_track: Callable[[str], None] = lambda _: None,
    decoding: Decoding | None = None,
    copier: PacketCopier | None = None,
) -> Iterator[Picture]:
    """Yield the frames of a stream address until it ends or ``stop`` is set.

    Args:
        source: with an address such as ``rtsp://...``.
        stop: ends it.
        counters: whose ``damaged`` counts the packets that cannot be decoded.
        on_track: is called with a note on the chosen video track, which is empty for the only one.
        decoding: how to decode it on the GPU; None for the CPU.
        copier: takes the packets of the video; None to copy none.

    Raises:
        SourceError: the address does not answer, cannot be read, or delivers no picture for :data:`SILENCE_S`.
        HasAnEndError: the address is that of a file.
    """
    import av

    from adafocus_edge.media.containers import ADDRESS_LISTS, OPEN_OPTIONS, limit_pictures, limits, pixel_aspect
    from adafocus_edge.media.orientation import is_sideways
    from adafocus_edge.media.tracks import describe_track, ranked_tracks, read_only, requested_track

    options = {**limits(ADDRESS_LISTS), "flags": "low_delay", "analyzeduration": ANALYSE_US}
    if copier is None:
        options["fflags"] = "nobuffer"  # drops the packets that FFmpeg analyses
    if source.address.startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # and UDP where a camera supports no other
    try:
        with (
            av.open(source.address, options=options, timeout=(OPEN_TIMEOUT_S, SILENCE_S), **OPEN_OPTIONS) as container,
            closing_copier(copier),
            ExitStack() as opened,
        ):
            tracks = ranked_tracks(container)
            if not tracks:
                raise SourceError(f"{source.name}: the stream has no video")
            if container.duration and source.address.startswith("http"):
                raise HasAnEndError(f"{source.name}: is a file of finite length, not a live stream")
            number = source.video_track
            stream = tracks[0] if number is None else requested_track(container, source.name, number)
            if stream.codec_context is None:
                raise SourceError(f"{source.name}: no decoder here for its video codec")
            limit_pictures(stream)
            on_track(describe_track(container, stream))
            # Sound is read, too: while it continues, a picture that hangs must be noticed. HLS has a sound track for
            # each variant, and fetches every one that is read.
            sounds = [] if container.format.name == "hls" else container.streams.audio
            read_only(container, [stream, *sounds])
            last_picture_s = time.monotonic()

            def decode_on_cpu(packet: Any) -> Iterator[Picture]:
                for frame in stream.decode(packet):
                    yield decoded_picture(frame, pixel_aspect(stream.sample_aspect_ratio, is_sideways(frame)))

            decode = decode_on_cpu if decoding is None else decoding.stream_decoder(stream)
            for packet in opened.enter_context(_packets_of(container, stream, copier, counters, stop)):
                if stop.is_set():
                    return
                try:
                    pictures = list(decode(packet)) if packet.stream_index == stream.index else []
                except av.error.FFmpegError:  # lost or garbled packets: decoding recovers at the next key frame
                    counters.damaged += 1
                    pictures = []
                for picture in pictures:
                    last_picture_s = time.monotonic()
                    yield picture
                # Pictures that are skipped up to the next key frame, but copied, are no reason to open it again.
                seen_s = last_picture_s if copier is None else max(last_picture_s, copier.skipped_s)
                if time.monotonic() - seen_s > SILENCE_S:
                    raise SourceError(f"{source.name}: no picture for {SILENCE_S:.0f} s")
    except av.error.ExitError:
        hint = encoding_hint(source.address)
        raise SourceError(f"{source.name}: no answer for {SILENCE_S:.0f} s{hint}") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SourceError(f"{source.name}: cannot be read ({reason}){encoding_hint(source.address)}") from None

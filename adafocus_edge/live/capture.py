"""Reading live sources (cameras, addresses, files at their own pace), and which frames are glimpsed or dropped."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adafocus_edge.errors import AdaFocusError, BackendError, HasAnEndError, SourceError, UsageError
from adafocus_edge.live.messages import LiveFrame, Notice, NoticeKind
from adafocus_edge.live.settings import CameraOptions, CaptureOptions, Drop
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.pictures import Picture, decoded_picture
from adafocus_edge.media.preprocess import luminance, motion_indices, nearest_motion, preprocess
from adafocus_edge.system.addresses import conceal, encoding_hint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.backends.device.pixels import FrameBuffer
    from adafocus_edge.backends.gpu_frames import LiveFrames, UnmadeFrame
    from adafocus_edge.backends.nvdec_stream import Decoding
    from adafocus_edge.media.clip import Clip
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import ModelSpec


OPEN_TIMEOUT_S = 10.0
"""A stream address must answer within this time."""
ANALYSE_US = "1000000"
"""FFmpeg looks at a stream for so many microseconds before it gives frames; 5 s unless told."""
SILENCE_S = 10.0
"""A source that gives no frame for this long is lost."""
FIRST_PAUSE_S = 1.0
"""Before a lost source is tried again; the pause doubles each time."""
LONGEST_PAUSE_S = 60.0
HEALTHY_S = 30.0
"""A source that ran for this long before it was lost is tried again after the first pause."""
HISTORY_SLACK_S = 0.2
"""Frames are kept a little longer than a model of motion looks back."""
CAPTURE_THREAD = "capture"
"""What the names of threads begin with that read live sources."""
POLL_S = 0.1
"""How often a waiting thread looks whether it should stop."""


@dataclass
class Counters:
    """What happened to a source so far.

    Attributes:
        frames: that were captured.
        picked: of those, that were to be glimpsed.
        dropped: of those, that no room was left for.
        damaged: pictures that could not be decoded.
        connections: how often it was opened.
        width: of the newest frame.
        height: of the newest frame.
    """

    frames: int = 0
    picked: int = 0
    dropped: int = 0
    damaged: int = 0
    connections: int = 0
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Prepared:
    """A frame as the model takes it, or is to make it; ``connection`` tells those before a loss from those after."""

    frame: LiveFrame
    pixels: ModelFrame | FrameBuffer | UnmadeFrame
    connection: int


class Feed:
    """A live source whose frames are pushed from elsewhere, such as a browser's camera."""

    def __init__(self) -> None:
        self._newest: Picture | None = None
        self._closed = False
        self._changed = threading.Condition()

    def push(self, to_rgb: Callable[[], NDArray[np.uint8]], width: int, height: int) -> None:
        """Give a frame; one that was not read yet is replaced."""
        with self._changed:
            self._newest = Picture(to_rgb, width, height)
            self._changed.notify_all()

    def close(self) -> None:
        """End the source."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def pictures(self, stop: threading.Event) -> Iterator[Picture]:
        """Yield frames as they come, until it is closed or told to stop."""
        while not stop.is_set():
            with self._changed:
                if self._newest is None:
                    if self._closed:
                        return
                    self._changed.wait(POLL_S)
                    continue
                picture, self._newest = self._newest, None
            yield picture


class Capture:
    """Reads one source in a thread, picks the frames to glimpse, and prepares them for the model in another.

    Both threads and the model run side by side. Between them there is room for ``options.waiting`` picked frames and
    for one prepared frame; what does not fit is dropped as ``options.drop`` says.

    Args:
        source: to read.
        spec: of the model.
        options: how.
        arrived: is notified when a prepared frame is there, or the end.
        on_frame: is handed each captured frame, in the capture thread.
        on_notice: is told what happens to the source, in the capture thread.
        feed: where frames come from instead, if they are pushed.
        is_ready: whether the model is ready; frames that come before that are shown and not picked.
        on_device: brings frames to a model on a GPU, which may decode them, too.
    """

    def __init__(
        self,
        source: Source,
        spec: ModelSpec,
        options: CaptureOptions,
        arrived: threading.Condition,
        on_frame: Callable[[LiveFrame], None] = lambda _: None,
        on_notice: Callable[[Notice], None] = lambda _: None,
        feed: Feed | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        on_device: LiveFrames | None = None,
    ) -> None:
        self.name = source.name
        self.counters = Counters()
        self.error: AdaFocusError | None = None
        self.state: Literal["connecting", "running", "lost", "ended", "failed"] = "connecting"
        self.text = ""
        self.newest: LiveFrame | None = None
        self.last_word: Notice | None = None
        self.kind = "camera" if feed else _kind(source)
        self._source, self._spec, self._options, self._feed = source, spec, options, feed
        self._file = self.kind == "file"
        self._is_constant_rate = True  # of a file
        self._track_note = self._decoder_note = ""
        self._on_device = on_device
        fast = self._file and not options.realtime
        self._drop: Drop = options.drop or ("never" if fast else "oldest")
        self._arrived, self._on_frame, self._on_notice = arrived, on_frame, on_notice
        self._is_ready = is_ready
        self._history: deque[LiveFrame] = deque()
        self._waiting: deque[tuple[tuple[LiveFrame, ...], int]] = deque()
        self._room = threading.Condition()
        self._preparing = False
        self._ready: Prepared | None = None
        self._finished = False
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"{CAPTURE_THREAD} {self.name}", daemon=True)
            for work in (self._read, self._prepare)
        ]
        self._began_s: float | None = None

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many picked frames wait for the model."""
        return len(self._waiting) + self._preparing + (self._ready is not None)

    @property
    def gone(self) -> bool:
        """Whether the source is lost, and the model has seen all that it gave."""
        return self.state == "lost" and not self.waiting

    @property
    def finished(self) -> bool:
        """Whether nothing more will come. Call it with ``arrived`` held."""
        return self._finished and self._ready is None

    def take(self) -> Prepared | None:
        """Take the prepared frame, if there is one. Call it with ``arrived`` held."""
        taken, self._ready = self._ready, None
        if taken is not None:
            self._arrived.notify_all()
        return taken

    def stop(self) -> None:
        """Tell both threads to stop, without waiting for them."""
        self._stop.set()
        if self._feed is not None:
            self._feed.close()
        with self._room:
            self._room.notify_all()

    def close(self, within_s: float = POLL_S * 5) -> None:
        """Stop and wait a little. A source that hangs is left to its daemon thread."""
        self.stop()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, deadline - time.monotonic()))

    # -- the capture thread -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._reading()
        except HasAnEndError as error:
            if self._options.patient:  # the run goes on without it: nobody else would tell
                self._end("failed", f"{error}: download it, or classify it alone", error)
            else:  # told by whoever knows what else to do with it
                self.error, self.state, self.text = error, "failed", str(error)
        except AdaFocusError as error:
            self._end("failed", str(error), error)
        except Exception as error:  # whatever a decoder may raise must not end the thread without a word
            text = self._unexpected(error)
            self._end("failed", text, SourceError(text))
        finally:
            with self._room:
                self._waiting.append(((), 0))  # nothing more comes
                self._room.notify_all()

    def _unexpected(self, error: Exception) -> str:
        said = conceal(str(error), self._source.address)
        return f"{self.name}: cannot be read on ({type(error).__name__}: {said})"

    def _reading(self) -> None:
        """Read the source until it ends, opening it again whenever it is lost."""
        lost_in_a_row, pause_s = 0, FIRST_PAUSE_S
        while not self._stop.is_set():
            opened_s, before = time.monotonic(), self.counters.frames
            reason = f"{self.name}: the stream has ended"
            try:
                self._read_once()
                if not self._stop.is_set() and (self._file or self._feed is not None):
                    self._end("ended", f"{self.name}: has ended", None)
                    return
            except HasAnEndError:
                raise
            except SourceError as error:
                reason = str(error)
                if self._file:
                    raise
            except AdaFocusError:
                raise
            except Exception as error:  # whatever a decoder or a driver may raise is no reason to give a source up
                if self._file or self._feed is not None:
                    raise
                reason = self._unexpected(error)
            if self._stop.is_set():
                break
            seen = self.counters.frames > before
            if seen and time.monotonic() - opened_s >= HEALTHY_S:
                pause_s = FIRST_PAUSE_S
            lost_in_a_row = 1 if seen else lost_in_a_row + 1
            never = self.counters.frames == 0 and not self._options.patient and self._options.retries is None
            if never or (self._options.retries is not None and lost_in_a_row > self._options.retries):
                raise SourceError(reason)
            self._tell("lost", f"{reason}; trying again in {pause_s:g} s")
            if self._stop.wait(pause_s):
                break
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self.state, self.text = "ended", f"{self.name}: stopped"

    def _read_once(self) -> None:
        counters, first, decoder_note = self.counters, True, ""
        due = _GlimpseSchedule(self._options.glimpse_fps)
        base_index = counters.frames
        for picture, index, time_s, fps in self._pictures():
            if self._stop.is_set():
                return
            width, height = picture.width, picture.height
            now_s = time.monotonic()
            if first:
                counters.connections += 1
                self._began_s = now_s if self._began_s is None else self._began_s
                self._history.clear()
                kind: NoticeKind = "connected" if counters.connections == 1 else "reconnected"
                size = f"{width} x {height}" + (f", {fps:.3g} fps" if fps else "")
                size += "".join(f"; {note}" for note in (self._track_note, self._decoder_note) if note)
                decoder_note = self._decoder_note
                self._tell(kind, f"{self.name}: {size}" if kind == "connected" else f"{self.name}: back, {size}")
                first = False
            elif (width, height) != (counters.width, counters.height):
                self._tell("changed", f"{self.name}: now {width} x {height}")
            if self._decoder_note != decoder_note:
                decoder_note = self._decoder_note
                self._tell("changed", f"{self.name}: now {decoder_note}")
            counters.width, counters.height = width, height
            shown_s = now_s - (self._began_s or now_s) if time_s is None else time_s
            frame = LiveFrame(
                self.name, counters.frames, now_s, shown_s, time.time(), picture.to_rgb, picture.sample_aspect
            )
            counters.frames += 1
            self.newest = frame
            constant_fps = fps if self._file and self._is_constant_rate else None
            self._remember(frame, constant_fps)
            self._on_frame(frame)
            if due.is_now(index if self._file else None, fps, shown_s) and self._is_ready():
                self._pick(frame, constant_fps, base_index)

    def _remember(self, frame: LiveFrame, fps: float | None) -> None:
        """Keep what a model of motion looks back at: by number in a file of a constant rate, by time elsewhere."""
        gap_s = self._spec.motion_gap_s
        if not gap_s:
            return
        history = self._history
        history.append(frame)
        if fps is not None:
            first = motion_indices(frame.index, fps, gap_s)[0]
            while history[0].index < first:
                history.popleft()
            return
        # The newest of those that are too old stays: no kept frame is nearer to its time.
        oldest_s = self._moment_s(frame) - 2 * gap_s - HISTORY_SLACK_S
        while len(history) > 1 and self._moment_s(history[1]) < oldest_s:
            history.popleft()

    def _moment_s(self, frame: LiveFrame) -> float:
        """When a frame was: as a file says, or when it was there."""
        return frame.time_s if self._file else frame.captured_s

    def _pick(self, frame: LiveFrame, fps: float | None, base_index: int) -> None:
        """Let a frame wait for the model, with the ones before it that show motion."""
        parts: tuple[LiveFrame, ...] = (frame,)
        gap_s = self._spec.motion_gap_s
        if gap_s and fps is not None:
            first = self._history[0].index
            wanted = motion_indices(frame.index - base_index, fps, gap_s)
            parts = tuple(self._history[max(0, base_index + number - first)] for number in wanted)
        elif gap_s:
            kept = list(self._history)
            moments_s = [self._moment_s(each) for each in kept]
            parts = tuple(kept[part] for part in nearest_motion(moments_s.__getitem__, len(kept) - 1, gap_s))
        counters, waiting = self.counters, self._waiting
        counters.picked += 1
        with self._room:
            while len(waiting) >= self._options.waiting and not self._stop.is_set():
                if self._drop == "never":
                    self._room.wait(POLL_S)
                    continue
                counters.dropped += 1
                if self._drop == "newest":
                    return
                waiting.popleft()
            waiting.append((parts, counters.connections))
            self._room.notify_all()

    def _pictures(self) -> Iterator[tuple[Picture, int, float | None, float]]:
        """Yield pictures with their number since opening, the time they are shown at in a file, and the frame rate."""
        if self._file:
            yield from self._file_pictures()
            return
        if self._feed is not None:
            live = self._feed.pictures(self._stop)
        elif "://" in self._source.address:
            live = _address_pictures(self._source, self._stop, self.counters, self._note_track, self._decoding())
        else:
            live = _camera_pictures(self._source, self._stop, self._options.camera)
        for index, picture in enumerate(live):
            yield picture, index, None, 0.0

    def _note_track(self, note: str) -> None:
        self._track_note = note

    def _decoding(self) -> Decoding | None:
        """Return how this source is decoded on the GPU; None for on the CPU."""
        if self._on_device is None or self._on_device.decoder == "cpu":
            return None
        from adafocus_edge.backends.nvdec_stream import Decoding

        def note(text: str) -> None:
            self._decoder_note = text

        def damaged() -> None:
            self.counters.damaged += 1

        strict = self._on_device.decoder == "gpu"
        return Decoding(self._on_device.store, self._source.address, strict=strict, note=note, damaged=damaged)

    def _file_pictures(self) -> Iterator[tuple[Picture, int, float | None, float]]:
        clip = self._source.open_clip()
        self._is_constant_rate, self._track_note = clip.is_constant_rate, clip.track_note
        # Frames of a folder have no times of their own.
        begun_s, offset_s, base = time.monotonic(), 0.0, 0
        while True:
            time_s = 0.0
            for index, picture in _clip_pictures(clip, self._decoding()):
                told_s = clip.time_s(index)
                time_s = offset_s + (index / clip.fps if told_s is None else told_s)
                if self._options.realtime and self._stop.wait(begun_s + time_s - time.monotonic()):
                    return
                yield picture, base + index, time_s, clip.fps
            if not self._options.loop or self._stop.is_set():
                return
            base += clip.frame_count
            offset_s = time_s + (1 / clip.fps if clip.fps else 0.04)

    # -- the thread that prepares -------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        made: dict[int, NDArray[np.uint8]] = {}
        while True:
            with self._room:
                while not self._waiting:
                    self._room.wait(POLL_S)
                self._preparing = True  # before it leaves the queue, so that it is always seen in one of them
                parts, connection = self._waiting.popleft()
                self._room.notify_all()
            if not parts or self._stop.is_set():
                break
            try:
                pixels = self._make(parts, made)
            except Exception:  # a picture that is damaged in a way that only converting it shows
                self.counters.damaged += 1
                self._preparing = False
                continue
            with self._arrived:
                while self._ready is not None and not self._stop.is_set():
                    self._arrived.wait(POLL_S)
                self._ready = Prepared(parts[-1], pixels, connection)
                self._preparing = False
                self._arrived.notify_all()
        with self._arrived:
            self._preparing = False
            self._finished = True
            self._arrived.notify_all()

    def _make(
        self, parts: tuple[LiveFrame, ...], made: dict[int, NDArray[np.uint8]]
    ) -> ModelFrame | FrameBuffer | UnmadeFrame:
        """Make a model frame where it is made best: where it was decoded, or here, and then bring it to the model."""
        if self._on_device is None:
            return model_pixels(parts, self._spec, made)
        from adafocus_edge.backends.gpu_frames import unmade

        on_device = unmade([part.to_rgb for part in parts])
        if on_device is not None:
            return on_device
        pixels = model_pixels(parts, self._spec, made)
        with suppress(BackendError):  # the model's thread reports a device that failed
            return self._on_device.bring(pixels)
        return pixels

    # -- what is told -------------------------------------------------------------------------------------------------

    def _tell(self, kind: NoticeKind, text: str) -> None:
        if kind != "changed":
            self.state = "lost" if kind == "lost" else "running"
        self.text = text
        self._on_notice(Notice(self.name, kind, text, time.time()))

    def _end(self, kind: Literal["ended", "failed"], text: str, error: AdaFocusError | None) -> None:
        """Leave the last word to whoever takes the last frame, so that it comes after what that shows."""
        self.error, self.state, self.text = error, kind, text
        self.last_word = Notice(self.name, kind, text, time.time())


class _GlimpseSchedule:
    """Says which frames are glimpsed: one for the middle of each period of the rate.

    In a file it is the frame that the official sampling takes there, so that a window of T glimpses over the whole
    file is the very clip that ``classify`` sees. In a live source it is the first that comes at or after that time.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = 0

    def is_now(self, index: int | None, fps: float, time_s: float) -> bool:
        if index is not None and fps:
            # Rounding must not take the frame before a whole number.
            if index < int(fps / self._rate * (self._next + 0.5) + 1e-6):
                return False
            while index >= int(fps / self._rate * (self._next + 0.5) + 1e-6):
                self._next += 1
            return True
        if time_s < (self._next + 0.5) / self._rate:
            return False
        self._next = max(self._next + 1, math.floor(time_s * self._rate - 0.5) + 1)
        return True


def model_pixels(
    parts: tuple[LiveFrame, ...], spec: ModelSpec, made: dict[int, NDArray[np.uint8]] | None = None
) -> ModelFrame:
    """Return a live frame as the model sees it.

    Args:
        parts: the frame, or the three that show motion.
        spec: of the model.
        made: what was made before of frames that show motion, by their numbers: each is made once, and kept while a
            later frame may look back at it.

    Returns:
        uint8 [S, S, 3].
    """
    if len(parts) == 1:
        return ModelFrame.of(preprocess(parts[0].to_rgb(), spec.frame_size, spec.fit), spec)
    made = {} if made is None else made
    for part in parts:
        if part.index not in made:
            made[part.index] = preprocess(luminance(part.to_rgb()), spec.frame_size, spec.fit)
    for index in [index for index in made if index < parts[0].index]:
        del made[index]
    return ModelFrame.of(np.stack([made[part.index] for part in parts], axis=-1), spec)


def _kind(source: Source) -> str:
    if not source.live:
        return "file"
    return "stream" if "://" in source.address else "camera"


def _clip_pictures(clip: Clip, decoding: Decoding | None = None) -> Iterator[tuple[int, Picture]]:
    from adafocus_edge.media.video_file import VideoFile

    if isinstance(clip, VideoFile):
        if decoding is not None:
            yield from decoding.file_pictures(clip)
            return
        for index, frame in clip.pictures():
            yield index, decoded_picture(frame, clip.sample_aspect)
        return
    if decoding is not None:
        decoding.refuse("only video is decoded on the GPU")
    for index, rgb in clip.frames():
        yield index, Picture(lambda rgb=rgb: rgb, rgb.shape[1], rgb.shape[0])  # type: ignore[misc]


def _camera_pictures(source: Source, stop: threading.Event, asked: CameraOptions) -> Iterator[Picture]:
    if source.video_track is not None:
        raise UsageError(f"{source.name}: a camera has no video tracks: leave out --video-track")
    try:
        import cv2
    except ImportError as error:
        raise BackendError(
            f"cameras need OpenCV, which cannot be loaded here ({error}): pip install opencv-python-headless"
        ) from None
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what fails is told by us
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    address: int | str = int(source.address) if source.address.isdigit() else source.address
    camera = cv2.VideoCapture(address)
    try:
        if not camera.isOpened():
            raise SourceError(f"{source.name}: cannot be opened: no such camera, in use, or no permission")
        if asked.fourcc is not None:
            camera.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*asked.fourcc))
        for name in ("width", "height", "fps"):
            if (value := getattr(asked, name)) is not None:
                camera.set(getattr(cv2, f"CAP_PROP_{'FRAME_' if name != 'fps' else ''}{name.upper()}"), value)
        while not stop.is_set():
            there, bgr = camera.read()
            if not there:
                raise SourceError(f"{source.name}: the camera gives no more frames")
            yield Picture(_from_bgr(bgr), bgr.shape[1], bgr.shape[0])
    finally:
        camera.release()


def _from_bgr(bgr: Any) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.ascontiguousarray(bgr[:, :, ::-1])


def _address_pictures(
    source: Source,
    stop: threading.Event,
    counters: Counters,
    on_track: Callable[[str], None] = lambda _: None,
    decoding: Decoding | None = None,
) -> Iterator[Picture]:
    import av

    from adafocus_edge.media.containers import ADDRESS_LISTS, OPEN_OPTIONS, limit_pictures, limits, pixel_aspect
    from adafocus_edge.media.orientation import is_sideways
    from adafocus_edge.media.tracks import describe_track, ranked_tracks, read_only, requested_track

    options = {**limits(ADDRESS_LISTS), "fflags": "nobuffer", "flags": "low_delay", "analyzeduration": ANALYSE_US}
    if source.address.startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # and UDP where a camera knows no other
    try:
        with av.open(source.address, options=options, timeout=(OPEN_TIMEOUT_S, SILENCE_S), **OPEN_OPTIONS) as container:
            tracks = ranked_tracks(container)
            if not tracks:
                raise SourceError(f"{source.name}: no video in this stream")
            if container.duration and source.address.startswith("http"):
                raise HasAnEndError(f"{source.name}: has an end, so it is a file and not a live source")
            number = source.video_track
            stream = tracks[0] if number is None else requested_track(container, source.name, number)
            if stream.codec_context is None:
                raise SourceError(f"{source.name}: no decoder here for its video codec")
            limit_pictures(stream)
            on_track(describe_track(container, stream))
            # Sound is read, too: while it goes on, a picture that hangs must be noticed. A list of variants has a sound
            # for each, and fetches what is read.
            sounds = [] if container.format.name == "hls" else container.streams.audio
            read_only(container, [stream, *sounds])
            heard_s = time.monotonic()

            def decode_on_cpu(packet: Any) -> Iterator[Picture]:
                for frame in stream.decode(packet):
                    yield decoded_picture(frame, pixel_aspect(stream.sample_aspect_ratio, is_sideways(frame)))

            decode = decode_on_cpu if decoding is None else decoding.stream_decoder(stream)
            for packet in container.demux():
                if stop.is_set():
                    return
                try:
                    pictures = list(decode(packet)) if packet.stream_index == stream.index else []
                except av.error.FFmpegError:  # lost or garbled packets: the next key frame mends it
                    counters.damaged += 1
                    pictures = []
                for picture in pictures:
                    heard_s = time.monotonic()
                    yield picture
                if time.monotonic() - heard_s > SILENCE_S:
                    raise SourceError(f"{source.name}: no picture for {SILENCE_S:.0f} s")
    except av.error.ExitError:
        hint = encoding_hint(source.address)
        raise SourceError(f"{source.name}: no answer for {SILENCE_S:.0f} s{hint}") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SourceError(f"{source.name}: cannot be read ({reason}){encoding_hint(source.address)}") from None

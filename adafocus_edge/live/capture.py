"""Capture of one live source: reads it, reconnects when it is lost, picks frames to glimpse and prepares them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from adafocus_edge.errors import AdaFocusError, BackendError, HasAnEndError, SourceError
from adafocus_edge.live import readers
from adafocus_edge.live.messages import RETRYING, LiveFragment, LiveFrame, Notice, NoticeKind
from adafocus_edge.live.meters import Counters
from adafocus_edge.live.pacing import FrameHistory, GlimpseSchedule
from adafocus_edge.live.readers import Feed
from adafocus_edge.live.settings import CaptureOptions, Drop
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.pictures import grey_input
from adafocus_edge.media.preprocess import preprocess
from adafocus_edge.media.zones import Zones
from adafocus_edge.system.addresses import conceal
from adafocus_edge.system.backoff import Backoff

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.backends.device.pixels import FrameBuffer
    from adafocus_edge.backends.gpu_frames import LiveFrames, UnmadeFrame
    from adafocus_edge.backends.nvdec_stream import Decoding
    from adafocus_edge.live.packet_copy import PacketCopier
    from adafocus_edge.media.pictures import Picture
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import ModelSpec


HEALTHY_S = 30.0
"""A source that delivered frames for this long before it was lost is retried after the first pause."""
CAPTURE_THREAD = "capture"
"""Prefix of the names of threads that read live sources."""
POLL_S = 0.1
"""How often a waiting thread checks whether it should stop."""

SourceKind = Literal["camera", "stream", "file"]
CaptureState = Literal["connecting", "running", "lost", "ended", "failed"]


@dataclass(frozen=True)
class Prepared:
    """A frame that is ready for the model.

    Attributes:
        frame: the captured frame.
        pixels: the model frame, or the decoded frames on the GPU that the model's thread makes it of.
        connection: number of times the source had been opened; differs before and after a loss.
    """

    frame: LiveFrame
    pixels: ModelFrame | FrameBuffer | UnmadeFrame
    connection: int


class Capture:
    """Reads one source in a thread, picks the frames to glimpse, and prepares them for the model in another thread.

    Both threads run beside the model. Between them there is room for ``options.waiting`` picked frames and one
    prepared frame; ``options.drop`` decides what is dropped when there is no room.

    Args:
        source: the source to read.
        spec: of the model.
        options: how the source is read.
        arrived: is notified when a frame is prepared, and at the end.
        on_frame: is called with each captured frame, in the capture thread.
        on_notice: is called when the state of the source changes, in the capture thread.
        feed: delivers the frames instead of ``source``, if they are pushed.
        is_ready: returns whether the model is ready; earlier frames are shown but not picked.
        on_device: brings frames to a model on a GPU, and may decode there.
        on_fragment: is called with the copied packets, in the capture thread.
        counters: those of an earlier source of this name, so that frames are numbered on.

    Attributes:
        name: of the source.
        kind: ``camera``, ``stream`` or ``file``.
        counters: counts since the run began.
        state: of the source.
        text: of the last notice, or why the source ended or failed.
        error: why the source failed, or None.
        newest: the newest captured frame, or None.
        last_notice: to be sent once the last frame has been taken; None until the source has ended or failed.
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
        on_fragment: Callable[[LiveFragment], None] = lambda _: None,
        counters: Counters | None = None,
    ) -> None:
        self.name = source.name
        self.counters = Counters() if counters is None else counters.carried_over()
        self.error: AdaFocusError | None = None
        self.state: CaptureState = "connecting"
        self.text = ""
        self.newest: LiveFrame | None = None
        self.last_notice: Notice | None = None
        self.kind: SourceKind = "camera" if feed else _kind(source)
        self._source, self._spec, self._options, self._feed = source, spec, options, feed
        self._is_file = self.kind == "file"
        self._is_constant_rate = True  # of a file
        self._track_note = self._decoder_note = ""
        self._on_device = on_device
        as_fast_as_possible = self._is_file and not options.realtime
        self._drop: Drop = options.drop or ("never" if as_fast_as_possible else "oldest")
        self._arrived, self._on_frame, self._on_notice = arrived, on_frame, on_notice
        self._on_fragment = on_fragment
        self._copier: PacketCopier | None = None
        self._is_ready = is_ready
        self._history = FrameHistory(spec.motion_gap_s, self._moment_s, thin=not self._is_file)
        self._waiting: deque[tuple[tuple[LiveFrame, ...], int]] = deque()
        self._room = threading.Condition()
        self._preparing = False
        self._ready: Prepared | None = None
        self._finished = False
        self._stop = threading.Event()
        self._publishing = threading.Lock()
        self._reporting = threading.Lock()  # besides frames
        self._retired = False
        self._threads = [
            threading.Thread(target=work, name=f"{CAPTURE_THREAD} {self.name}", daemon=True)
            for work in (self._read, self._prepare)
        ]
        self._began_s: float | None = None

    def start(self) -> None:
        """Start to read."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of picked frames that wait for the model."""
        return len(self._waiting) + self._preparing + (self._ready is not None)

    @property
    def is_lost(self) -> bool:
        """Whether the source is lost, and the model has seen all frames from before."""
        return self.state == "lost" and not self.waiting

    @property
    def finished(self) -> bool:
        """Whether no more frames will follow. Call it with ``arrived`` held."""
        return self._finished and self._ready is None

    def take(self) -> Prepared | None:
        """Take the prepared frame, if there is one. Call it with ``arrived`` held."""
        taken, self._ready = self._ready, None
        if taken is not None:
            self._arrived.notify_all()
        return taken

    def stop(self) -> None:
        """Ask both threads to stop, without waiting for them."""
        self._stop.set()
        if self._feed is not None:
            self._feed.close()
        with self._room:
            self._room.notify_all()

    def retire(self, notice: Notice) -> None:
        """Stop, so that nothing more follows, not even what is under way. Call it with ``arrived`` held.

        Packets that have arrived are published before.

        Args:
            notice: the last one.
        """
        with self._publishing:
            self._stop.set()
        if (copier := self._copier) is not None:
            copier.close()
        with self._reporting:
            self._retired = True
        self.state, self.text, self.last_notice = "ended", notice.text, notice
        self._ready = None
        self.stop()

    def close(self, within_s: float = POLL_S * 5) -> None:
        """Stop, and wait for both threads at most ``within_s`` seconds; a source that hangs keeps its daemon thread."""
        self.stop()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, deadline - time.monotonic()))

    # -- the capture thread -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._read_until_end()
        except HasAnEndError as error:
            if self._options.patient:  # the run continues without it, so the notice is the only report
                self._end("failed", f"{error}: download it, or classify it alone", error)
            else:  # the caller can classify the file instead, and reports it
                self.error, self.state, self.text = error, "failed", str(error)
        except AdaFocusError as error:
            self._end("failed", str(error), error)
        except Exception as error:  # any exception of a decoder must be reported, not end the thread silently
            text = self._unexpected(error)
            self._end("failed", text, SourceError(text))
        finally:
            with self._room:
                self._waiting.append(((), 0))  # marks the end
                self._room.notify_all()

    def _unexpected(self, error: Exception) -> str:
        message = conceal(str(error), self._source.address)
        return f"{self.name}: reading failed ({type(error).__name__}: {message})"

    def _read_until_end(self) -> None:
        """Read the source until it ends, and open it again whenever it is lost."""
        failures, backoff = 0, Backoff()
        while not self._stop.is_set():
            opened_s, before = time.monotonic(), self.counters.frames
            reason = f"{self.name}: the stream has ended"
            try:
                self._read_once()
                if not self._stop.is_set() and (self._is_file or self._feed is not None):
                    self._end("ended", f"{self.name}: has ended", None)
                    return
            except HasAnEndError:
                raise
            except SourceError as error:
                reason = str(error)
                if self._is_file:
                    raise
            except AdaFocusError:
                raise
            except Exception as error:  # no exception of a decoder or a driver is a reason to give a source up
                if self._is_file or self._feed is not None:
                    raise
                reason = self._unexpected(error)
            if self._stop.is_set():
                break
            delivered = self.counters.frames > before
            if delivered and time.monotonic() - opened_s >= HEALTHY_S:
                backoff.reset()
            failures = 1 if delivered else failures + 1
            if self._is_given_up(failures):
                raise SourceError(reason)
            self._notify("lost", f"{reason}{RETRYING}{backoff.pause_s:g} s")
            if self._stop.wait(backoff.pause_s):
                break
            backoff.failed()
        self.state, self.text = "ended", f"{self.name}: stopped"

    def _is_given_up(self, failures: int) -> bool:
        """Return whether so many failures in a row are the last ones."""
        retries = self._options.retries
        if retries is not None:
            return failures > retries
        return self.counters.frames == 0 and not self._options.patient

    def _read_once(self) -> None:
        """Read the source from one opening to the next loss or its end."""
        counters, first, decoder_note = self.counters, True, ""
        schedule = GlimpseSchedule(self._options.glimpse_fps)
        base_index = counters.frames
        for picture, index, time_s, fps in self._pictures():
            if self._stop.is_set():
                return
            now_s = time.monotonic()
            if first:
                self._connected(picture, fps, now_s)
                first, decoder_note = False, self._decoder_note
            elif (picture.width, picture.height) != (counters.width, counters.height):
                self._notify("changed", f"{self.name}: now {picture.width} x {picture.height}")
            if self._decoder_note != decoder_note:
                decoder_note = self._decoder_note
                self._notify("changed", f"{self.name}: now {decoder_note}")
            counters.width, counters.height = picture.width, picture.height
            shown_s = now_s - (self._began_s or now_s) if time_s is None else time_s
            to_rgb = self._source.zones.masked(picture.to_rgb)  # no picture without its masks leaves this thread
            frame = LiveFrame(
                self.name, counters.frames, now_s, shown_s, time.time(), to_rgb, picture.sample_aspect,
                None if self._copier is None else self._copier.packet_of(picture.pts),
            )  # fmt: skip
            counters.frames += 1
            constant_fps = fps if self._is_file and self._is_constant_rate else None
            self._history.add(frame, constant_fps)
            with self._publishing:
                if self._stop.is_set():
                    return
                self.newest = frame
                self._on_frame(frame)
            if schedule.is_now(index if self._is_file else None, fps, shown_s) and self._is_ready():
                self._pick(frame, constant_fps, base_index)

    def _connected(self, picture: Picture, fps: float, now_s: float) -> None:
        """Count and report the first frame since the source was opened."""
        self.counters.connections += 1
        self._began_s = now_s if self._began_s is None else self._began_s
        self._history.clear()
        size = f"{picture.width} x {picture.height}" + (f", {fps:.3g} fps" if fps else "")
        size += "".join(f"; {note}" for note in (self._track_note, self._decoder_note) if note)
        if self.counters.connections == 1:
            self._notify("connected", f"{self.name}: {size}")
        else:
            self._notify("reconnected", f"{self.name}: back, {size}")

    def _moment_s(self, frame: LiveFrame) -> float:
        """Return the time of a frame: its presentation time in a file, or when it was captured."""
        return frame.time_s if self._is_file else frame.captured_s

    def _pick(self, frame: LiveFrame, fps: float | None, base_index: int) -> None:
        """Queue a frame for the model, with the earlier ones that show its motion; or drop one."""
        parts = self._history.parts(frame, fps, base_index)
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
        """Yield pictures, each with its number since opening, its presentation time in a file, and the frame rate."""
        if self._is_file:
            clip = self._source.open_clip()
            self._is_constant_rate, self._track_note = clip.is_constant_rate, clip.track_note
            yield from readers.played_pictures(clip, self._options, self._stop, self._decoding, self._new_copier)
            return
        if self._feed is not None:
            live = self._feed.pictures(self._stop)
        elif "://" in self._source.address:
            live = readers.address_pictures(
                self._source, self._stop, self.counters, self._note_track, self._decoding(), self._new_copier()
            )
        else:
            live = readers.camera_pictures(self._source, self._stop, self._options.camera)
        for index, picture in enumerate(live):
            yield picture, index, None, 0.0

    def _note_track(self, note: str) -> None:
        self._track_note = note

    def _new_copier(self) -> PacketCopier | None:
        """Return what takes the packets from one opening of the source; None if they are not copied."""
        if not self._options.copy:
            return None
        from adafocus_edge.live.packet_copy import PacketCopier

        self.counters.openings += 1
        self._copier = PacketCopier(
            self.name, self.counters.openings, self._publish_fragment, lambda text: self._notify("changed", text),
            for_clips=not self._is_file,
        )  # fmt: skip
        if self._source.zones.masks:
            self._copier.refuse("its masks cannot be applied to them")
        return self._copier

    def _publish_fragment(self, fragment: LiveFragment) -> None:
        with self._reporting:
            if not self._retired:
                self._on_fragment(fragment)

    def _decoding(self) -> Decoding | None:
        """Return how this source is decoded on the GPU; None for the CPU."""
        if self._on_device is None or self._on_device.decoder == "cpu":
            return None
        from adafocus_edge.backends.nvdec_stream import Decoding

        def note(text: str) -> None:
            self._decoder_note = text

        def damaged() -> None:
            self.counters.damaged += 1

        strict = self._on_device.decoder == "gpu"
        decoding = Decoding(self._on_device.store, self._source.address, strict=strict, note=note, damaged=damaged)
        if self._source.zones:
            decoding.refuse("its regions and masks are applied on the CPU")
            return None
        return decoding

    # -- the thread that prepares -------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        made: dict[int, NDArray[np.uint8]] = {}
        while True:
            with self._room:
                while not self._waiting and not self._stop.is_set():
                    self._room.wait(POLL_S)
                if self._stop.is_set():
                    break
                self._preparing = True  # before it leaves the queue, so that one of the two always counts it
                parts, connection = self._waiting.popleft()
                self._room.notify_all()
            if not parts:
                break
            try:
                pixels = self._make(parts, made)
            except Exception:  # a picture whose damage shows only when it is converted
                self.counters.damaged += 1
                self._preparing = False
                continue
            with self._arrived:
                while self._ready is not None and not self._stop.is_set():
                    self._arrived.wait(POLL_S)
                if self._stop.is_set():
                    break
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
        """Make a model frame: on the GPU if its parts were decoded there, else here, and upload it if need be."""
        zones = self._source.zones
        if self._on_device is None:
            return model_pixels(parts, self._spec, made, zones)
        from adafocus_edge.backends.gpu_frames import unmade

        on_device = None if zones else unmade([part.to_rgb for part in parts])
        if on_device is not None:
            return on_device
        pixels = model_pixels(parts, self._spec, made, zones)
        with suppress(BackendError):  # the model's thread reports a device that failed
            return self._on_device.bring(pixels)
        return pixels

    # -- notices ------------------------------------------------------------------------------------------------------

    def _notify(self, kind: NoticeKind, text: str) -> None:
        with self._reporting:
            if self._retired:
                return
            if kind != "changed":
                self.state = "lost" if kind == "lost" else "running"
            self.text = text
            self._on_notice(Notice(self.name, kind, text, time.time()))

    def _end(self, kind: Literal["ended", "failed"], text: str, error: AdaFocusError | None) -> None:
        """Leave the last notice to the thread that takes the last frame, so that it follows that frame's results."""
        with self._reporting:
            if not self._retired:
                self.error, self.state, self.text = error, kind, text
                self.last_notice = Notice(self.name, kind, text, time.time())


def model_pixels(
    parts: tuple[LiveFrame, ...],
    spec: ModelSpec,
    made: dict[int, NDArray[np.uint8]] | None = None,
    zones: Zones | None = None,
) -> ModelFrame:
    """Return a live frame as the model sees it.

    Args:
        parts: the frame, or the three frames that show motion.
        spec: of the model.
        made: cache of preprocessed frames by number, for models that see motion: each frame is preprocessed once, and
            kept as long as later frames may need it.
        zones: whose regions limit what the model sees; the frames have their masks already.

    Returns:
        uint8 [S, S, 3].
    """
    zones = zones or Zones()
    if len(parts) == 1:
        return ModelFrame.of(preprocess(zones.attended(parts[0].to_rgb()), spec.frame_size, spec.fit), spec)
    made = {} if made is None else made
    for part in parts:
        if part.index not in made:
            made[part.index] = grey_input(zones.watched(part.to_rgb), spec.frame_size, spec.fit)
    for index in [index for index in made if index < parts[0].index]:
        del made[index]
    return ModelFrame.of(np.stack([made[part.index] for part in parts], axis=-1), spec)


def _kind(source: Source) -> SourceKind:
    if not source.live:
        return "file"
    return "stream" if "://" in source.address else "camera"

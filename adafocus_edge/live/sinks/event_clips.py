"""The event sink: keeps a clip and a picture of each event in an archive."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.event_store import EventStore, StoredEvent
from adafocus_edge.live.fragments import Fragment, KeptFragments, moved, start_of
from adafocus_edge.live.listener import FragmentSink
from adafocus_edge.live.messages import (
    CopiedVideo,
    Event,
    LiveFragment,
    LiveFrame,
    Message,
    Notice,
    Rules,
    without_pixels,
)
from adafocus_edge.live.overlay import event_picture
from adafocus_edge.live.pacing import FrameThinner
from adafocus_edge.live.packets_ahead import MAX_AHEAD_S
from adafocus_edge.live.rolling import RollingVideo
from adafocus_edge.media.encoders import TICKS
from adafocus_edge.media.packet_clock import COPY_TICKS
from adafocus_edge.system.files import atomic_write, write_all
from adafocus_edge.system.retention import FailureReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adafocus_edge.live.events import EventRule
    from adafocus_edge.model.spec import ModelSpec

CLIP_FPS = 10.0
"""Frames per second of clips: enough to see what happened, and for models that see motion over 0.1 s."""
CLIP_WIDTH = 960
"""Maximum width of clips, in pixels."""
LONGEST_S = 120.0
"""Maximum length of a clip; the event itself may last longer."""
SLACK_S = 2.0
RESERVED = 512
"""Places in the queue that only events, notices and copied video may take."""
MAX_KEPT_BYTES = 1 << 27
"""Size of the copied video of one source that is kept for the beginning of a clip."""
GAP_S = 5.0
"""A source that delivered no frame for this long begins a new video."""
TIDY_S = 60.0
"""How often old events are deleted."""
QUALITY = 90


@dataclass
class _Clip:
    """A clip that is being written, or waits for the first fragment of its source."""

    event: Event
    size: int  # in bytes, with the picture
    file: IO[bytes] | None = None
    ended: Event | None = None
    origin: int | None = None  # when it begins, in ticks of its source's video; None until it does
    first_s: float = 0.0


@dataclass
class _Stream:
    """The video of one source: encoded by the source's seconds, or copied by ``time.monotonic``."""

    video: RollingVideo | None = None
    copied: CopiedVideo | None = None
    kept: KeptFragments | None = None  # of either
    shape: tuple[object, ...] = ()
    last_s: float | None = None
    given_s: float = field(default_factory=time.monotonic)
    ended_s: float = float("-inf")  # when there was no more of it, by time.monotonic
    clips: dict[str, _Clip] = field(default_factory=dict)  # by the event's key

    def ahead_s(self, frame: LiveFrame) -> float:
        """Return how far the clock of the video is ahead of the source's seconds."""
        if self.copied is None:
            return 0.0
        arrived_s = None if frame.packet is None else frame.packet.arrived_s
        return (frame.captured_s if arrived_s is None else arrived_s) - frame.time_s

    def ends_s(self, clip: _Clip, post_s: float) -> float:
        """Return when a clip ends, by the clock of the video, as far as it is known."""
        ended = clip.ended
        if ended is None or ended.end_s is None:
            return float("inf")
        return ended.end_s + post_s + self.ahead_s(ended.frame)

    def close_clips(self) -> None:
        """Close all clips."""
        for clip in self.clips.values():
            if clip.file is not None:
                clip.file.close()
        self.clips.clear()


def _light(event: Event) -> Event:
    """Return an event that holds no picture."""
    return cast("Event", without_pixels(event))


class EventClips(FragmentSink):
    """Keeps each event in an archive: an entry at its start, a picture with the patch, and a clip without drawings.

    Clips begin before the glimpses that raised the event and end after it. They grow while the event lasts, and can be
    played after a crash except for their last second. They are encoded from frames, or joined from the fragments of
    copied video: these begin at the key frame before.

    Args:
        store: the archive; the caller closes it.
        spec: of the model, for the place of the patch in the frame.
        report: is called with one line for each new error.
        window_s: how long a window of glimpses takes, in seconds: what raised an event is at most this old.
        lag_s: how long after the confidence rose an event may be raised, in seconds, besides the time of its rule.
        rules: of events.
        pre_s: seconds of a clip before the first glimpse that may have raised the event.
        post_s: seconds of a clip after the event.
        keep_days: days after which events are deleted; None for never.
        keep_gb: size of all clips and pictures, in units of 1e9 bytes, beyond which the oldest events are deleted,
            marked ones last; None for no limit.
        copy: whether clips are joined from copied video where there is any that browsers play.
        waiting: maximum number of frames in the queue, of all sources.

    Raises:
        UsageError: a number is out of range.
    """

    wants = (LiveFrame, LiveFragment, Event, Notice, Rules)
    needs_pixels = True
    local = True

    def __init__(
        self,
        store: EventStore,
        spec: ModelSpec,
        report: Callable[[str], None],
        *,
        window_s: float,
        lag_s: float = 0.0,
        rules: Sequence[EventRule] = (),
        pre_s: float = 5.0,
        post_s: float = 5.0,
        keep_days: float | None = None,
        keep_gb: float | None = None,
        copy: bool = False,
        waiting: int = 32,
    ) -> None:
        for name, value in (("pre_s", pre_s), ("post_s", post_s)):
            if not 0 <= value <= LONGEST_S / 4:
                raise UsageError(f"{name} of an event's clip must be 0 to {LONGEST_S / 4:g} seconds, not {value:g}")
        for name, limit in (("keep_days", keep_days), ("keep_gb", keep_gb)):
            if limit is not None and not limit > 0:
                raise UsageError(f"{name} of events must be more than 0, not {limit:g}")
        self._store = store
        self._spec = spec
        self._before_s = window_s + pre_s
        self._lag_s = lag_s
        self._copy = copy
        self._copies: set[str] = set()  # sources whose frames need not be encoded
        self._max_frames = waiting
        self._post_s = post_s
        self._max_age_s = None if keep_days is None else keep_days * 86400
        self._max_bytes = None if keep_gb is None else keep_gb * 1e9
        self._thinner = FrameThinner(CLIP_FPS)
        self._streams: dict[str, _Stream] = {}
        self._use_rules(rules)
        self._tidied_s = 0.0
        self._outage = FailureReporter(str(store.folder), report)
        super().__init__(str(store.folder), waiting + RESERVED, report)

    def enqueue(self, message: Message) -> None:
        """Take a frame, a fragment, an event, or the loss of a source; see :meth:`Sink.enqueue`."""
        if isinstance(message, LiveFragment):
            if message.source in self._copies:
                self.enqueue_fragment(message)
            return
        if isinstance(message, LiveFrame):
            if self._copy and message.packet is not None and message.packet.playable:
                self._copies.add(message.source)
                return
            self._copies.discard(message.source)
            if not self._thinner.is_due(message):
                return
            if self.waiting >= self._max_frames and self.patient_until is None:
                self.dropped += 1  # the other places in the queue are for events, which must not be lost
                return
        if isinstance(message, Notice) and message.kind not in ("lost", "ended", "failed"):
            return
        super().enqueue(message)

    def process(self, message: Message) -> None:
        """Encode a frame, or begin or end an event; what cannot be written is reported and counts as failed."""
        if isinstance(message, Rules):
            self._use_rules(message.rules)
            return
        stream = self._streams.setdefault(message.source, _Stream())
        try:
            if isinstance(message, LiveFrame):
                self._add_frame(stream, message)
            elif isinstance(message, LiveFragment):
                self.took_fragment(message)
                self._add_fragment(stream, message)
            elif isinstance(message, Event) and message.kind == "start":
                self._begin(stream, message)
            elif isinstance(message, Event):
                self._end(stream, message)
            elif isinstance(message, Notice):
                self._lose(stream)
            self._tidy()
        except (OSError, AdaFocusError) as error:
            self._failed(error)
        else:
            self._outage.worked()

    def _use_rules(self, rules: Sequence[EventRule]) -> None:
        """Keep as much video as an event of any rule may need; videos under way keep what they have at first."""
        self._kept_s = self._before_s + self._lag_s + max((rule.for_s for rule in rules), default=0.0) + SLACK_S
        for stream in self._streams.values():
            if stream.kept is not None:
                stream.kept.keep_s = self._kept_s

    @property
    def trouble(self) -> str:
        """Why it drops frames."""
        return "cannot be written" if self._outage.lasts else super().trouble

    def _failed(self, error: Exception) -> None:
        self.failed += 1
        self._outage.failed(f"events cannot be written ({getattr(error, 'strerror', None) or error})")

    def idle(self) -> None:
        """End the videos of sources that have delivered no frame for a while, and delete old events."""
        now_s = time.monotonic()
        for stream in self._streams.values():
            if stream.kept is not None and now_s - stream.given_s > GAP_S:
                self._lose(stream)
        self._tidy()

    def finish(self) -> None:
        """Finish all clips; events that still last are cut."""
        for stream in self._streams.values():
            try:
                self._end_video(stream)
            except (OSError, AdaFocusError) as error:
                self._failed(error)
        self._store.close_abandoned()

    # -- video --------------------------------------------------------------------------------------------------------

    def _add_frame(self, stream: _Stream, frame: LiveFrame) -> None:
        picture = frame.to_rgb()
        shape = (*picture.shape, frame.sample_aspect)
        if stream.last_s is not None and not 0 < frame.time_s - stream.last_s < GAP_S:
            self._end_video(stream)
        if stream.video is None or shape != stream.shape:
            self._end_video(stream)
            height, width = picture.shape[:2]
            scale = min(1.0, CLIP_WIDTH / width)
            width, height = (max(2, round(side * scale) // 2 * 2) for side in (width, height))
            stream.video = RollingVideo(width, height, self._kept_s, frame.sample_aspect)
            stream.kept, stream.shape = stream.video.kept, shape
        stream.given_s, stream.last_s = time.monotonic(), frame.time_s
        fragment = stream.video.add(picture, frame.time_s)
        if fragment is not None:
            self._write(stream, fragment)

    def _add_fragment(self, stream: _Stream, copied: LiveFragment) -> None:
        first_s, last_s = copied.captured_s[0], copied.captured_s[-1]
        if stream.kept is None or stream.copied is not copied.video:
            self._end_video(stream)
            stream.copied = copied.video
            # The event is seen later than its packets arrive: by as much as the decoder may be behind.
            stream.kept = KeptFragments(copied.video.head, self._kept_s + MAX_AHEAD_S, MAX_KEPT_BYTES)
        stream.given_s, stream.last_s = time.monotonic(), last_s
        length_s = (max(copied.shown) - copied.start) / COPY_TICKS
        fragment = Fragment(copied.data, first_s, last_s, length_s, copied.is_key)
        stream.kept.keep(fragment)
        self._write(stream, fragment)

    def _write(self, stream: _Stream, fragment: Fragment) -> None:
        """Add a fragment to all clips of its source, and finish those that are long enough."""
        failed: Exception | None = None
        for clip in list(stream.clips.values()):
            ends_s = stream.ends_s(clip, self._post_s)
            try:
                if clip.file is None:
                    if fragment.first_s <= ends_s:
                        self._open(stream, clip)  # this fragment is among those that are kept
                else:
                    self._append(stream, clip, clip.file, fragment)
            except (OSError, AdaFocusError) as error:
                self._end_clip(stream, clip)
                failed = error
                continue
            longest_s = float("inf") if clip.origin is None else clip.first_s + LONGEST_S
            if fragment.last_s >= min(ends_s, longest_s):
                self._end_clip(stream, clip)
        if failed is not None:
            raise failed

    def _end_clip(self, stream: _Stream, clip: _Clip) -> None:
        """Write no more to a clip."""
        del stream.clips[clip.event.key]
        if clip.file is not None:
            clip.file.close()

    def _open(self, stream: _Stream, clip: _Clip) -> None:
        """Begin the file of a clip with what is kept of its source's video, if that is anything yet."""
        event = clip.event
        if self._store.get(event.key) is None:  # deleted meanwhile
            return
        begins_s = event.start_s - self._before_s + stream.ahead_s(event.frame)
        if stream.kept is None or not (fragments := stream.kept.since(begins_s)):
            return
        path = self._store.path(f"{event.key}.mp4")
        self._store.update(event.key, clip=path.name)  # first: no file is of an event that does not name it
        try:
            clip.file = path.open("xb", buffering=0)
            write_all(clip.file, stream.kept.head)
        except BaseException:
            if clip.file is not None:
                path.unlink(missing_ok=True)
            self._store.update(event.key, clip=None)
            raise
        clip.size += len(stream.kept.head)
        self._store.update(event.key, bytes=clip.size)
        for fragment in fragments:
            self._append(stream, clip, clip.file, fragment)

    def _append(self, stream: _Stream, clip: _Clip, file: IO[bytes], fragment: Fragment) -> None:
        key, begins = clip.event.key, start_of(fragment.data)
        if clip.origin is None:
            if not fragment.is_key:
                return
            clip.origin, clip.first_s = begins, fragment.first_s
            frame = clip.event.frame
            clock_s = frame.time_s if stream.copied is None else frame.captured_s
            self._store.update(key, clip_from=fragment.first_s + clip.event.wall_s - clock_s)
        data = moved(fragment.data, clip.origin)
        write_all(file, data)
        os.fsync(file.fileno())  # before the index names it: a power cut loses neither
        clip.size += len(data)
        clip_s = (begins - clip.origin) / (TICKS if stream.copied is None else COPY_TICKS) + fragment.length_s
        self._store.update(key, clip_s=round(clip_s, 3), bytes=clip.size)

    def _lose(self, stream: _Stream) -> None:
        """End a source's video, which will not go on; clips that wait for it have none."""
        stream.ended_s = time.monotonic()
        self._end_video(stream)
        stream.clips.clear()

    def _end_video(self, stream: _Stream) -> None:
        """End a source's video, if it has one: write what is left of it to its clips, and finish them."""
        if stream.kept is None:
            return
        video, stream.video, stream.last_s = stream.video, None, None
        try:
            if video is not None and (fragment := video.close()) is not None:
                self._write(stream, fragment)
        finally:
            stream.close_clips()
            stream.copied = stream.kept = None

    # -- events -------------------------------------------------------------------------------------------------------

    def _begin(self, stream: _Stream, event: Event) -> None:
        started = event.wall_s - (event.frame.time_s - event.start_s)
        started = round(started, 3)  # as it is shown: a filter by the time that is shown finds it
        self._store.add(StoredEvent(event.key, event.source, event.label, started, peak=event.peak))
        try:
            picture = self._store.path(f"{event.key}.jpg")
            with atomic_write(picture) as file:
                event_picture(event, self._spec).save(file, "JPEG", quality=QUALITY)
            size = picture.stat().st_size
            self._store.update(event.key, picture=picture.name, bytes=size)
        except OSError as error:  # the clip may still be written
            self._failed(error)
            size = 0
        if stream.kept is None and event.frame.captured_s <= stream.ended_s:
            return  # its video has ended: the next one is another
        clip = stream.clips[event.key] = _Clip(_light(event), size)
        try:
            self._open(stream, clip)
        except BaseException:
            self._end_clip(stream, clip)
            raise

    def _end(self, stream: _Stream, event: Event) -> None:
        assert event.end_s is not None
        self._store.end(event.key, round(event.end_s - event.start_s, 3), event.peak, cut=event.cut)
        if (clip := stream.clips.get(event.key)) is not None:
            clip.ended = _light(event)

    def _tidy(self) -> None:
        now_s = time.monotonic()
        if now_s - self._tidied_s >= TIDY_S or not self._tidied_s:
            self._tidied_s = now_s
            with suppress(OSError, AdaFocusError):
                self._store.delete_old(self._max_age_s, self._max_bytes)

"""Live runs: endless sources through one model in overlapping windows of T glimpses, with one thread for the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adafocus_edge.backends.gpu_frames import LiveFrames
from adafocus_edge.errors import AdaFocusError, ServerLostError, SourceError, UsageError
from adafocus_edge.live.capture import Capture, Prepared
from adafocus_edge.live.clip_job import ClipJob
from adafocus_edge.live.events import EventRule, check_rules
from adafocus_edge.live.listener import Sink, Subscriber
from adafocus_edge.live.messages import Drops, LiveFrame, Message, Notice, ProvisionalResult, Rules
from adafocus_edge.live.meters import Counters, DropMeter, DropReport
from adafocus_edge.live.outage import ServerOutage
from adafocus_edge.live.readers import Feed
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.live.source_state import STALE_GLIMPSES, SourceState, WindowState
from adafocus_edge.live.status import ListenerStatus, ModelStatus, RunStatus
from adafocus_edge.live.watchdog import SILENT_S, Activity, Watchdog
from adafocus_edge.live.windows import ResultMaker
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.lanes import lanes_of
from adafocus_edge.system.memory import trim
from adafocus_edge.system.sensors import SensorReader

if TYPE_CHECKING:
    from adafocus_edge.model.spec import Glimpse
    from adafocus_edge.runtime.classifier import Classifier, Result

WAIT_S = 0.1
"""How often the model's thread wakes up while no frame arrives."""
BEAT_S = 1.0
"""How often rates and drops are sampled."""
PREPARE_S = 120.0
"""Preparing one batch size may take this long before the run counts as stalled."""
CLOSE_S = 0.5
"""How long the end waits for sources; those that hang keep their daemon threads."""
TRIM_S = 60.0
"""How often free memory is returned to the system."""
REMOVE_S = 15.0
"""How long removing a source waits for the model's thread."""


@dataclass(frozen=True)
class LiveOptions:
    """Options of a live run.

    Attributes:
        capture: how sources are read.
        overlap: K, staggered recurrent states per source: a window ends every T / K glimpses.
        smooth: windows whose probabilities are averaged; 1 for none.
        rules: events to detect.
        max_guests: maximum number of feeds and clips beside the sources.
        archive_url: where the archive of events is served, see :class:`~adafocus_edge.live.messages.Event`.
        spare: number of sources that may be added while it runs.
    """

    capture: CaptureOptions = field(default_factory=CaptureOptions)
    overlap: int = 1
    smooth: int = 1
    rules: tuple[EventRule, ...] = ()
    max_guests: int = 0
    archive_url: str | None = None
    spare: int = 0


@dataclass(frozen=True)
class _Arrivals:
    """Everything that arrived for one step of the model.

    Attributes:
        frames: at most one frame of each source.
        clips: at most one frame of each clip: its number, time and pixels.
        over: sources that will give no more frames.
    """

    frames: list[tuple[SourceState, Prepared]]
    clips: list[tuple[ClipJob, Any]]
    over: list[SourceState]


class LiveRun:
    """Runs live sources through one model, side by side, and sends the results to its subscribers.

    A source's glimpses go through K recurrent states that began T / K glimpses apart; all sources and states step as
    one batch. The run never waits for a source without a new frame.

    Args:
        classifier: the model and its options; only the thread that calls :meth:`run` uses it.
        sources: with different names.
        options: of the run.
        listeners: subscribers; the caller closes them.
        report: is called with a line for each batch size that is prepared.

    Raises:
        UsageError: the options do not fit the model, or two sources have the same name.
    """

    def __init__(
        self,
        classifier: Classifier,
        sources: Sequence[Source],
        options: LiveOptions,
        listeners: Sequence[Subscriber] = (),
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        _check_options(classifier, sources, options)
        check_rules(options.rules, classifier.classes)
        model = classifier.model
        self.spec = model.spec
        self.classes = tuple(classifier.classes)
        self.backend, self.variant = model.backend, model.variant
        self.glimpse_fps = options.capture.glimpse_fps
        self.options = options
        self._classifier = classifier
        max_lanes = len(sources) * options.overlap + options.max_guests
        with_spare = max_lanes + options.spare * options.overlap
        if model.resident is not None and model.resident.largest_batch is not None:
            with_spare = max(max_lanes, min(with_spare, model.resident.largest_batch))
        self.max_sources = (with_spare - options.max_guests) // options.overlap
        self._lanes = lanes_of(model, max(1, with_spare))
        self._on_device = None if model.resident is None else LiveFrames(model.resident, classifier.decoder)
        check_server = (lambda: None) if model.remote is None else model.remote.check
        self._outage = ServerOutage(check_server, options.capture.retries, self._publish)
        self._results = ResultMaker(classifier, options.smooth, self._lanes.restart, self._publish, options.archive_url)
        self._listeners = list(listeners)
        self._listener_drops: dict[Sink, DropMeter] = {}
        self._arrived = threading.Condition()
        self._sources: dict[str, SourceState] = {}
        self._removed: dict[str, Counters] = {}
        self._rules = self._new_rules = options.rules
        self._jobs: list[ClipJob] = []
        self._sensors = SensorReader()
        self._on_prepare = report
        self._ready = threading.Event()
        self._preparing = ""  # in words
        self._step_began_s: float | None = None
        self._began_s = time.monotonic()
        self._beat_s = time.monotonic()
        self._running = self._begun = False
        for source in sources:
            self._sources[source.name] = self._new_source(source, None, kept=True)

    # -- from any thread ----------------------------------------------------------------------------------------------

    def listen(self, listener: Subscriber) -> None:
        """Send all further messages to a subscriber, too."""
        self._listeners = [*self._listeners, listener]

    def unlisten(self, listener: Subscriber) -> None:
        """Send no more messages to a subscriber."""
        self._listeners = [other for other in self._listeners if other is not listener]

    def newest(self, name: str) -> LiveFrame | None:
        """Return the newest captured frame of a source."""
        source = self._sources.get(name)
        return None if source is None else source.capture.newest

    def latest(self, name: str) -> ProvisionalResult | None:
        """Return the latest provisional result of a source."""
        source = self._sources.get(name)
        return None if source is None else source.latest

    def open_feed(self, name: str) -> Feed:
        """Add a source whose frames are pushed; closing the feed ends it.

        Raises:
            UsageError: there is no room, or a source of this name exists.
        """
        feed = Feed()
        with self._arrived:
            self._check_name(name)
            self._check_room()
            source = self._new_source(Source(name, name, live=True), feed, kept=False)
            self._sources = {**self._sources, name: source}
            self._arrived.notify_all()
        source.capture.start()
        return feed

    def add_source(self, source: Source) -> None:
        """Add a source while the others run.

        Raises:
            UsageError: there is no room, or a source of this name exists.
        """
        with self._arrived:
            self._check_name(source.name)
            if sum(other.kept for other in self._sources.values()) >= self.max_sources:
                raise UsageError(
                    f"{source.name}: {self.max_sources} sources are the most that can run now: restart to add more"
                )
            added = self._new_source(source, None, kept=True)
            self._sources = {**self._sources, source.name: added}
            begun = self._begun  # otherwise it starts with the others
            self._arrived.notify_all()
        if begun:
            added.capture.start()

    def remove_source(self, name: str, reason: str) -> None:
        """End a source, with its window and its events, while the others run; return once it is gone.

        Args:
            name: of the source; one that does not exist is ignored.
            reason: in words, for the last notice.

        Raises:
            AdaFocusError: the model is busy for too long to end it.
        """
        with self._arrived:
            source = self._sources.get(name)
            if source is None:
                return
            self._removed[name] = source.capture.counters
            source.kept = False
            source.capture.retire(Notice(name, "ended", f"{name}: {reason}", time.time()))
            if source.over or not self._begun:  # the model's thread has ended it, or does not know it yet
                self._forget(source)
            if not self._arrived.wait_for(lambda: self._sources.get(name) is not source, REMOVE_S):
                raise AdaFocusError(f"{name}: the model has been busy for {REMOVE_S:g} s: it ends once that is over")

    def set_rules(self, rules: Sequence[EventRule]) -> None:
        """Use other rules for events from the next step on; events of other rules end. Raises ``UsageError``."""
        check_rules(rules, self.classes)
        with self._arrived:
            self._new_rules = tuple(rules)
            self._arrived.notify_all()

    def submit_clip(self, source: Source, cancel: threading.Event | None = None) -> Future[Result]:
        """Classify a file beside the live sources, as ``classify`` does.

        Args:
            source: the file.
            cancel: cancels it when set.

        Returns:
            a future of the result, which may raise ``SourceError``.

        Raises:
            UsageError: there is no room.
        """
        with self._arrived:
            self._check_room()
            job = ClipJob(source, self._classifier, self._arrived)
            if cancel is not None:
                job.cancelled = cancel
            self._jobs.append(job)
            self._arrived.notify_all()
        return job.result

    def status(self) -> RunStatus:
        """Return the status of the run."""
        spec, now_s = self.spec, time.monotonic()
        model = ModelStatus(
            self.backend, self.variant, list(self.classes), spec.segments, spec.frame_size, spec.patch_size, spec.fit,
            self.glimpse_fps, self.options.overlap,
        )  # fmt: skip
        dropping = {one for one, meter in list(self._listener_drops.items()) if meter.dropping}
        listeners = [
            ListenerStatus(one.name, one.waiting, one.handled, one.dropped, one.failed, one in dropping)
            for one in self._listeners
        ]
        allowed_s = 0 if self._ready.is_set() else PREPARE_S
        return RunStatus(
            uptime_s=round(now_s - self._began_s, 3),
            model=model,
            sources=[source.status(self.glimpse_fps, self._preparing) for source in self._sources.values()],
            listeners=listeners,
            sensors=self._sensors.read(),
            alive=self._running,
            stalled_s=round(max(0.0, now_s - self._beat_s - allowed_s), 3) if self._running else 0.0,
        )

    @property
    def errors(self) -> dict[str, AdaFocusError]:
        """Why sources failed or never delivered a frame, by name."""
        failed = {name: source.capture.error for name, source in self._sources.items()}
        return {**{name: error for name, error in failed.items() if error is not None}, **self.unseen}

    @property
    def unseen(self) -> dict[str, AdaFocusError]:
        """Why sources that have not failed never delivered a frame, by name."""
        found: dict[str, AdaFocusError] = {}
        if not self._ready.is_set():  # no source has been started
            return found
        for name, source in self._sources.items():
            capture = source.capture
            if capture.error is None and not capture.counters.frames:
                found[name] = SourceError(capture.text if capture.state == "lost" else f"{name}: no frame received")
        return found

    # -- the model's thread -------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, duration_s: float | None = None) -> None:
        """Run until ``stop`` is set, the time is over, or every source has ended; then end the windows under way.

        Sources are started once every batch size that they may need is prepared.

        Args:
            stop: set by another thread to end the run.
            duration_s: how long to run from then on, in seconds; None for no limit.

        Raises:
            AdaFocusError: the model failed.
        """
        self._running, self._beat_s = True, time.monotonic()
        watchdog = Watchdog(self._activities, self._publish)
        try:
            self._prepare(stop)
            until_s = float("inf") if duration_s is None else time.monotonic() + duration_s
            watchdog.start()
            with self._arrived:
                self._begun = True
                waiting = [source for source in self._sources.values() if source.kept]  # guests have been started
            for source in waiting:
                if not stop.is_set():
                    source.capture.start()
            self._loop(stop, until_s)
        finally:
            self._running = False
            watchdog.close()
            self._end()

    def _loop(self, stop: threading.Event, until_s: float) -> None:
        next_beat_s, next_trim_s = 0.0, time.monotonic() + TRIM_S
        while not stop.is_set() and time.monotonic() < until_s:
            arrivals = self._gather(min(WAIT_S, until_s - time.monotonic()))
            self._beat_s = time.monotonic()
            if self._new_rules != self._rules:
                self._use_rules(self._new_rules)
            if arrivals.frames or arrivals.clips:
                self._step(arrivals)
            for source in arrivals.over:
                self._finish(source)
            if self._beat_s >= next_beat_s:
                next_beat_s = self._beat_s + BEAT_S
                self._beat()
            if self._beat_s >= next_trim_s:
                next_trim_s = self._beat_s + TRIM_S
                trim()
            if not self.options.max_guests and all(source.over for source in self._sources.values()):
                break

    def _beat(self) -> None:
        """Do what is due every :data:`BEAT_S`."""
        for source in self._sources.values():
            source.sample_rates()
            if source.since_begun and source.capture.is_lost:  # it may stay away for long
                self._results.cut(source)
        self._report_drops()

    def _end(self) -> None:
        """End all sources and clips, with the windows under way."""
        sources = list(self._sources.values())
        for source in sources:
            source.capture.stop()
        for source in sources:
            if not source.over:
                self._finish(source)
        for job in self._jobs:
            job.cancelled.set()
            job.fail(SourceError(f"{job.source.name}: the run has ended"))
        deadline = time.monotonic() + CLOSE_S  # for all sources together: the outputs must be finished, too
        for source in sources:
            source.capture.close(max(0.0, deadline - time.monotonic()))

    def _prepare(self, stop: threading.Event) -> None:
        """Prepare all batch sizes, unless ``stop`` is set meanwhile."""
        for size in self._lanes.prepare():
            if stop.is_set():
                break
            self._preparing, self._beat_s = f"preparing batch {size}", time.monotonic()
            if self._classifier.model.on_device:
                self._on_prepare(f"{self._preparing} ...")
        else:
            if self._on_device is not None:
                self._on_device.prepare()
            self._ready.set()
        self._preparing = ""

    def _activities(self) -> Iterator[Activity]:
        """Yield what the watchdog must know of each source that should be glimpsed."""
        if self._outage.lasts:
            return
        began_s, now_s = self._step_began_s, time.monotonic()
        step_s = 0.0 if began_s is None else now_s - began_s
        for source in list(self._sources.values()):
            capture = source.capture
            if source.kept and not source.over and capture.state in ("connecting", "running"):
                newest = capture.newest
                yield Activity(
                    capture.name, source.glimpses, step_s, None if newest is None else now_s - newest.captured_s,
                    capture.counters.damaged, max(SILENT_S, STALE_GLIMPSES / self.glimpse_fps),
                )  # fmt: skip

    def _gather(self, wait_s: float) -> _Arrivals:
        """Take at most one frame of each source and clip; wait up to ``wait_s`` for something to arrive."""
        if self._outage.lasts:
            return self._await_server(wait_s)
        deadline = time.monotonic() + wait_s
        with self._arrived:
            while True:
                self._remove_jobs()
                sources = self._admit()
                arrivals = _Arrivals(
                    [(source, frame) for source in sources if (frame := source.capture.take()) is not None],
                    [(job, taken) for job in self._jobs if (taken := job.take()) is not None],
                    [source for source in sources if source.capture.finished],
                )
                left_s = deadline - time.monotonic()
                if arrivals.frames or arrivals.clips or arrivals.over or left_s <= 0:
                    return arrivals
                self._arrived.wait(left_s)

    def _await_server(self, wait_s: float) -> _Arrivals:
        """Try to reach the model's server again, or wait until that is due; take no frames meanwhile."""
        self._outage.attempt(self._names_under_way(), wait_s)
        with self._arrived:
            self._remove_jobs()
            return _Arrivals([], [], [source for source in self._admit() if source.capture.finished])

    def _lose_server(self, error: ServerLostError) -> None:
        """End the windows and clips under way, whose states were on the server. Raises the error to end the run."""
        self._step_began_s = None
        self._outage.begin(error, self._names_under_way())
        for source in self._sources.values():
            self._results.cut(source)
        for job in self._jobs:
            job.cancelled.set()
            job.fail(error)

    def _names_under_way(self) -> list[str]:
        return [name for name, source in self._sources.items() if not source.over]

    def _step(self, arrivals: _Arrivals) -> None:
        """Take one step with all arrivals, and publish the results."""
        frames: dict[int, Any] = {}
        for source, prepared in arrivals.frames:
            if prepared.connection != source.connection:
                if source.connection:
                    self._results.cut(source)
                source.connection = prepared.connection
            lanes = [state.lane for state in source.under_way if not state.sure]
            if lanes:
                frames.update(dict.fromkeys(lanes, self._pixels(prepared)))
        for job, (_, _, pixels) in arrivals.clips:
            if job.lane is None:
                job.lane = self._lanes.join()
            frames[job.lane] = pixels
        try:
            glimpses, model_s = self._glimpse(frames)
        except ServerLostError as error:
            self._lose_server(error)
            return
        for source, prepared in arrivals.frames:
            source.glimpses += 1
            self._results.add(source, prepared, glimpses, model_s)
        for job, (index, time_s, _) in arrivals.clips:
            job.add(index, time_s, glimpses, model_s)

    def _glimpse(self, frames: dict[int, Any]) -> tuple[dict[int, Glimpse], float]:
        """Run the model on one frame per lane; return the glimpse of each lane, and the time taken in seconds."""
        before = time.perf_counter()
        self._step_began_s = time.monotonic()
        glimpses = self._lanes.step(frames) if frames else {}
        self._step_began_s = None
        return glimpses, time.perf_counter() - before

    def _pixels(self, prepared: Prepared) -> Any:
        """Return a frame as the model takes it, made on its device if that has not been done yet."""
        return prepared.pixels if self._on_device is None else self._on_device.made(prepared.pixels)

    def _finish(self, source: SourceState) -> None:
        """End a source: its windows, its last notice, its lanes."""
        self._results.cut(source)
        if (last_notice := source.capture.last_notice) is not None:
            self._publish(last_notice)
        for state in source.states:
            self._lanes.leave(state.lane)
        source.states, source.over = [], True
        if not source.kept:
            with self._arrived:
                self._forget(source)

    def _forget(self, source: SourceState) -> None:
        """Remove a source that is over. ``arrived`` is held."""
        self._sources = {name: other for name, other in self._sources.items() if other is not source}
        self._arrived.notify_all()

    def _use_rules(self, rules: tuple[EventRule, ...]) -> None:
        self._rules = rules
        self._publish(Rules(rules))
        for source in list(self._sources.values()):
            self._results.use_rules(source, rules)

    def _remove_jobs(self) -> None:
        """Remove clips that are done, failed or cancelled. ``arrived`` is held."""
        for job in list(self._jobs):
            complete = len(job.steps) == self.spec.segments
            if not (complete or job.result.done() or job.cancelled.is_set()):
                continue
            self._jobs.remove(job)
            if job.lane is not None:
                self._lanes.leave(job.lane)
            if complete and not job.result.done():
                latency_ms = (time.monotonic() - job.started_s) * 1e3
                start_s = None if job.duration_s is None else 0.0
                result = self._classifier.result(
                    job.source.name, start_s, job.duration_s, job.steps, False, latency_ms, job.model_s * 1e3
                )
                with suppress(InvalidStateError):  # cancelled meanwhile
                    job.result.set_result(result)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _check_name(self, name: str) -> None:
        """Raise ``UsageError`` if a source has this name. ``arrived`` is held."""
        if name in self._sources:
            raise UsageError(f"{name}: a source of this name exists: choose another name")

    def _check_room(self) -> None:
        """Raise ``UsageError`` if there is no room for another guest. ``arrived`` is held."""
        guests = sum(not source.kept for source in self._sources.values())
        guests += sum(not job.result.done() for job in self._jobs)
        if guests >= self.options.max_guests:
            raise UsageError(f"{guests} cameras and clips are being processed already: try again later")

    def _new_source(self, source: Source, feed: Feed | None, *, kept: bool) -> SourceState:
        capture = Capture(
            source, self.spec, self.options.capture, self._arrived, on_frame=self._publish, on_notice=self._publish,
            feed=feed, is_ready=self._ready.is_set, on_device=self._on_device, on_fragment=self._publish,
            counters=self._removed.get(source.name) if kept else None,
        )  # fmt: skip
        return SourceState(capture, self.options.smooth, self._rules, kept=kept)

    def _admit(self) -> list[SourceState]:
        """Give each new source its recurrent states; return all sources that are not over."""
        sources = [source for source in self._sources.values() if not source.over]
        for source in sources:
            if not source.states:
                overlap = self.options.overlap if source.kept else 1
                offsets = (k * self.spec.segments // overlap for k in range(overlap))
                source.states = [WindowState(self._lanes.join(), offset) for offset in offsets]
        return sources

    def _report_drops(self) -> None:
        """Report sources that the model is too slow for, and outputs that are too slow."""
        now_s = time.monotonic()
        for source in self._sources.values():
            counters = source.capture.counters
            if (report := source.drops.update(counters.dropped, counters.picked, now_s)) is not None:
                self._publish_drops(
                    report,
                    source.name,
                    "the model is too slow, frames to glimpse are dropped",
                    "the model keeps up again",
                )
        sinks = [one for one in self._listeners if isinstance(one, Sink)]
        self._listener_drops = {one: self._listener_drops.get(one) or DropMeter() for one in sinks}
        for one, meter in self._listener_drops.items():
            if (report := meter.update(one.dropped, one.offered, now_s)) is not None:
                self._publish_drops(report, one.name, f"{one.trouble}, {one.unit} are dropped", "keeps up again")

    def _publish_drops(self, report: DropReport, name: str, too_slow: str, keeps_up: str) -> None:
        text = f"{name}: {too_slow}: {report}" if report.lasts else f"{name}: {keeps_up}; dropped {report}"
        self._publish(Drops(name, "dropping" if report.lasts else "recovered", text, time.time()))

    def _publish(self, message: Message) -> None:
        for listener in self._listeners:
            listener.enqueue(message)


def _check_options(classifier: Classifier, sources: Sequence[Source], options: LiveOptions) -> None:
    """Raise ``UsageError`` if the options do not fit the model, or two sources have the same name."""
    segments = classifier.model.spec.segments
    if not 1 <= options.overlap <= segments:
        raise UsageError(f"--overlap {options.overlap}: must be 1 to {segments}, the number of glimpses in a window")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice}: two sources have this name: give each its own (NAME=ADDRESS)")

"""Live runs: many endless sources through one model, in windows of T glimpses that overlap, with one thread for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.gpu_frames import LiveFrames
from adafocus_edge.errors import AdaFocusError, SourceError, UsageError
from adafocus_edge.live.capture import Capture, Feed, Prepared
from adafocus_edge.live.clip_job import ClipJob
from adafocus_edge.live.events import EventDetector, EventRule, Smoother
from adafocus_edge.live.messages import (
    Drops,
    Event,
    LiveFrame,
    Message,
    Notice,
    ProvisionalResult,
    Sink,
    Subscriber,
    Window,
    iso,
)
from adafocus_edge.live.meters import DropMeter, DropReport, LatencyMeter, RateMeter
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.live.watchdog import SILENT_S, Silence, Watchdog
from adafocus_edge.media.sources import Source
from adafocus_edge.model.logits import softmax
from adafocus_edge.runtime.lanes import lanes_of
from adafocus_edge.system.memory import trim
from adafocus_edge.system.sensors import SensorReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.runtime.classifier import Classifier, Result, Step

WAIT_S = 0.1
"""How often the model's thread looks around while no frame comes."""
BEAT_S = 1.0
"""How often rates and drops are sampled."""
PREPARE_S = 120.0
"""One batch size may take so long to prepare before the run counts as stalled."""
STALE_S = 5.0
STALE_GLIMPSES = 3
"""What was seen last is stale after this time, or that of so many glimpses, whichever is longer."""
MIN_DROPS = 3
"""Frames that a model may miss, as in its first steps, without a word."""
CLOSE_S = 0.5
"""How long the end waits for sources; those that hang are left to their daemon threads."""
TRIM_S = 60.0
"""How often memory that is free goes back to the system."""


@dataclass(frozen=True)
class LiveOptions:
    """How a live run goes.

    Attributes:
        capture: how sources are read.
        overlap: K, staggered states per source: a window ends every T / K glimpses.
        smooth: windows whose probabilities are averaged; 1 for none.
        rules: what becomes an event.
        max_guests: room for feeds and clips beside the sources.
    """

    capture: CaptureOptions = field(default_factory=CaptureOptions)
    overlap: int = 1
    smooth: int = 1
    rules: tuple[EventRule, ...] = ()
    max_guests: int = 0


@dataclass(frozen=True)
class RunStatus:
    """How a live run is doing; ``to_json`` says it all."""

    uptime_s: float
    model: dict[str, Any]
    sources: list[dict[str, Any]]
    listeners: list[dict[str, Any]]
    sensors: dict[str, Any]
    alive: bool
    stalled_s: float

    def to_json(self) -> dict[str, Any]:
        """Return it as the page, ``--status`` and the end of a run show it."""
        return asdict(self)


class _State:
    """One recurrent state: a window after another, T glimpses each."""

    def __init__(self, lane: int, offset: int) -> None:
        self.lane = lane
        self.offset = offset
        self.seen = 0  # glimpses of this window, those left out after an early exit too
        self.steps: list[Step] = []
        self.step_ms: list[float] = []
        self.sure = False


class _SourceState:
    """One source in the run: its capture, its states, and what is measured."""

    def __init__(self, capture: Capture, options: LiveOptions, *, kept: bool) -> None:
        self.capture = capture
        self.states: list[_State] = []  # none before the model's thread has let it in
        self.over = False
        self.kept = kept  # in the status when it has ended: a guest is not
        self.latency = LatencyMeter()
        self.frames_rate, self.glimpses_rate = RateMeter(), RateMeter()
        self.glimpses = 0
        self.windows = 0
        self.since_begun = 0  # glimpses since the states began together
        self.connection = 0
        self.latest: ProvisionalResult | None = None
        self.seen_s: float | None = None  # of the newest frame that was glimpsed, or passed over after an early exit
        self.seen_wall_s = 0.0
        self.seen_connection = 0
        self.drops = DropMeter(MIN_DROPS)
        self.smoother = Smoother(options.smooth)
        self.detectors = [EventDetector(rule) for rule in options.rules]
        self.numbers: dict[EventDetector, int] = {}


class LiveRun:
    """Runs live sources through one model, side by side, and tells listeners what is seen.

    A source's glimpses go through K recurrent states that began T / K glimpses apart; all sources and states step as
    one batch. A source without a new frame is not waited for.

    Args:
        classifier: the model and its choices; only the thread that calls :meth:`run` uses it.
        sources: with names that differ.
        options: how.
        listeners: who is told; closed by whoever made them.
        report: is called with a line about each batch size that is prepared.

    Raises:
        UsageError: the options do not fit the model.
    """

    def __init__(
        self,
        classifier: Classifier,
        sources: Sequence[Source],
        options: LiveOptions,
        listeners: Sequence[Subscriber] = (),
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        spec = classifier.model.spec
        if not 1 <= options.overlap <= spec.segments:
            raise UsageError(f"--overlap {options.overlap}: 1 to {spec.segments}, the glimpses of a window")
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"{twice}: named twice: give each source a name of its own (NAME=ADDRESS)")
        for rule in options.rules:
            if rule.label not in classifier.classes:
                known = ", ".join(classifier.classes[:8]) + (" ..." if len(classifier.classes) > 8 else "")
                raise UsageError(f"event {rule.label}: no such class; there are {known}")
        self.spec = spec
        self.classes = tuple(classifier.classes)
        self.backend, self.variant = classifier.model.backend, classifier.model.variant
        self.glimpse_fps = options.capture.glimpse_fps
        self.options = options
        self._classifier = classifier
        most = len(sources) * options.overlap + options.max_guests
        model = classifier.model
        self._lanes = lanes_of(model, max(1, most))
        self._on_device = None if model.resident is None else LiveFrames(model.resident, classifier.decoder)
        self._listeners = list(listeners)
        self._listener_drops: dict[Sink, DropMeter] = {}
        self._arrived = threading.Condition()
        self._strands: dict[str, _SourceState] = {}
        self._jobs: list[ClipJob] = []
        self._events = 0
        self._sensors = SensorReader()
        self._on_prepare = report
        self._ready = threading.Event()
        self._preparing = ""  # what is prepared at the moment, in words
        self._step_began_s: float | None = None
        self._began_s = time.monotonic()
        self._beat_s = time.monotonic()
        self._running = False
        for source in sources:
            self._strands[source.name] = self._strand(source, None, kept=True)

    # -- from any thread ----------------------------------------------------------------------------------------------

    def listen(self, listener: Subscriber) -> None:
        """Let a listener be told from now on."""
        self._listeners = [*self._listeners, listener]

    def unlisten(self, listener: Subscriber) -> None:
        """Tell a listener no more."""
        self._listeners = [other for other in self._listeners if other is not listener]

    def newest(self, name: str) -> LiveFrame | None:
        """Return the newest captured frame of a source."""
        strand = self._strands.get(name)
        return None if strand is None else strand.capture.newest

    def latest(self, name: str) -> ProvisionalResult | None:
        """Return the latest provisional result of a source."""
        strand = self._strands.get(name)
        return None if strand is None else strand.latest

    def open_feed(self, name: str) -> Feed:
        """Add a source whose frames are pushed; closing the feed ends it. Raises ``UsageError`` if there is no room."""
        feed = Feed()
        with self._arrived:
            if name in self._strands:
                raise UsageError(f"{name}: there is a source of that name")
            self._let_in()
            strand = self._strand(Source(name, name, live=True), feed, kept=False)
            self._strands = {**self._strands, name: strand}
            self._arrived.notify_all()
        strand.capture.start()
        return feed

    def submit_clip(self, source: Source, cancel: threading.Event | None = None) -> Future[Result]:
        """Classify a file beside the live sources, as ``classify`` does; ``cancel`` gives it up.

        Raises ``UsageError`` if there is no room; a ``SourceError`` comes through the future.
        """
        with self._arrived:
            self._let_in()
            job = ClipJob(source, self._classifier, self._arrived)
            if cancel is not None:
                job.cancelled = cancel
            self._jobs.append(job)
            self._arrived.notify_all()
        return job.result

    def status(self) -> RunStatus:
        """Say how the run is doing."""
        spec = self.spec
        model = {
            "backend": self.backend, "variant": self.variant, "classes": list(self.classes),
            "segments": spec.segments, "frame_size": spec.frame_size, "patch_size": spec.patch_size, "fit": spec.fit,
            "glimpse_fps": self.glimpse_fps, "overlap": self.options.overlap,
        }  # fmt: skip
        now_s = time.monotonic()
        dropping = {one for one, meter in list(self._listener_drops.items()) if meter.dropping}
        listeners = [
            {"name": one.name, "waiting": one.waiting, "handled": one.handled, "dropped": one.dropped,
             "failed": one.failed, "dropping": one in dropping}
            for one in self._listeners
        ]  # fmt: skip
        return RunStatus(
            round(now_s - self._began_s, 3), model, [self._source_status(s) for s in self._strands.values()], listeners,
            asdict(self._sensors.read()), self._running,
            round(max(0.0, now_s - self._beat_s - (0 if self._ready.is_set() else PREPARE_S)), 3)
            if self._running
            else 0.0,
        )  # fmt: skip

    # -- the model's thread -------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, duration_s: float | None = None) -> None:
        """Run until told, until the time is over, or until every source has ended; then end all windows under way.

        Sources are started once every batch size that they can need is prepared.

        Args:
            stop: set from elsewhere to end the run.
            duration_s: how long to run from then on, or None for no end.

        Raises:
            AdaFocusError: the model failed.
        """
        self._running, self._beat_s = True, time.monotonic()
        watchdog = Watchdog(self._silent, self._tell)
        next_beat_s, next_trim_s = 0.0, time.monotonic() + TRIM_S
        try:
            self._prepare(stop)
            until_s = float("inf") if duration_s is None else time.monotonic() + duration_s
            watchdog.start()
            for strand in self._strands.values():
                if strand.kept and not stop.is_set():  # a guest may have come already, and has begun then
                    strand.capture.start()
            while not stop.is_set() and time.monotonic() < until_s:
                seen, clips, over = self._gather(min(WAIT_S, until_s - time.monotonic()))
                self._beat_s = time.monotonic()
                if seen or clips:
                    self._step(seen, clips)
                for strand in over:
                    self._finish(strand)
                if self._beat_s >= next_beat_s:
                    next_beat_s = self._beat_s + BEAT_S
                    for strand in self._strands.values():
                        strand.frames_rate.rate(strand.capture.counters.frames)
                        strand.glimpses_rate.rate(strand.glimpses)
                        if strand.since_begun and strand.capture.gone:  # it may not come back for long
                            self._cut(strand)
                    self._watch_drops()
                if self._beat_s >= next_trim_s:
                    next_trim_s = self._beat_s + TRIM_S
                    trim()
                if not self.options.max_guests and all(s.over for s in self._strands.values()):
                    break
        finally:
            self._running = False
            watchdog.close()
            strands = list(self._strands.values())
            for strand in strands:
                strand.capture.stop()
            for strand in strands:
                if not strand.over:
                    self._finish(strand)
            for job in self._jobs:
                job.cancelled.set()
                job.fail(SourceError(f"{job.source.name}: the run has ended"))
            deadline = time.monotonic() + CLOSE_S  # for all: the outputs must be finished, too
            for strand in strands:
                strand.capture.close(max(0.0, deadline - time.monotonic()))

    @property
    def errors(self) -> dict[str, AdaFocusError]:
        """Why sources failed, and of those that never gave a frame."""
        failed = {name: strand.capture.error for name, strand in self._strands.items()}
        return {**{name: error for name, error in failed.items() if error is not None}, **self.unseen}

    @property
    def unseen(self) -> dict[str, AdaFocusError]:
        """Why sources never gave a frame so far, though they have not failed."""
        found: dict[str, AdaFocusError] = {}
        if not self._ready.is_set():  # none was started
            return found
        for name, strand in self._strands.items():
            capture = strand.capture
            if capture.error is None and not capture.counters.frames:
                found[name] = SourceError(capture.text if capture.state == "lost" else f"{name}: no frame came")
        return found

    def _prepare(self, stop: threading.Event) -> None:
        """Prepare all batch sizes, unless told to stop meanwhile."""
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

    def _silent(self) -> Iterator[Silence]:
        """Yield what the watchdog must know of each source that should be seen."""
        began_s, now_s = self._step_began_s, time.monotonic()
        step_s = 0.0 if began_s is None else now_s - began_s
        for strand in list(self._strands.values()):
            capture = strand.capture
            if strand.kept and not strand.over and capture.state in ("connecting", "running"):
                newest = capture.newest
                yield Silence(
                    capture.name, strand.glimpses, step_s, None if newest is None else now_s - newest.captured_s,
                    capture.counters.damaged, max(SILENT_S, STALE_GLIMPSES / self.glimpse_fps),
                )  # fmt: skip

    def _gather(
        self, wait_s: float
    ) -> tuple[list[tuple[_SourceState, Prepared]], list[tuple[ClipJob, Any]], list[_SourceState]]:
        """Take what is there, at most one frame of each source; wait for something if there is nothing."""
        deadline = time.monotonic() + wait_s
        with self._arrived:
            while True:
                self._drop_jobs()
                strands = self._admit()
                seen = [(strand, frame) for strand in strands if (frame := strand.capture.take()) is not None]
                clips = [(job, taken) for job in self._jobs if (taken := job.take()) is not None]
                over = [strand for strand in strands if strand.capture.finished]
                left_s = deadline - time.monotonic()
                if seen or clips or over or left_s <= 0:
                    return seen, clips, over
                self._arrived.wait(left_s)

    def _step(self, seen: list[tuple[_SourceState, Prepared]], clips: list[tuple[ClipJob, Any]]) -> None:
        """Take one step with all that came."""
        frames: dict[int, Any] = {}
        for strand, prepared in seen:
            if prepared.connection != strand.connection:
                if strand.connection:
                    self._cut(strand)
                strand.connection = prepared.connection
            strand.glimpses += 1
            lanes = [state.lane for state in self._under_way(strand) if not state.sure]
            if lanes:
                frames.update(dict.fromkeys(lanes, self._pixels(prepared)))
        for job, (_, _, pixels) in clips:
            if job.lane is None:
                job.lane = self._lanes.join()
            frames[job.lane] = pixels
        before = time.perf_counter()
        self._step_began_s = time.monotonic()
        glimpses = self._lanes.step(frames) if frames else {}
        self._step_began_s = None
        model_s = time.perf_counter() - before
        for strand, prepared in seen:
            self._seen(strand, prepared, glimpses, model_s)
        for job, (index, time_s, _) in clips:
            assert job.lane is not None
            job.model_s += model_s
            job.steps.append(self._classifier.step(len(job.steps), index, time_s, glimpses[job.lane]))

    def _pixels(self, prepared: Prepared) -> Any:
        """Return a frame as the model takes it, made on its device if it is not made yet."""
        return prepared.pixels if self._on_device is None else self._on_device.made(prepared.pixels)

    def _under_way(self, strand: _SourceState) -> list[_State]:
        return [state for state in strand.states if strand.since_begun >= state.offset]

    def _seen(self, strand: _SourceState, prepared: Prepared, glimpses: dict[int, Any], model_s: float) -> None:
        """Count a glimpse in every state of its source, and tell what it shows."""
        frame, segments = prepared.frame, self.spec.segments
        stepped: list[_State] = []
        done: list[_State] = []
        for state in self._under_way(strand):
            state.seen += 1
            if not state.sure:
                glimpse = glimpses[state.lane]
                state.steps.append(self._classifier.step(len(state.steps), frame.index, frame.time_s, glimpse))
                state.step_ms.append(model_s * 1e3)
                state.sure = self._classifier.is_sure(state.steps[-1])
                stepped.append(state)
                if state.sure or state.seen == segments:
                    done.append(state)
        strand.since_begun += 1
        strand.seen_s, strand.seen_wall_s = frame.captured_s, frame.wall_s
        strand.seen_connection = prepared.connection
        latency_ms = (time.monotonic() - frame.captured_s) * 1e3
        if stepped:
            strand.latency.add(latency_ms)
            oldest = max(stepped, key=lambda state: state.seen)
            step = oldest.steps[-1]
            settled = oldest.sure or 2 * len(oldest.steps) >= segments
            look = ProvisionalResult(strand.capture.name, frame, step, self._classifier.top(step), settled, latency_ms)
            strand.latest = look
            self._tell(look)
            if settled and self.options.smooth == 1:
                self._detect(strand, frame, step.patch, softmax(step.logits))
        for state in done:
            self._window(strand, state, frame.wall_s, latency_ms, cut=False, last=frame)
        for state in strand.states:
            if state.seen == segments:
                self._restart(state)

    def _window(
        self,
        strand: _SourceState,
        state: _State,
        wall_s: float,
        latency_ms: float,
        *,
        cut: bool,
        last: LiveFrame | None,
    ) -> None:
        steps = state.steps
        name = strand.capture.name
        # The earlier glimpses were made while the window's frames came: the latency holds the last one alone.
        result = self._classifier.result(
            name, steps[0].time_s, steps[-1].time_s, steps, state.sure, latency_ms, state.step_ms[-1]
        )
        result = replace(result, step_ms=tuple(state.step_ms))
        smoothed = None
        if self.options.smooth > 1:
            mean = strand.smoother.add(softmax(steps[-1].logits))
            smoothed = self._classifier.guesses(mean)
            if last is not None:
                self._detect(strand, last, steps[-1].patch, mean)
        strand.windows += 1
        self._tell(Window(name, result, smoothed, wall_s, cut))

    def _detect(
        self, strand: _SourceState, frame: LiveFrame, patch: tuple[int, int, int], probabilities: NDArray[np.float32]
    ) -> None:
        for detector in strand.detectors:
            confidence = float(probabilities[self.classes.index(detector.rule.label)])
            if (kind := detector.update(frame.time_s, confidence)) is not None:
                self._event(strand, detector, kind, frame, patch)

    def _event(
        self, strand: _SourceState, detector: EventDetector, kind: Any, frame: LiveFrame, patch: tuple[int, int, int]
    ) -> None:
        if kind == "start":
            self._events += 1
            strand.numbers[detector] = self._events
        end_s = detector.last_s if kind == "end" else None
        number, label = strand.numbers[detector], detector.rule.label
        self._tell(
            Event(strand.capture.name, kind, number, label, detector.start_s, end_s, detector.peak, frame.wall_s,
                  frame, patch)
        )  # fmt: skip

    def _cut(self, strand: _SourceState) -> None:
        """End what is under way in a source that was lost or is over, and begin anew."""
        last = strand.latest
        # Only the state that has seen the most is told: the others saw the same in part.
        open_states = [state for state in strand.states if state.steps and not state.sure]
        if open_states and last is not None:
            oldest = max(open_states, key=lambda state: state.seen)
            self._window(strand, oldest, last.frame.wall_s, last.latency_ms, cut=True, last=None)
        for detector in strand.detectors:
            if (kind := detector.end()) is not None and last is not None:
                self._event(strand, detector, kind, last.frame, last.step.patch)
        strand.smoother.clear()
        strand.since_begun = 0
        for state in strand.states:
            self._restart(state)

    def _restart(self, state: _State) -> None:
        state.seen, state.steps, state.step_ms, state.sure = 0, [], [], False
        self._lanes.restart(state.lane)

    def _finish(self, strand: _SourceState) -> None:
        """Let a source that is over go."""
        self._cut(strand)
        if (last_word := strand.capture.last_word) is not None:
            self._tell(last_word)
        for state in strand.states:
            self._lanes.leave(state.lane)
        strand.states, strand.over = [], True
        if not strand.kept:
            with self._arrived:
                self._strands = {n: s for n, s in self._strands.items() if s is not strand}

    def _drop_jobs(self) -> None:
        """Let clips go that are done, or that gave up. ``arrived`` is held."""
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
                with suppress(InvalidStateError):  # given up meanwhile
                    job.result.set_result(result)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _let_in(self) -> None:
        """Refuse a guest where there is no room. ``arrived`` is held."""
        guests = sum(not strand.kept for strand in self._strands.values())
        guests += sum(not job.result.done() for job in self._jobs)
        if guests >= self.options.max_guests:
            raise UsageError(f"{guests} cameras and clips are under way already: try again later")

    def _strand(self, source: Source, feed: Feed | None, *, kept: bool) -> _SourceState:
        capture = Capture(
            source, self.spec, self.options.capture, self._arrived, on_frame=self._tell, on_notice=self._tell,
            feed=feed, is_ready=self._ready.is_set, on_device=self._on_device,
        )  # fmt: skip
        return _SourceState(capture, self.options, kept=kept)

    def _admit(self) -> list[_SourceState]:
        """Give each source that is new its states; return all that are not over."""
        strands = [strand for strand in self._strands.values() if not strand.over]
        for strand in strands:
            if not strand.states:
                overlap = self.options.overlap if strand.kept else 1
                offsets = (k * self.spec.segments // overlap for k in range(overlap))
                strand.states = [_State(self._lanes.join(), offset) for offset in offsets]
        return strands

    def _watch_drops(self) -> None:
        """Report what the model and the outputs are too slow for."""
        now_s = time.monotonic()
        for strand in self._strands.values():
            counters, name = strand.capture.counters, strand.capture.name
            if (report := strand.drops.update(counters.dropped, counters.picked, now_s)) is not None:
                self._report(report, name, "the model is too slow, frames to look at are dropped", "the model")
        listeners = [one for one in self._listeners if isinstance(one, Sink)]
        self._listener_drops = {one: self._listener_drops.get(one) or DropMeter() for one in listeners}
        for one, meter in self._listener_drops.items():
            if (report := meter.update(one.dropped, one.offered, now_s)) is not None:
                self._report(report, one.name, f"too slow, {one.unit} are dropped", "it")

    def _report(self, report: DropReport, name: str, trouble: str, who: str) -> None:
        text = f"{name}: {trouble}: {report}" if report.lasts else f"{name}: {who} keeps up again; dropped {report}"
        self._tell(Drops(name, "dropping" if report.lasts else "recovered", text, time.time()))

    def _is_stale(self, strand: _SourceState) -> bool:
        """Whether what was seen last no longer says what is there: the source is gone, was, or has not been seen."""
        if strand.seen_s is None:
            return False
        capture = strand.capture
        if capture.state != "running" or capture.counters.connections != strand.seen_connection:
            return True
        return time.monotonic() - strand.seen_s > max(STALE_S, STALE_GLIMPSES / self.glimpse_fps)

    def _tell(self, message: Message) -> None:
        for listener in self._listeners:
            listener.enqueue(message)

    def _source_status(self, strand: _SourceState) -> dict[str, Any]:
        capture = strand.capture
        counters, newest = capture.counters, capture.newest
        return {
            "name": capture.name,
            "kind": capture.kind,
            "state": capture.state,
            "text": capture.text or self._preparing,
            "width": counters.width,
            "height": counters.height,
            "frames": counters.frames,
            "picked": counters.picked,
            "glimpses": strand.glimpses,
            "windows": strand.windows,
            "dropped": counters.dropped,
            "damaged": counters.damaged,
            "reconnects": max(0, counters.connections - 1),
            "waiting": capture.waiting,
            "fps_in": round(strand.frames_rate.rate(counters.frames), 2),
            "fps_glimpsed": round(strand.glimpses_rate.rate(strand.glimpses), 2),
            "latency_ms": asdict(strand.latency.percentiles()),
            "stale": self._is_stale(strand),
            "last_seen_at": None if strand.seen_s is None else iso(strand.seen_wall_s),
            "dropping": strand.drops.dropping,
            "last_frame_age_s": None if newest is None else round(time.monotonic() - newest.captured_s, 3),
        }


__all__ = ["LiveOptions", "LiveRun", "Notice", "RunStatus"]

"""From glimpses to results: provisional results, windows and events of each source."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from adafocus_edge.live.events import EventDetector, EventRule
from adafocus_edge.live.messages import Event, LiveFrame, Message, ProvisionalResult, Window
from adafocus_edge.model.logits import softmax
from adafocus_edge.system.retention import SafeNames, safe_name
from adafocus_edge.system.timestamps import stamp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adafocus_edge.live.capture import Prepared
    from adafocus_edge.live.source_state import SourceState, WindowState
    from adafocus_edge.model.spec import Glimpse, Patch
    from adafocus_edge.runtime.classifier import Classifier


class ResultMaker:
    """Makes the results of all sources, in the model's thread.

    Args:
        classifier: makes steps, guesses and results of a model's outputs.
        smooth: windows to average; 1 for none.
        restart: is called with a lane whose next glimpse begins a new window.
        publish: is called with each message.
        archive_url: see :class:`Event`.
    """

    def __init__(
        self,
        classifier: Classifier,
        smooth: int,
        restart: Callable[[int], None],
        publish: Callable[[Message], None],
        archive_url: str | None = None,
    ) -> None:
        self._classifier = classifier
        self._segments = classifier.model.spec.segments
        self._classes = tuple(classifier.classes)
        self._smooth = smooth
        self._restart_lane = restart
        self._publish = publish
        self._archive_url = archive_url
        self._names = SafeNames()
        self._events = 0
        self._run = secrets.token_hex(3)  # keeps keys unique where the system's clock repeats a time

    def add(self, source: SourceState, prepared: Prepared, glimpses: Mapping[int, Glimpse], model_s: float) -> None:
        """Count one glimpse in every state of a source, and publish the results.

        Args:
            source: whose frame was glimpsed.
            prepared: the frame.
            glimpses: of all lanes that took part in the step; states that have exited early take no part.
            model_s: time of the step in the model.
        """
        frame = prepared.frame
        stepped: list[WindowState] = []
        done: list[WindowState] = []
        for state in source.under_way:
            state.seen += 1
            if not state.sure:
                step = self._classifier.step(len(state.steps), frame.index, frame.time_s, glimpses[state.lane])
                state.steps.append(step)
                state.step_ms.append(model_s * 1e3)
                state.sure = self._classifier.is_sure(step)
                stepped.append(state)
                if state.sure or state.seen == self._segments:
                    done.append(state)
        source.note_seen(frame, prepared.connection)
        latency_ms = (time.monotonic() - frame.captured_s) * 1e3
        if stepped:
            self._publish_provisional(source, frame, stepped, latency_ms)
        for state in done:
            self._publish_window(source, state, frame.wall_s, latency_ms, frame=frame)
        for state in source.states:
            if state.seen == self._segments:
                self._restart(state)

    def use_rules(self, source: SourceState, rules: Sequence[EventRule]) -> None:
        """Detect the events of these rules in a source; those of rules that no longer apply end."""
        kept = {detector.rule: detector for detector in source.detectors}
        for rule, detector in kept.items():
            if rule not in rules:
                self._end_event(source, detector)
        source.detectors = [kept.get(rule) or EventDetector(rule) for rule in rules]

    def _end_event(self, source: SourceState, detector: EventDetector) -> None:
        """End the event under way, if there is one."""
        last = source.latest
        if (kind := detector.end()) is not None and last is not None:
            self._publish_event(source, detector, kind, last.frame, last.step.patch, cut=True)

    def cut(self, source: SourceState) -> None:
        """End the window and the events under way in a source that is lost or over, and begin again."""
        last = source.latest
        # Only the state that has seen the most gives a result: the others have seen parts of the same.
        open_states = [state for state in source.states if state.steps and not state.sure]
        if open_states and last is not None:
            oldest = max(open_states, key=lambda state: state.seen)
            self._publish_window(source, oldest, last.frame.wall_s, last.latency_ms, frame=None)
        for detector in source.detectors:
            self._end_event(source, detector)
        source.smoother.clear()
        source.since_begun = 0
        for state in source.states:
            self._restart(state)

    def _restart(self, state: WindowState) -> None:
        state.clear()
        self._restart_lane(state.lane)

    def _publish_provisional(
        self, source: SourceState, frame: LiveFrame, stepped: list[WindowState], latency_ms: float
    ) -> None:
        source.latency.add(latency_ms)
        oldest = max(stepped, key=lambda state: state.seen)
        step = oldest.steps[-1]
        settled = oldest.sure or 2 * len(oldest.steps) >= self._segments
        result = ProvisionalResult(source.name, frame, step, self._classifier.top(step), settled, latency_ms)
        source.latest = result
        self._publish(result)
        if settled and self._smooth == 1:
            self._detect(source, frame, step.patch, softmax(step.logits))

    def _publish_window(
        self, source: SourceState, state: WindowState, wall_s: float, latency_ms: float, *, frame: LiveFrame | None
    ) -> None:
        """Publish a window that ends with ``frame``, or one that was cut if that is None."""
        steps = state.steps
        # The earlier glimpses were made while the window's frames arrived: the latency is that of the last one alone.
        result = self._classifier.result(
            source.name, steps[0].time_s, steps[-1].time_s, steps, state.sure, latency_ms, state.step_ms[-1]
        )
        result = replace(result, step_ms=tuple(state.step_ms))
        smoothed = None
        if self._smooth > 1:
            mean = source.smoother.add(softmax(steps[-1].logits))
            smoothed = self._classifier.guesses(mean)
            if frame is not None:
                self._detect(source, frame, steps[-1].patch, mean)
        source.windows += 1
        self._publish(Window(source.name, result, smoothed, wall_s, cut=frame is None))

    def _detect(self, source: SourceState, frame: LiveFrame, patch: Patch, probabilities: NDArray[np.float32]) -> None:
        for detector in source.detectors:
            confidence = float(probabilities[self._classes.index(detector.rule.label)])
            if (kind := detector.update(frame.time_s, confidence)) is not None:
                self._publish_event(source, detector, kind, frame, patch)

    def _publish_event(
        self,
        source: SourceState,
        detector: EventDetector,
        kind: Literal["start", "end"],
        frame: LiveFrame,
        patch: Patch,
        *,
        cut: bool = False,
    ) -> None:
        label = detector.rule.label
        if kind == "start":
            self._events += 1
            names = f"{self._names.of(source.name)}-{safe_name(label)}"
            key = f"{stamp(frame.wall_s)}-{names}-{self._run}-{self._events}"
            source.events[detector] = self._events, key
        end_s = detector.last_s if kind == "end" else None
        number, key = source.events[detector]
        self._publish(
            Event(
                source.name, kind, number, label, detector.start_s, end_s, detector.peak, frame.wall_s, frame, patch,
                key, cut, self._archive_url,
            )
        )  # fmt: skip

"""Time one setting: the path from a file to its result as `classify` runs it, and each of its parts.

The whole path is timed without any probe inside; its parts are timed in another run of the same clip, so that their sum
can be checked against the whole.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.base import SplitSession
from adafocus_edge.benchmark.peers import OnePiece
from adafocus_edge.media.clip import SQUARE, DecodedClip
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.preprocess import motion_frame_indices, sample_indices, sampled_frames
from adafocus_edge.model.exits import viewing_order
from adafocus_edge.model.logits import check_logits
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.backends.base import Session
    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.benchmark.energy import EnergyMeter
    from adafocus_edge.benchmark.grid import Row
    from adafocus_edge.model.exits import ExitThresholds, Order
    from adafocus_edge.model.spec import Fit
    from adafocus_edge.runtime.classifier import Result

PARTS = {"glancer": "glance", "policy": "policy", "focuser": "focus", "classifier": "classify"}
"""The name of the part that each graph's time is reported as."""
NOISE_SIZE = (256, 340)
"""Height and width of synthetic frames, in pixels."""
NOISE_FPS = 25.0
NOISE_FRAMES = 64


@dataclass(frozen=True)
class Timing:
    """One run of one row.

    Attributes:
        model_ms: time in the glimpse loop; for several streams, until all of their clips are finished.
        step_ms: time of each glimpse (stream schedule).
        steps: number of glimpses.
        whole_ms: time from opening the clip to the result; None for several streams, whose frames are in memory.
        parts_ms: the parts of that time, or None if they were not timed.
        joules: energy that the whole device drew meanwhile; None without an energy sensor.
    """

    model_ms: float
    step_ms: tuple[float, ...]
    steps: int
    whole_ms: float | None = None
    parts_ms: dict[str, float] | None = None
    joules: float | None = None


class TimedSession:
    """A session that adds up the time spent inside its calls, in ``inside_s``."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.inside_s = 0.0

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the session. Its outputs are complete on return: sessions wait for their device."""
        return self._timed(self._session.run, feeds)

    def _timed(self, run: Callable[[Mapping[str, Any]], dict[str, Any]], feeds: Mapping[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        made = run(feeds)
        self.inside_s += time.perf_counter() - started
        return made

    def close(self) -> None:
        """Close the session."""
        self._session.close()


class _TimedSplitSession(TimedSession):
    """The same of a session in two parts."""

    _session: SplitSession

    def ahead(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the first part."""
        return self._timed(self._session.ahead, feeds)

    def follow(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the rest."""
        return self._timed(self._session.follow, feeds)


def timed(session: Session) -> TimedSession:
    """Return a session whose time is measured, in as many parts as the one given."""
    return _TimedSplitSession(session) if isinstance(session, SplitSession) else TimedSession(session)


class _TimedClip:
    """A clip that measures how long its reader waits for frames."""

    def __init__(self, clip: Any) -> None:
        self._clip = clip
        self.waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clip, name)

    def select(self, indices: Sequence[int], convert: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        """Read frames, adding up the waiting time in ``waited_s``."""
        yield from self._watched(self._clip.select(indices, convert))

    def _watched(self, reading: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        while True:
            started = time.perf_counter()
            found = next(reading, None)
            self.waited_s += time.perf_counter() - started
            if found is None:
                return
            yield found


class _TimedDecodedClip(_TimedClip):
    """The same of a clip whose decoder's frames can be had."""

    def select_decoded(self, indices: Sequence[int], convert: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        """Decode frames, adding up the waiting time in ``waited_s``."""
        yield from self._watched(self._clip.select_decoded(indices, convert))

    def select_grey(self, indices: Sequence[int], size: int, fit: Fit) -> Iterator[tuple[int, Any]]:
        """Decode frames as luminance, adding up the waiting time in ``waited_s``."""
        yield from self._watched(self._clip.select_grey(indices, size, fit))


class _TimedSource:
    """A source whose clip measures how long its reader waits."""

    def __init__(self, source: Any) -> None:
        self.name = source.name
        self._source = source
        self.clip: Any = None
        self.opened_s = 0.0

    def open_clip(self) -> Any:
        """Open the clip, measuring the time in ``opened_s``."""
        started = time.perf_counter()
        clip = self._source.open_clip()
        self.clip = (_TimedDecodedClip if isinstance(clip, DecodedClip) else _TimedClip)(clip)
        self.opened_s = time.perf_counter() - started
        return self.clip


class NoiseClip:
    """A clip of random pixels, for timing without data; the same seed gives the same frames."""

    is_constant_rate = True
    sample_aspect = SQUARE
    track_note = ""

    def __init__(self, name: str = "synthetic frames", seed: int = 0) -> None:
        self.name = name
        self.frame_count = NOISE_FRAMES
        self.fps = NOISE_FPS
        self.duration_s: float | None = NOISE_FRAMES / NOISE_FPS
        self._seed = seed

    def open_clip(self) -> NoiseClip:
        """Return itself: it is its own source."""
        return self

    def time_s(self, index: int) -> float:
        """Return a frame's timestamp in seconds."""
        return index / self.fps

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], Any]) -> Iterator[tuple[int, Any]]:
        """Yield random frames; see :class:`adafocus_edge.media.clip.Clip`."""
        for index in indices:
            random = np.random.default_rng((self._seed, index))
            yield index, convert(random.integers(0, 256, (*NOISE_SIZE, 3), np.uint8))

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield all frames."""
        yield from self.select(range(self.frame_count), lambda frame: frame)


class Bench:
    """A loaded model, ready to be timed.

    Args:
        model: the model.
        classes: class names.
        exits_of: returns the exit thresholds named ``SET/ORDER``.
        meter: energy meter, or None.
    """

    def __init__(
        self,
        model: LoadedModel,
        classes: Sequence[str],
        exits_of: Callable[[str], ExitThresholds],
        meter: EnergyMeter | None = None,
    ) -> None:
        self._model = model
        self._classes = classes
        self._exits_of = exits_of
        self._meter = meter
        self._ready: dict[Row, Any] = {}

    def time(self, row: Row, source: Any, *, parts: bool = False) -> Timing:
        """Run a row once on a clip. Raises ``SourceError`` if the clip cannot be read.

        Args:
            row: the setting.
            source: the clip's source, with a ``name`` and an ``open_clip`` method.
            parts: whether to time each part, too.
        """
        before = self._meter.joules() if self._meter is not None else None
        if row.streams > 1:
            timing = self._many(row, source)
        elif parts:
            timing = self._in_parts(row, source)
        else:
            result, _ = self._classifier(row).classify(source)
            timing = Timing(result.model_ms, result.step_ms, len(result.steps), result.latency_ms)
        after = self._meter.joules() if self._meter is not None else None
        return replace(timing, joules=None if before is None or after is None else after - before)

    def logits(self, frames: NDArray[np.uint8], order: Order) -> NDArray[np.float32]:
        """Return the logits after each step of one clip, float32 [T, C]; see :func:`viewing_order`.

        Raises ``BackendError`` if they are not finite.
        """
        seen = ModelFrame.of(frames[viewing_order(order, len(frames))], self._model.spec)
        logits = np.concatenate([glimpse.logits for glimpse in see_clip(self._model, seen)])
        check_logits(logits)
        return logits

    def _classifier(self, row: Row) -> Classifier:
        if row not in self._ready:
            self._ready[row] = self._make(self._model, row)
        made: Classifier = self._ready[row]
        return made

    def _make(self, model: LoadedModel, row: Row) -> Classifier:
        model = replace(model, spec=replace(model.spec, segments=row.segments))
        exits = self._exits_of(row.exit) if row.exit else None
        return Classifier(model, self._classes, schedule=row.schedule, exits=exits)

    def _in_parts(self, row: Row, source: Any) -> Timing:
        """Run the graphs one by one, each timed, then read the same frames again without preprocessing them.

        Decoders call the preprocessing from their own threads, so its time is the difference between reading with and
        without it.
        """
        piece: object = self._model.resident
        if isinstance(piece, OnePiece):
            return self._as_one(row, source)
        sessions: dict[str, Any] = {graph: timed(getattr(self._model, graph)) for graph in GRAPHS}
        watched = _TimedSource(source)
        classifier = self._make(replace(self._model, **sessions, resident=None), row)
        result, _ = classifier.classify(watched)  # type: ignore[arg-type]
        graphs = {PARTS[graph]: session.inside_s * 1e3 for graph, session in sessions.items()}
        return self._with_reading(result, watched, source, row.segments, graphs)

    def _as_one(self, row: Row, source: Any) -> Timing:
        watched = _TimedSource(source)
        result, _ = self._classifier(row).classify(watched)  # type: ignore[arg-type]
        return self._with_reading(result, watched, source, row.segments, {"model": result.model_ms})

    def _with_reading(
        self, result: Result, watched: _TimedSource, source: Any, segments: int, graphs: dict[str, float]
    ) -> Timing:
        reading_ms = (watched.opened_s + watched.clip.waited_s) * 1e3
        decoding_ms = min(reading_ms, self._decode(source, result, segments))
        parts = {"decode": decoding_ms, "preprocess": reading_ms - decoding_ms, **graphs}
        parts["host"] = result.latency_ms - sum(parts.values())
        return Timing(result.model_ms, result.step_ms, len(result.steps), result.latency_ms, parts)

    def _decode(self, source: Any, result: Result, segments: int) -> float:
        """Open the clip and decode only the frames that a run used; return the milliseconds."""
        started = time.perf_counter()
        clip = source.open_clip()
        gap_s = self._model.spec.motion_gap_s
        steps = result.steps
        # A run that stops early in order of time has not read the rest; in any other order it has read all frames.
        in_time = all(one.frame_index <= other.frame_index for one, other in pairwise(steps))
        last = steps[-1].frame_index if in_time and result.exited_early else clip.frame_count
        wanted = [index for index in sample_indices(clip.frame_count, segments) if index <= last]
        if gap_s:
            wanted = sorted({part for index in wanted for part in motion_frame_indices(clip, index, gap_s)})
        read = clip.select_decoded if isinstance(clip, DecodedClip) and gap_s else clip.select
        for _ in read(wanted, lambda _: None):
            pass
        return (time.perf_counter() - started) * 1e3

    def _many(self, row: Row, source: Any) -> Timing:
        """Step several streams together, each starting at another frame of the same clip."""
        if row not in self._ready:
            spec = replace(self._model.spec, segments=row.segments)
            model = replace(self._model, spec=spec)
            frames = ModelFrame.of(np.stack([pixels for _, pixels in sampled_frames(source.open_clip(), spec)]), spec)
            self._ready[row] = GlimpseStream(model, row.streams), frames
        stream, frames = self._ready[row]
        steps = []
        stream.reset()
        for step in range(row.segments):
            batch = [frames[(step + shift) % len(frames)] for shift in range(row.streams)]
            started = time.perf_counter()
            stream.see(batch)
            steps.append((time.perf_counter() - started) * 1e3)
        return Timing(sum(steps), tuple(steps), row.segments)

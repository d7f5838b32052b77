"""Classifies a clip: samples it, runs the glimpse loop over it, and returns the classes and the patches."""

from __future__ import annotations

import itertools
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from adafocus_edge.errors import UsageError
from adafocus_edge.media.clip import DecodedInModes
from adafocus_edge.media.frames import blank_frame
from adafocus_edge.media.preprocess import in_viewing_order, sampled_frames
from adafocus_edge.model.exits import ExitThresholds, viewing_order
from adafocus_edge.model.logits import check_logits, softmax
from adafocus_edge.model.spec import Glimpse, Patch
from adafocus_edge.runtime.glimpse import GlimpseClip, GlimpseStream, patch_of, see_clip
from adafocus_edge.runtime.reports import GuessReport, ResultReport, StepReport
from adafocus_edge.runtime.settings import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.backends.nvdec import Choice
    from adafocus_edge.media.clip import Clip
    from adafocus_edge.media.decode_modes import DecodeMode
    from adafocus_edge.media.sources import Source

WARM_CLIPS = 2
"""Blank clips that prepare a device: the first allocates, and the second may be captured."""


@dataclass(frozen=True)
class Guess:
    """A class and its confidence, the softmax probability."""

    label: str
    class_id: int
    confidence: float


@dataclass(frozen=True)
class Step:
    """One glimpse.

    Attributes:
        step: from 0.
        frame_index: number of the frame in the source, from 0.
        time_s: when that frame is shown, or None where frames have no times.
        patch: (y, x, size) in pixels of the preprocessed S x S frame.
        guess: the best class after this step.
        logits: float32 [C] after this step.
    """

    step: int
    frame_index: int
    time_s: float | None
    patch: Patch
    guess: Guess
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """The result for one clip, or for one window of a stream.

    Attributes:
        source: its name.
        start_s: where the clip begins, in seconds of the source, or None where frames have no times.
        end_s: where it ends.
        top: the best classes, best first.
        steps: one per glimpse.
        exited_early: whether the model was sure before the last glimpse.
        latency_ms: from opening the clip to the result; for a stream, from capturing its last frame.
        model_ms: the part of it inside the glimpse loop; for a stream, of the last glimpse.
        backend: that ran it.
        variant: that was run.
        step_ms: time inside the loop for each glimpse; on the clip schedule the first includes all work but the last
            graph's.
        decode: how the file was decoded.
    """

    source: str
    start_s: float | None
    end_s: float | None
    top: tuple[Guess, ...]
    steps: tuple[Step, ...]
    exited_early: bool
    latency_ms: float
    model_ms: float
    backend: str
    variant: str
    step_ms: tuple[float, ...] = ()
    decode: DecodeMode = "exact"

    def to_json(self, *, logits: bool = False) -> dict[str, Any]:
        """Return the result as the JSON object that `--json` prints (:class:`ResultReport`).

        Args:
            logits: whether each step lists its logits.
        """
        first = _guess_report(self.top[0])
        report = ResultReport(
            source=self.source,
            start_s=_seconds(self.start_s),
            end_s=_seconds(self.end_s),
            label=first.label,
            class_id=first.class_id,
            confidence=first.confidence,
            top=[_guess_report(guess) for guess in self.top],
            steps=[_step_report(step, logits=logits) for step in self.steps],
            steps_used=len(self.steps),
            exited_early=self.exited_early,
            latency_ms=round(self.latency_ms, 3),
            model_ms=round(self.model_ms, 3),
            backend=self.backend,
            variant=self.variant,
            decode=msgspec.UNSET if self.decode == "exact" else self.decode,
        )
        found: dict[str, Any] = msgspec.to_builtins(report)
        return found


def _guess_report(guess: Guess) -> GuessReport:
    return GuessReport(guess.label, guess.class_id, round(guess.confidence, 6))


def _step_report(step: Step, *, logits: bool) -> StepReport:
    guess = _guess_report(step.guess)
    return StepReport(
        step=step.step,
        frame_index=step.frame_index,
        time_s=_seconds(step.time_s),
        patch=list(step.patch),
        label=guess.label,
        class_id=guess.class_id,
        confidence=guess.confidence,
        logits=[float(value) for value in step.logits] if logits else msgspec.UNSET,
    )


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


class Classifier:
    """A loaded model with its class names and the options of one run.

    Args:
        model: the four sessions.
        classes: names in the order of the logits.
        top_k: how many classes a result lists; at most all of them.
        schedule: for files; ``auto`` is ``clip``. With an early exit, that sees a few frames at a time.
        exits: thresholds that stop a clip early, or None; frames are seen in their order.
        decoder: for files and live sources (:func:`adafocus_edge.backends.nvdec.usable_decoder`).
        note: called with one line if ``auto`` decodes a file on the CPU.
        turn: held while the model sees a whole clip: a lock where classifiers in several threads share a device.
    """

    def __init__(
        self,
        model: LoadedModel,
        classes: Sequence[str],
        *,
        top_k: int = 1,
        schedule: Schedule = "auto",
        exits: ExitThresholds | None = None,
        decoder: Choice = "cpu",
        note: Callable[[str], None] = lambda _: None,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.model = model
        self.classes = classes
        self.top_k = top_k
        self.exits = exits
        self.schedule = "stream" if schedule == "stream" else "clip"
        self._stream: GlimpseStream | None = None
        self._clip: GlimpseClip | None = None
        self.decoder: Choice = decoder
        self._note = note
        self._turn = nullcontext() if turn is None else turn

    @property
    def reads_side_by_side(self) -> bool:
        """Whether several threads may run such classifiers of one model, if those on a device share a ``turn``."""
        if not self.model.on_device:
            return True
        return self.schedule == "clip" and self.exits is None and self.decoder == "cpu"

    def prepare(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Run blank clips if the model is on a device, so that the first file does not wait for its set-up.

        Args:
            report: called with one line before that begins.

        Raises ``BackendError`` if the device fails.
        """
        if not self.model.on_device:  # on a CPU the first run is as fast as the others
            return
        report("preparing the model ...")
        blank = [blank_frame(self.model.spec)] * self.model.spec.segments
        for _ in range(WARM_CLIPS):
            for _ in self._glimpses(enumerate(blank)):
                pass

    def classify(self, source: Source) -> tuple[Result, Clip]:
        """Open and classify a source that ends. Raises ``SourceError``, and ``UsageError`` for regions and masks."""
        if getattr(source, "zones", None):  # examples of data sets have none
            raise UsageError(f"{source.name}: regions and masks need a live run: use serve, or classify --realtime")
        started = time.perf_counter()
        clip = source.open_clip()
        return self.classify_clip(clip, source.name, started), clip

    def classify_clip(self, clip: Clip, name: str, started: float | None = None) -> Result:
        """Classify an open clip.

        Args:
            clip: to read.
            name: of the source, for the result.
            started: when its latency began, by ``time.perf_counter``; None for now.

        Raises ``SourceError``, and ``BackendError`` if the model fails.
        """
        started = time.perf_counter() if started is None else started
        spec = self.model.spec
        frames: Iterator[tuple[int, Any]] = (
            sampled_frames(clip, spec) if self.decoder == "cpu" else in_viewing_order(self._decoded_on_gpu(clip), spec)
        )
        if self.exits is not None and self.exits.order == "coarse-to-fine":
            read = sorted(frames, key=lambda frame: frame[0])  # in time
            frames = iter([read[position] for position in viewing_order(self.exits.order, len(read))])
        steps: list[Step] = []
        step_ms: list[float] = []
        for index, glimpse, seconds in self._glimpses(frames):
            step_ms.append(seconds * 1e3)
            steps.append(self.step(len(steps), index, clip.time_s(index), glimpse))
            if self.is_sure(steps[-1]):
                break
        latency_ms = (time.perf_counter() - started) * 1e3
        start_s = None if clip.duration_s is None else 0.0
        exited = len(steps) < spec.segments
        result = self.result(name, start_s, clip.duration_s, steps, exited, latency_ms, sum(step_ms))
        decode = clip.decode if isinstance(clip, DecodedInModes) else "exact"
        return replace(result, step_ms=tuple(step_ms), decode=decode)

    def _decoded_on_gpu(self, clip: Clip) -> Iterator[tuple[int, Any]]:
        from adafocus_edge.backends.nvdec import sampled_frames_on_gpu

        assert self.model.resident is not None
        return sampled_frames_on_gpu(
            clip, self.model.resident, self.model.spec.segments, strict=self.decoder == "gpu", note=self._note
        )

    def _glimpses(self, frames: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Glimpse, float]]:
        """Yield each frame number, its glimpse, and the model's time for it in seconds."""
        if self.schedule == "stream":
            self._stream = stream = self._stream or GlimpseStream(self.model)
            stream.reset()
            for index, pixels in frames:
                before = time.perf_counter()
                glimpse = stream.see([pixels])
                yield index, glimpse, time.perf_counter() - before
            return
        if self.exits is not None:
            self._clip = clip = self._clip or GlimpseClip(self.model)
            clip.reset()
            waiting = iter(frames)
            for size in self.exits.pieces(self.model.batch):
                piece = list(itertools.islice(waiting, size))  # what is not seen is not decoded
                yield from _timed([index for index, _ in piece], clip.see([pixels for _, pixels in piece]))
            return
        indices, pixels_of = zip(*frames, strict=True)
        with self._turn:
            yield from _timed(indices, see_clip(self.model, pixels_of))

    def step(self, number: int, frame_index: int, time_s: float | None, glimpse: Glimpse) -> Step:
        """Return a glimpse of a clip as a step of its result. Raises ``BackendError`` if its logits are not finite."""
        logits = glimpse.logits[0]
        check_logits(logits)
        patch = patch_of(self.model.spec, glimpse.origins[0])
        return Step(number, frame_index, time_s, patch, self._guesses(logits, 1)[0], logits)

    def is_sure(self, step: Step) -> bool:
        """Return whether the run may stop after this step."""
        last = step.step == self.model.spec.segments - 1
        return not last and self.exits is not None and self.exits.passes(step.step, step.logits)

    def result(
        self,
        source: str,
        start_s: float | None,
        end_s: float | None,
        steps: Sequence[Step],
        exited_early: bool,
        latency_ms: float,
        model_ms: float,
    ) -> Result:
        """Return the result of a clip from its steps, at least one."""
        return Result(
            source, start_s, end_s, self.top(steps[-1]), tuple(steps), exited_early, latency_ms, model_ms,
            self.model.backend, self.model.variant,
        )  # fmt: skip

    def top(self, step: Step) -> tuple[Guess, ...]:
        """Return the best classes after a step, best first."""
        return self._guesses(step.logits, self.top_k)

    def guesses(self, probabilities: NDArray[np.float32]) -> tuple[Guess, ...]:
        """Return the best classes of probabilities [C], best first."""
        return self._best(probabilities, probabilities, self.top_k)

    def _guesses(self, logits: NDArray[np.float32], count: int) -> tuple[Guess, ...]:
        return self._best(logits, softmax(logits), count)

    def _best(self, scores: NDArray[Any], probabilities: NDArray[Any], count: int) -> tuple[Guess, ...]:
        best = np.argsort(-scores, kind="stable")[:count]
        return tuple(Guess(self.classes[i], int(i), float(probabilities[i])) for i in best)


def _timed(indices: Sequence[int], glimpses: Iterator[Glimpse]) -> Iterator[tuple[int, Glimpse, float]]:
    """Yield each frame number, its glimpse, and the seconds since the one before."""
    before = time.perf_counter()
    for index, glimpse in zip(indices, glimpses, strict=True):
        now = time.perf_counter()
        yield index, glimpse, now - before
        before = time.perf_counter()

"""The Python interface: load a model once, call it with videos, frames or live sources, and get typed results."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, overload

from adafocus_edge.backends.registry import AUTO, load_model, model_threads
from adafocus_edge.backends.triton.address import is_address
from adafocus_edge.bundle.store import default_bundle, open_bundle
from adafocus_edge.errors import FrameError, UsageError
from adafocus_edge.media.decode_modes import DecodeMode
from adafocus_edge.media.frame_folder import unknown_rate_notes
from adafocus_edge.media.picture_clip import PictureClip, as_number, one_picture, own_copy, pictures_of
from adafocus_edge.media.preprocess import FrameMaker
from adafocus_edge.media.sources import Source, find_sources
from adafocus_edge.runtime.classifier import Classifier, Guess, Step
from adafocus_edge.runtime.exits import requested_exits
from adafocus_edge.runtime.glimpse import GlimpseStream
from adafocus_edge.runtime.prediction import Prediction
from adafocus_edge.runtime.served import served_model
from adafocus_edge.runtime.settings import DEFAULT_TOP_K, RunOptions
from adafocus_edge.system.companions import import_companion
from adafocus_edge.system.options import is_real, is_whole
from adafocus_edge.system.side_by_side import Shares, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.benchmark.schema import Report
    from adafocus_edge.model.spec import ModelSpec

LOG = logging.getLogger("adafocus_edge")
One: TypeAlias = "str | Path"
"""A file, a folder of frames, or an address."""
MANY = 4
"""Files per usable core from which a list is worth a second copy of the model."""
AHEAD = 2
"""Files per thread that may be done before the caller asks for them: predictions hold their clips."""


class AdaFocus:
    """An AdaFocus model that is ready to be called. A context manager, and it closes itself when it is not needed.

    Args:
        model: folder of a bundle, as ``adafocus-edge export`` writes it; the address of a Triton server that serves
            one, ``triton://HOST:PORT``; None for the default model.
        backend: ``auto`` for the fastest that can run here, or the name of one.
        variant: ``auto`` for the preferred one of the bundle, or the name of one.
        threads: of the CPU backend; None for all cores.
        device: of OpenVINO, such as ``CPU``, ``GPU`` or ``NPU``; None for its CPU.
        top_k: classes that a result lists, at most.
        exit: a named set of early-exit thresholds of the bundle; clips then stop once the model is sure.
        exit_confidence: stop a clip once its best class has this probability, 0..1; instead of ``exit``.
        decode: how video files are decoded: ``exact``, ``unfiltered`` or ``key-frames``, as ``classify --decode``.

    Raises:
        BundleError: the bundle is missing or damaged.
        BackendError: the backend cannot run here.
        UsageError: an option is none of the allowed ones.

    One model may be called from one thread at a time.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        backend: str = "auto",
        variant: str = "auto",
        threads: int | None = None,
        device: str | None = None,
        top_k: int = DEFAULT_TOP_K,
        exit: str | None = None,  # noqa: A002
        exit_confidence: float | None = None,
        decode: DecodeMode = "exact",
    ) -> None:
        if exit_confidence is not None and not (is_real(exit_confidence) and 0 <= exit_confidence <= 1):
            raise UsageError(f"exit_confidence={exit_confidence!r}: must be 0 to 1")
        if not is_whole(top_k) or top_k < 1:
            raise UsageError(f"top_k={top_k!r}: must be a whole number, at least 1")
        if decode not in get_args(DecodeMode):
            raise UsageError(f"decode={decode!r}: must be one of {', '.join(get_args(DecodeMode))}")
        self._decode = decode
        engine = str(model) if is_address(model) else None
        self._options = RunOptions(backend, variant, threads, device, exit, engine, exit_confidence=exit_confidence)
        served = served_model(self._options, None)
        self.bundle = served or open_bundle(default_bundle() if model is None else Path(model))
        self.names: tuple[str, ...] = self.bundle.classes
        self._top_k = min(top_k, len(self.names))
        exits = requested_exits(self.bundle, self._options, live=False)  # reported before anything is loaded
        self._stack = ExitStack()
        self._model = self._stack.enter_context(load_model(self.bundle, variant, backend, threads, device=device))
        self._files = Classifier(self._model, self.names, top_k=self._top_k, exits=exits)
        self._shared: LoadedModel | None = None

    @property
    def spec(self) -> ModelSpec:
        """The model's shapes and preprocessing."""
        return self._model.spec

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model."""
        return self._model.backend

    @property
    def variant(self) -> str:
        """Name of the variant that is run."""
        return self._model.variant

    @overload
    def __call__(self, source: One, *, fps: None = None, times: None = None) -> Prediction: ...

    @overload
    def __call__(
        self, source: list[One] | tuple[One, ...], *, fps: None = None, times: None = None
    ) -> list[Prediction]: ...

    @overload
    def __call__(self, source: Any, *, fps: float | None = None, times: Sequence[float] | None = None) -> Any: ...

    def __call__(self, source: Any, *, fps: float | None = None, times: Sequence[float] | None = None) -> Any:
        """Classify.

        Args:
            source: a file, a folder of frames or an address: one :class:`Prediction`. A list of these, of folders of
                videos and of patterns such as ``clips/*.mp4``: a list of predictions. Frames: one prediction; they are
                PIL images, arrays uint8 [H, W, 3] in RGB or tensors, in a list, an iterator or one array
                uint8 [T, H, W, 3]; an iterator may give pairs of a frame and its time in seconds.
            fps: of frames; models that see motion need it, or times.
            times: when each frame is shown, in seconds, instead of ``fps``.

        Raises:
            SourceError: a source cannot be read.
            FrameError: frames that the model would misread.
            UsageError: a live source, which has no end (:meth:`stream`), or a folder that holds several videos.
        """
        named = isinstance(source, (str, Path))
        if named or (isinstance(source, Sequence) and source and all(isinstance(one, (str, Path)) for one in source)):
            if fps is not None or times is not None:
                raise UsageError("fps and times are for frames: a file has its own")
            return self._one(source) if named else list(self.each(source))
        return self._frames(source, fps, times)

    def each(self, sources: One | Sequence[One]) -> Iterator[Prediction]:
        """Classify files, folders and patterns, and yield the results in their order, each when it is there.

        On a CPU, files of a long list are classified side by side, with a second copy of the model whose threads the
        cores share. Raises as :meth:`__call__`.
        """
        given = [sources] if isinstance(sources, (str, Path)) else list(sources)
        found = find_sources([str(one) for one in given])
        shares = Shares.of(len(found), None, self._options.threads)
        if self._model.on_device or len(found) < MANY * shares.workers:
            shares = Shares(1, self._options.threads)

        def prepare() -> Callable[[Source], Prediction]:
            return partial(self._classify, self._files if shares.workers == 1 else self._sharing(shares))

        if shares.workers > 1:
            prepare()  # loads the model, in this thread
        with side_by_side(found, prepare, shares.workers, AHEAD * shares.workers) as outcomes:
            for _, outcome in outcomes:
                yield outcome()

    def _sharing(self, shares: Shares) -> Classifier:
        """Return a classifier for one of several threads that share the cores."""
        if self._shared is None:
            options = self._options
            threads = model_threads(self.backend, shares.threads, options.threads)
            shared = load_model(self.bundle, self.variant, self.backend, threads, device=options.device)
            self._shared = self._stack.enter_context(shared)
        return Classifier(self._shared, self.names, top_k=self._top_k, exits=self._files.exits)

    def stream(
        self,
        source: Any,
        *,
        glimpse_fps: float = 2.0,
        overlap: int = 1,
        duration_s: float | None = None,
        loop: bool = False,
        realtime: bool = False,
    ) -> Iterator[Prediction]:
        """Watch live sources, and yield each window of T glimpses when it is over.

        Args:
            source: a camera's number, an address, a file, or a list of these; or an iterator of pairs of a frame and
                its time in seconds, which is read in this thread.
            glimpse_fps: frames per second of a source that are glimpsed.
            overlap: windows under way at a time: one ends every T / overlap glimpses.
            duration_s: end after this time; None for no end.
            loop: start files again at their end.
            realtime: play files at their own pace.

        Ending the iteration (``break``, ``close()``) ends the run. Sources that are lost or fail are logged (logger
        ``adafocus_edge``). Files wait for a slow caller, unless they are played at their own pace; of live sources, the
        oldest windows are dropped beyond 64, which is logged, too.

        Raises:
            UsageError: an option does not fit the model.
            SourceError: no source could be read.
        """
        if isinstance(source, (str, Path, int)):
            source = [source]
        if not isinstance(source, Iterable):
            raise UsageError(f"a {type(source).__name__}: give a camera's number, an address, a file, or frames")
        if isinstance(source, Sequence) and all(isinstance(one, (str, Path, int)) for one in source):
            if not source:
                raise UsageError("no source: give a camera's number, an address or a file")
            from adafocus_edge.live.run import LiveOptions
            from adafocus_edge.live.settings import CaptureOptions

            capture = CaptureOptions(glimpse_fps=glimpse_fps, loop=loop, realtime=realtime)
            return self._live([str(one) for one in source], LiveOptions(capture, overlap), duration_s)
        if overlap != 1 or loop or realtime or duration_s is not None:
            raise UsageError("frames: overlap, loop, realtime and duration_s are for cameras, addresses and files")
        return self._live_frames(source, glimpse_fps)

    # -- the other verbs, where their extras are installed ------------------------------------------------------------

    @staticmethod
    def train(*options: str, **named: Any) -> Path:
        """Train, as ``adafocus-edge train`` does; needs the extra ``[train]``.

        Args:
            options: ``key=value`` each, as on the command line; for keys with dots, such as ``hydra.run.dir=DIR``.
            named: the same as keyword arguments: ``dataset="custom", epochs=5``.

        Returns:
            the run folder: it holds ``last.pth.tar``, or with ``stages="all"`` a folder per stage.

        Raises ``AdaFocusError`` with what is wrong or missing.
        """
        compose = import_companion("training.compose", "train", "train")
        composed = compose.compose_options([*options, *compose.overrides_of(named)])
        if composed.options.stages:
            all_stages = import_companion("training.all_stages", "train", "train")
            all_stages.train_all(composed, True, export=AdaFocus.export)
        else:
            import_companion("training.train", "train", "train").run_composed(composed, True)
        return Path(composed.run_dir)

    @staticmethod
    def export(checkpoint: str | Path, output: str | Path, **model: int) -> Path:
        """Export a checkpoint to a bundle, as ``adafocus-edge export`` does; needs the extra ``[export]``.

        Args:
            checkpoint: official, or one that training wrote.
            output: folder of the bundle, which must not exist.
            model: settings that an official checkpoint does not hold: ``patch_size``, ``num_segments``,
                ``glance_size``, ``input_size``.

        Returns:
            the bundle's folder. Raises ``AdaFocusError``.
        """
        exporter = import_companion("export.exporter", "export", "export")
        options = exporter.ExportOptions(model=exporter.ModelOptions(**model))
        exporter.export(Path(checkpoint), Path(output), options)
        return Path(output)

    def evaluate(self, data: str | Path, **options: Any) -> dict[str, Any]:
        """Measure this model's bundle on labelled clips, as ``adafocus-edge evaluate`` does.

        Args:
            data: a folder per class, a CSV, or a split list.
            options: fields of :class:`adafocus_edge.evaluation.settings.EvaluateOptions`, such as ``output="r.json"``
                and ``plot="curve.png"``. ``exit_set`` is the model's own ``exit``; its ``exit_confidence`` is not
                measured.

        Returns:
            the object of ``evaluate --json``. Raises ``AdaFocusError``.
        """
        from adafocus_edge.evaluation.run import check_files, evaluate_model
        from adafocus_edge.evaluation.settings import EvaluateOptions

        own = self._options
        backend, path = (self.backend, self.bundle.path) if own.engine is None else (AUTO, None)
        given: dict[str, Any] = {"threads": own.threads, "device": own.device, "exit_set": own.exit_set}
        given["decode"] = self._decode
        given |= _with_paths(options, "frames", "classes", "output", "plot")
        asked = EvaluateOptions(data=Path(data), backend=backend, variant=self.variant, engine=own.engine, **given)
        check_files(path, asked)
        done = evaluate_model(path, asked, lambda _: None, lambda _: nullcontext(lambda _: None))
        done.write(asked.output, asked.plot)
        return done.to_json()

    def _check_local(self, verb: str) -> None:
        if self._options.engine is not None:
            raise UsageError(f"{verb}: needs the bundle itself, not {self._options.engine}: AdaFocus(BUNDLE).{verb}()")

    def benchmark(self, data: str | Path | None = None, **options: Any) -> Report:
        """Measure this model's bundle over the settings that this machine can run; see ``adafocus-edge benchmark``.

        Args:
            data: labelled clips, or None to measure time only.
            options: fields of :class:`adafocus_edge.benchmark.settings.BenchmarkOptions`, such as ``quick=True``.

        Raises ``AdaFocusError``.
        """
        from adafocus_edge.benchmark.measure import benchmark
        from adafocus_edge.benchmark.settings import BenchmarkOptions

        self._check_local("benchmark")
        asked = BenchmarkOptions(data=None if data is None else Path(data), **options)
        return benchmark([self.bundle.path], asked, None, lambda _: None, lambda *_: None)

    def calibrate(self, data: str | Path, output: str | Path | None = None, **options: Any) -> dict[str, Any]:
        """Add FP16 and INT8 variants and exit thresholds to this model's bundle; needs the extra ``[calibrate]``.

        Args:
            data: clips that training has not seen: a folder per class, a CSV, a split list, or plain videos.
            output: folder for a copy of the bundle with them; None adds them to the bundle itself. The default model
                needs a folder.
            options: fields of :class:`adafocus_edge.evaluation.calibrate_settings.CalibrateArguments`, such as
                ``variants="int8-cpu"`` or ``exit_goal=["fast=steps:4"]``.

        Returns:
            the object of ``calibrate --json``; ``AdaFocus(found["bundle"], variant="int8-cpu")`` loads a variant.

        Raises ``AdaFocusError``.
        """
        self._check_local("calibrate")
        from adafocus_edge.evaluation.calibrate_settings import CalibrateArguments

        if output is None and self.bundle.path == default_bundle():
            raise UsageError("output: the default model is read-only; give a folder for a copy of it")
        options = _with_paths(options, "frames", "report_on", "plot")
        if isinstance(goal := options.get("exit_goal"), str):
            options["exit_goal"] = [goal]
        if not isinstance(variants := options.get("variants", ""), str):
            options["variants"] = ",".join(variants)
        asked = CalibrateArguments(data=Path(data), output=None if output is None else Path(output), **options)
        asked.check_clips()
        if asked.plot is not None:
            from adafocus_edge.evaluation.plot import check_plot, draw_calibration

            check_plot(asked.plot)
        made = import_companion("calibration.options", "calibrate", "calibrate")
        done = made.calibrate_as_asked(self.bundle.path, asked)
        if asked.plot is not None:
            draw_calibration(done.bundle, asked.plot)
        found: dict[str, Any] = done.to_json()
        return found

    def close(self) -> None:
        """Free what the model holds. Calling it again does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        stack = getattr(self, "_stack", None)
        if stack is not None:
            with suppress(Exception):  # the interpreter may be going down
                stack.close()

    def __repr__(self) -> str:
        return f"AdaFocus({self.bundle.name!r}, backend={self.backend!r}, variant={self.variant!r})"

    def _live_classifier(self) -> Classifier:
        exits = requested_exits(self.bundle, self._options, live=True)
        return Classifier(self._model, self.names, top_k=self._top_k, exits=exits)

    def _one(self, source: One) -> Prediction:
        found = find_sources([str(source)])
        if len(found) != 1:
            raise UsageError(f"{source}: holds {len(found)} videos: pass a list, as model([{str(source)!r}])")
        return self._classify(self._files, found[0])

    def _classify(self, classifier: Classifier, source: Source) -> Prediction:
        if source.live:
            raise UsageError(f"{source.name}: has no end: use model.stream({source.name!r})")
        if (missing := source.missing()) is not None:
            raise missing
        for note in unknown_rate_notes([source.address], self.spec.motion_gap_s):
            LOG.warning(note)
        result, clip = classifier.classify(replace(source, decode=self._decode))
        return Prediction(result, False, self.spec, clip)

    def _frames(self, frames: Any, fps: float | None, times: Sequence[float] | None) -> Prediction:
        if not isinstance(frames, Sequence) and not hasattr(frames, "shape"):
            if not isinstance(frames, Iterable):
                raise UsageError(f"a {type(frames).__name__}: give a path, an address, frames, or a list of these")
            frames = [own_copy(frame) for frame in frames]
        if isinstance(frames, Sequence) and frames and isinstance(frames[0], tuple):
            if times is not None or fps is not None:
                raise FrameError("frames: pairs of a frame and its time need neither fps nor times")
            frames, times = zip(*map(_pair, frames), strict=True)
        clip = PictureClip("frames", pictures_of(frames), times, fps)
        if self.spec.motion_gap_s and fps is None and times is None:
            raise FrameError("frames: this model sees motion: pass fps=, or times= with the time of each in seconds")
        return Prediction(self._files.classify_clip(clip, clip.name), False, self.spec, clip)

    def _live(self, addresses: list[str], options: Any, duration_s: float | None) -> Iterator[Prediction]:
        from adafocus_edge.live.run import LiveRun
        from adafocus_edge.live.window_queue import WindowQueue

        sources = find_sources(addresses)
        stop = threading.Event()
        waits = not options.capture.realtime and not any(source.live for source in sources)
        windows = WindowQueue(stop if waits else None)
        run = LiveRun(self._live_classifier(), sources, options, [windows])
        failed: list[Exception] = []

        def work() -> None:
            try:
                run.run(stop, duration_s)
            except Exception as error:
                failed.append(error)
            finally:
                windows.end()

        thread = threading.Thread(target=work, name="adafocus stream", daemon=True)
        thread.start()
        try:
            yield from (Prediction(window.result, window.cut, self.spec, None) for window in windows)
            if failed:
                raise failed[0]
            errors = run.errors
            if errors and len(errors) == len(sources):
                raise next(iter(errors.values()))
        finally:
            stop.set()
            thread.join()

    def _live_frames(self, pairs: Iterable[Any], glimpse_fps: float) -> Iterator[Prediction]:
        if not is_real(glimpse_fps) or not 0 < glimpse_fps < 1000:
            raise UsageError(f"glimpse_fps={glimpse_fps!r}: must be above 0 and below 1000")
        from adafocus_edge.live.pacing import GlimpseSchedule

        classifier, spec = self._live_classifier(), self.spec
        stream, maker, schedule = GlimpseStream(self._model), FrameMaker(spec), GlimpseSchedule(glimpse_fps)
        steps: list[Step] = []
        first_s, seen, sure = None, 0, False
        latency_ms = model_ms = 0.0

        def window(*, cut: bool) -> Prediction:
            found = classifier.result("frames", steps[0].time_s, steps[-1].time_s, steps, sure, latency_ms, model_ms)
            return Prediction(found, cut, spec, None)

        for index, (frame, time_s) in enumerate(map(_pair, pairs)):
            arrived = time.perf_counter()
            made = maker.add(one_picture(frame), time_s)
            first_s = time_s if first_s is None else first_s
            if not schedule.is_now(None, 0, time_s - first_s):
                continue
            seen += 1
            if not sure:
                before = time.perf_counter()
                steps.append(classifier.step(len(steps), index, time_s, stream.see([made])))
                sure = classifier.is_sure(steps[-1])
                now = time.perf_counter()
                latency_ms, model_ms = (now - arrived) * 1e3, (now - before) * 1e3
            if seen == spec.segments:
                yield window(cut=False)
                stream.reset()
                steps, sure, seen = [], False, 0
        if steps:
            yield window(cut=True)


def _with_paths(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return options in which those of these names are paths, where they are given as text."""
    return {name: Path(value) if name in names and value is not None else value for name, value in options.items()}


def _pair(entry: Any) -> tuple[Any, float]:
    """Return a frame and its time. Raises ``FrameError`` for anything else."""
    if not isinstance(entry, tuple) or len(entry) != 2:
        raise FrameError(f"frames: a {type(entry).__name__}: give pairs of a frame and its time in seconds")
    return entry[0], as_number(entry[1], "frames: time")


__all__ = ["AdaFocus", "Guess", "Prediction", "Step"]

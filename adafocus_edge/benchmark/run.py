"""Run a benchmark: measure every row's accuracy on the same clips, then time all rows in rounds."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adafocus_edge import __version__
from adafocus_edge.benchmark.grid import Grid, Loading, Row, Skipped, plan
from adafocus_edge.benchmark.machine import describe
from adafocus_edge.benchmark.report import assemble
from adafocus_edge.benchmark.schema import SCHEMA, Data, FailedClip, Report, to_json
from adafocus_edge.benchmark.state import Process, State
from adafocus_edge.benchmark.timing import NoiseClip
from adafocus_edge.benchmark.worker import Memory, Opening, Ready, Worker
from adafocus_edge.errors import AdaFocusError, DataError, SourceError, UsageError
from adafocus_edge.evaluation.evidence import reused_clips
from adafocus_edge.media.preprocess import sampled_frames
from adafocus_edge.model.defaults import SEED
from adafocus_edge.system.addresses import shown_failure
from adafocus_edge.system.files import draft_folder
from adafocus_edge.system.timestamps import iso_now

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.benchmark.timing import Timing
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.evaluation.dataset import Example, Split
    from adafocus_edge.model.exits import Order

Progress = Callable[[str, int, int], None]
"""Called with the current activity, the number of its steps done, and their total."""
MAX_TIMED_CLIPS = 16
"""Max clips that are timed, spread evenly over the rounds."""
YARDSTICK_SIZE = 300_000
"""Numbers sorted once per round on one core, to detect that the machine itself slows down."""


class Measures(Protocol):
    """A loaded model that can be measured; see :class:`Worker`."""

    ready: Ready
    cold_start_ms: float

    def time(self, row: Row, source: Any, *, parts: bool = False) -> Timing:
        """Run a row once."""

    def logits(self, frames: Path, clip: int, order: Order) -> NDArray[np.float32]:
        """Return one clip's logits after each step."""

    def memory(self) -> Memory:
        """Return its peak memory."""

    def close(self) -> None:
        """Unload the model."""


@dataclass(frozen=True)
class Request:
    """A request to measure a grid of settings.

    Attributes:
        bundles: bundles to measure, by their names in the report.
        grid: the settings.
        data: labelled clips, or None to time synthetic frames.
        clips: max clips to measure accuracy on, drawn at random.
        rounds: number of rounds; each times every row once.
        warm_up: runs of each row before the first round.
        parts_every: rounds from one timing of the parts to the next.
        seed: random seed for the choice of clips and the order within a round.
        checkpoint: checkpoint with the weights of the PyTorch peers, or None for random weights.
        checkpoints: checkpoints to run as peers, by name.
        multi_label: whether mAP counts all labels of a clip.
        processes: max models loaded at the same time, each in a process of its own.
        state: folder that keeps measurements, to resume an interrupted run, or None.
    """

    bundles: dict[str, Bundle]
    grid: Grid
    data: Split | None = None
    clips: int = 128
    rounds: int = 30
    warm_up: int = 2
    parts_every: int = 2
    seed: int = SEED
    checkpoint: Path | None = None
    checkpoints: dict[str, Path] = field(default_factory=dict)
    multi_label: bool = False
    processes: int = 12
    state: Path | None = None


def run(
    request: Request, progress: Progress = lambda *_: None, opened: Callable[[Opening], Measures] = Worker
) -> Report:
    """Measure every setting of a request.

    Args:
        request: see :class:`Request`.
        progress: see :data:`Progress`.
        opened: function that loads a model.

    Returns:
        the report, as docs/reference/benchmark-report.md describes it. Raises ``UsageError`` for an empty grid,
        ``DataError`` if no clip can be read.
    """
    rows, skipped = plan(request.bundles, request.grid)
    if not rows:
        raise UsageError("nothing to measure: " + "; ".join(f"{s.what}: {s.why}" for s in skipped[:3]))
    examples = _chosen(request)
    state = State(request.state, _fingerprint(request, rows, examples))
    with draft_folder(Path(tempfile.gettempdir()), "adafocus-edge-benchmark-", "") as folder:
        clips = _Clips(request, examples, folder, progress)
        # Peers run on the GPU if the model does, so that both are compared on the same device.
        on_gpu = any(row.loading.on_gpu for row in rows)
        measuring = _Run(request, state, clips, progress, opened, on_gpu=on_gpu)
        loadings = list(dict.fromkeys(row.loading for row in rows))
        for start in range(0, len(loadings), request.processes):
            block = loadings[start : start + request.processes]
            skipped += measuring.block(block, [row for row in rows if row.loading in block])
    if clips.usable is not None and not clips.usable:
        raise DataError(f"none of the {len(examples)} clips can be read; the first error: {clips.failed[0][1]}")
    header = Report(
        schema=SCHEMA,
        created=iso_now(),
        version=__version__,
        machine=describe(),
        data=_data(request, examples, clips.failed),
        rounds=request.rounds,
        warm_up=request.warm_up,
        seed=request.seed,
        random_weights=request.checkpoint is None,
        yardstick_ms=None,
        energy_of=None,
        rows=(),
        skipped=tuple(skipped),
        findings=(),
    )
    return assemble(header, request.bundles, rows, state, clips.labels, multi_label=request.multi_label)


def _data(request: Request, examples: list[Example], failed: list[tuple[str, str]]) -> Data | None:
    if request.data is None:
        return None
    reused = {name: reused_clips(bundle.manifest.reports, examples) for name, bundle in request.bundles.items()}
    return Data(
        origin=request.data.origin,
        clips=len(examples) - len(failed),
        chosen=_hash([(e.name, list(e.labels)) for e in examples]),
        failed=tuple(FailedClip(clip=name, error=error) for name, error in failed),
        reused={name: counts for name, counts in reused.items() if counts},
    )


def _chosen(request: Request) -> list[Example]:
    if request.data is None:
        return []
    examples = list(request.data.examples)
    order = np.random.default_rng(request.seed).permutation(len(examples))[: request.clips]
    return [examples[number] for number in sorted(order)]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _fingerprint(request: Request, rows: list[Row], examples: list[Example]) -> str:
    """Return everything that the measurements depend on, as JSON."""

    def file(path: Path | None) -> Any:
        if path is None or not path.exists():
            return None
        about = path.stat()
        return str(path.resolve()), about.st_size, about.st_mtime_ns

    machine = to_json(describe())
    return json.dumps(
        {
            "bundles": {name: file(bundle.path / "bundle.json") for name, bundle in request.bundles.items()},
            "rows": [row.key for row in rows],
            "clips": _hash([(e.name, file(e.path), list(e.labels)) for e in examples]),
            "checkpoints": [file(request.checkpoint), *(file(path) for path in request.checkpoints.values())],
            "options": [request.rounds, request.warm_up, request.parts_every, request.seed],
            "machine": {key: machine[key] for key in ("cpu", "usable_cores", "gpu", "versions")},
        },
        sort_keys=True,
    )


class _Clips:
    """The clips, read once for each kind of preprocessing and number of frames, and kept in files.

    Attributes:
        usable: indices of the chosen clips that can be read; None before they have been read.
        failed: names and errors of the other clips.
    """

    def __init__(self, request: Request, examples: list[Example], folder: Path, progress: Progress) -> None:
        self._request = request
        self._examples = examples
        self._folder = folder
        self._progress = progress
        self._files: dict[tuple[Any, ...], Path] = {}
        self.usable: list[int] | None = None
        self.failed: list[tuple[str, str]] = []

    @property
    def labels(self) -> list[tuple[int, ...]]:
        """Class ids of each clip that can be read."""
        return [self._examples[number].labels for number in self.usable or []]

    def timed(self) -> list[Any]:
        """Return the sources that are timed, one a round at most, spread evenly over the clips that can be read."""
        most = min(self._request.rounds, MAX_TIMED_CLIPS)
        if not self._examples:
            return [NoiseClip(seed=seed) for seed in range(most)]
        usable = list(range(len(self._examples))) if self.usable is None else self.usable
        picked = np.linspace(0, len(usable) - 1, min(len(usable), most)).round().astype(int)
        return [self._examples[usable[place]] for place in picked]

    def file(self, bundle: Bundle, segments: int) -> Path:
        """Return the path of a file with all clips, preprocessed for a bundle's model: uint8 [N, T, S, S, 3]."""
        spec = replace(bundle.spec, segments=segments)
        kind = (spec.frame_size, spec.fit, spec.motion_gap_s, segments)
        if kind in self._files:
            return self._files[kind]
        path = self._folder / f"{len(self._files)}.npy"
        shape = (len(self._examples), segments, spec.frame_size, spec.frame_size, 3)
        usable = []
        try:
            # Write instead of mapping: on a full disk, a write to a mapped page would kill the process silently.
            with path.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for number, example in enumerate(self._examples):
                    pixels = np.zeros(shape[1:], np.uint8)
                    try:
                        for step, (_, frame) in enumerate(sampled_frames(example.open_clip(), spec)):
                            pixels[step] = frame
                        usable.append(number)
                    except SourceError as error:
                        if self.usable is None:
                            self.failed.append(shown_failure(example.name, error))
                    file.write(pixels.tobytes())
                    self._progress("reading clips", number + 1, len(self._examples))
        except OSError as error:
            raise AdaFocusError(
                f"{path}: the clips' frames cannot be written ({error.strerror}): set TMPDIR to a folder with "
                f"{math.prod(shape) / 1e6:.0f} MB free"
            ) from None
        self.usable = usable if self.usable is None else [number for number in self.usable if number in usable]
        self._files[kind] = path
        return path


class _Run:
    """Measures rows in blocks whose models are loaded at the same time."""

    def __init__(
        self,
        request: Request,
        state: State,
        clips: _Clips,
        progress: Progress,
        opened: Callable[[Opening], Measures],
        *,
        on_gpu: bool,
    ) -> None:
        self._request = request
        self._state = state
        self._clips = clips
        self._progress = progress
        self._opened = opened
        self._on_gpu = on_gpu
        self._gone: dict[Loading, str] = {}

    def block(self, loadings: list[Loading], rows: list[Row]) -> list[Skipped]:
        """Measure a block of rows; return those that failed, with the reasons."""
        with ExitStack() as stack:
            workers: dict[Loading, Measures] = {}
            labelled = self._request.data is not None
            if labelled:  # find the readable clips before any is timed
                for row in rows:
                    self._clips.file(self._bundle(row.loading), row.segments)
                if not self._clips.usable:
                    return []
            for number, loading in enumerate(loadings):
                own = [row for row in rows if row.loading == loading]
                if self._done(own):
                    continue
                self._progress(f"loading {loading.backend} {loading.variant}", number, len(loadings))
                try:
                    workers[loading] = worker = self._open(loading, own[0])
                except AdaFocusError as error:
                    self._gone[loading] = str(error)
                    continue
                stack.callback(worker.close)
            if labelled:
                self._judge(workers, rows)
            self._rounds(workers, rows)
            for loading, worker in workers.items():
                if loading not in self._gone:
                    self._keep_process(loading, worker)
        return [Skipped(row.key, self._gone[row.loading]) for row in rows if row.loading in self._gone]

    def _bundle(self, loading: Loading) -> Bundle:
        return self._request.bundles[loading.bundle]

    def _done(self, rows: list[Row]) -> bool:
        return rows[0].loading.key in self._state.processes and not self._pending(rows)

    def _pending(self, rows: list[Row]) -> list[tuple[int, Row]]:
        """Return the rounds that are still missing, each with its row."""
        return [
            (round_, row)
            for round_ in range(self._request.rounds)
            for row in rows
            if round_ not in self._state.whole.get(row.key, {})
        ]

    def _open(self, loading: Loading, row: Row) -> Measures:
        checkpoint = self._request.checkpoints.get(loading.backend.partition(":")[2], self._request.checkpoint)
        first = self._clips.timed()[0]
        return self._opened(Opening(loading, self._bundle(loading).path, checkpoint, row, first, self._on_gpu))

    def _keep_process(self, loading: Loading, worker: Measures) -> None:
        """Keep the facts of a process: its start-up times, GFLOPs and memory."""
        try:
            memory = worker.memory()
        except AdaFocusError as error:
            self._gone[loading] = str(error)
            return
        ready = worker.ready
        facts = Process(
            worker.cold_start_ms, ready.load_ms, ready.first_ms, ready.gflops_per_step, ready.energy_of,
            memory.host_mb, memory.device_mb,
        )  # fmt: skip
        self._state.keep("process", loading.key, 0, facts)

    def _judge(self, workers: dict[Loading, Measures], rows: list[Row]) -> None:
        """Collect the logits that accuracies are computed from; rows that differ only in schedule share them."""
        needed = {row.seen: row for row in rows if row.loading in workers}
        pending = {name: row for name, row in needed.items() if self._state.logits(name) is None}
        usable = self._clips.usable or []
        done, total = 0, len(pending) * len(usable)
        for name, row in pending.items():
            path = self._clips.file(self._bundle(row.loading), row.segments)
            found = []
            for clip in usable:
                if row.loading in self._gone:
                    break
                try:
                    found.append(workers[row.loading].logits(path, clip, row.order))  # type: ignore[arg-type]
                except AdaFocusError as error:
                    self._gone[row.loading] = str(error)
                done += 1
                self._progress("judging accuracy", done, total)
            if row.loading not in self._gone:
                self._state.keep_logits(name, np.stack(found))

    def _rounds(self, workers: dict[Loading, Measures], rows: list[Row]) -> None:
        """Time every row once per round, in a new random order each, so that disturbances affect all rows alike."""
        sources = self._clips.timed()
        rows = [row for row in rows if row.loading in workers and row.loading not in self._gone]
        pending = self._pending(rows)
        total = len(pending) + len({row for _, row in pending}) * self._request.warm_up
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            self._progress("timing", done, total)

        for row in {row: None for _, row in pending}:
            for number in range(self._request.warm_up):
                self._time(workers, row, sources[number % len(sources)], parts=False)
                step()
        unsorted = np.random.default_rng(self._request.seed).random(YARDSTICK_SIZE)
        block = _hash([loading.key for loading in workers])[:8]
        for round_ in range(self._request.rounds):
            turn = [row for number, row in pending if number == round_]
            if not turn:
                continue
            started = time.perf_counter()
            np.sort(unsorted)
            self._state.keep("yardstick", block, round_, (time.perf_counter() - started) * 1e3)
            source = sources[round_ * len(sources) // self._request.rounds]
            for place in np.random.default_rng((self._request.seed, round_)).permutation(len(turn)):
                row = turn[place]
                if round_ % self._request.parts_every == 0 and row.streams == 1:
                    timing = self._time(workers, row, source, parts=True)
                    if timing is not None:
                        self._state.keep("parts", row.key, round_, timing)
                timing = self._time(workers, row, source, parts=False)
                if timing is not None:
                    self._state.keep("whole", row.key, round_, timing)
                step()

    def _time(self, workers: dict[Loading, Measures], row: Row, source: Any, *, parts: bool) -> Timing | None:
        if row.loading in self._gone:
            return None
        try:
            return workers[row.loading].time(row, source, parts=parts)
        except AdaFocusError as error:
            self._gone[row.loading] = str(error)
            return None

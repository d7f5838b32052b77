"""A benchmark or a tuning by its options: read and check bundles, clips and checkpoints, then measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.benchmark.grid import Grid
from adafocus_edge.benchmark.run import Progress, Request, run
from adafocus_edge.benchmark.settings import BenchmarkOptions, MeasureOptions, TuneOptions
from adafocus_edge.bundle.classes import check_classes
from adafocus_edge.bundle.store import check_graph_files, open_bundle
from adafocus_edge.errors import CheckpointError, UsageError
from adafocus_edge.evaluation.dataset import read_data

if TYPE_CHECKING:
    from adafocus_edge.benchmark.schema import Report
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.evaluation.dataset import Split

Log = Callable[[str], None]


def benchmark(
    bundles: Sequence[Path], options: BenchmarkOptions, report: Path | None, log: Log, progress: Progress
) -> Report:
    """Measure bundles over a grid of settings, and what they are compared with.

    Args:
        bundles: paths of at least one.
        options: see :class:`BenchmarkOptions`.
        report: the JSON file to be written, beside which measurements are kept until it is; or None.
        log: called with lines for the user.
        progress: called with the name of a step, and how much of it is done.

    Returns:
        the report. Raises ``UsageError``, ``CheckpointError``, ``DataError`` or ``BundleError`` for wrong inputs.
    """
    for path in (*(options.peer_checkpoint or ()), *([options.checkpoint] if options.checkpoint is not None else [])):
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint file")
    found = _open_bundles(bundles)
    split = _read_split(options, found, log)
    checkpoints = _named_checkpoints(options.peer_checkpoint or ())
    grid = Grid(
        backends=options.backends, variants=options.variants, schedules=options.schedules, exits=options.exits,
        segments=options.segments, streams=options.streams, threads=options.threads, peers=options.compared_with,
        checkpoints=tuple(checkpoints), labelled=split is not None,
    )  # fmt: skip
    request = Request(
        found, grid, split, clips=options.max_clips, rounds=options.number_of_rounds, seed=options.seed,
        checkpoint=options.checkpoint, checkpoints=checkpoints, multi_label=options.multi_label,
        state=None if report is None else kept_beside(report),
    )  # fmt: skip
    return _measure(request, log, progress)


def measure_settings(bundle: Path, options: TuneOptions, log: Log, progress: Progress) -> Report:
    """Measure a bundle on labelled clips over the settings that a profile may hold; return the report."""
    found = _open_bundles([bundle])
    split = _read_split(options, found, log)
    own = next(iter(found.values())).spec.segments
    grid = Grid(
        backends=options.backends, variants=options.variants, exits=options.exits, threads=options.threads,
        segments=options.segments or tuple(dict.fromkeys((own, max(1, own // 2), max(1, own // 4)))), peers=(),
        labelled=split is not None,
    )  # fmt: skip
    request = Request(found, grid, split, clips=options.clips, rounds=options.rounds, seed=options.seed)
    return _measure(request, log, progress)


def kept_beside(report: Path) -> Path:
    """Return the folder that keeps what is measured until a report is written."""
    return report.with_name(f".{report.name}.parts")


def _open_bundles(paths: Sequence[Path]) -> dict[str, Bundle]:
    """Open bundles by their names in a report: the folder's, with its parent's where two are the same."""
    bundles: dict[str, Bundle] = {}
    for path in paths:
        name = path.resolve().name
        if name in bundles:
            name = f"{path.resolve().parent.name}/{name}"
        if name in bundles:
            raise UsageError(f"{path}: another bundle has the same name {name}: rename a folder")
        bundles[name] = open_bundle(path)
    return bundles


def _read_split(options: MeasureOptions, bundles: dict[str, Bundle], log: Log) -> Split | None:
    """Read the labelled clips, if any, with the classes that all bundles must share."""
    if options.data is None:
        return None
    classes = next(iter(bundles.values())).classes
    split = read_data(options.data, classes, options.frames)
    for note in split.notes:
        log(f"note: {note}")
    for bundle in bundles.values():
        check_classes(split.classes, bundle.spec.classes, str(options.data))
        if bundle.classes != classes:
            raise UsageError(f"{bundle.path}: its class names differ from those of the first bundle")
    return split


def _named_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """Return checkpoints by the names that they have in a report, with their folders': runs name all of them alike."""
    named: dict[str, Path] = {}
    for path in paths:
        run_file = path.resolve()
        name = f"{run_file.parent.name}/{run_file.name}"
        if (other := named.setdefault(name, path)).resolve() != run_file:
            raise UsageError(f"{path}: is called {name} in the report, as {other} is: rename a folder")
    return named


def _measure(request: Request, log: Log, progress: Progress) -> Report:
    for bundle in request.bundles.values():
        check_graph_files(bundle)
    try:
        return run(request, progress)
    except KeyboardInterrupt:
        if request.state is not None:
            log("measurements so far are kept: the same command resumes from them")
        raise

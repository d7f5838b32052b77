"""What `benchmark` and `tune` share: a grid of settings, and measuring it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafocus_edge.cli.options import DEFAULT_MODEL_NOTE
from adafocus_edge.cli.outputs import progress_for, say, say_notes
from adafocus_edge.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from adafocus_edge.benchmark.schema import Report
    from adafocus_edge.bundle.manifest import Bundle


@dataclass(frozen=True)
class GridChoice:
    """A grid of settings, as options give it: names and numbers by commas."""

    backends: str | None
    variants: str | None
    schedules: str
    exits: str | None
    segments: str | None
    streams: str
    threads: str | None
    peers: str | None
    quick: bool = False

    def read(self, *, labelled: bool, checkpoints: tuple[str, ...]) -> Any:
        """Return it as a ``Grid``."""
        from adafocus_edge.benchmark.grid import PEERS, Grid

        peers = tuple(PEERS) if self.peers is None and not self.quick else _names("--peers", self.peers or "none")
        return Grid(
            backends=None if self.backends is None else _names("--backends", self.backends),
            variants=None if self.variants is None else _names("--variants", self.variants),
            schedules=_names("--schedules", self.schedules),
            exits=None if self.exits is None else _names("--exits", self.exits),
            segments=None if self.segments is None else _numbers("--segments", self.segments),
            streams=_numbers("--streams", self.streams),
            threads=None if self.threads is None else _numbers("--threads", self.threads),
            peers=peers,
            checkpoints=checkpoints,
            labelled=labelled,
        )


@dataclass(frozen=True)
class Measurement:
    """What ``benchmark`` and ``tune`` measure on."""

    data: Path | None
    frames: Path | None
    checkpoint: Path | None
    checkpoints: tuple[Path, ...]
    multi_label: bool
    json_file: Path | None
    quiet: bool

    def run(self, paths: list[Path], grid: GridChoice, rounds: int, clips: int, seed: int) -> Report:
        """Measure, with a progress bar."""
        from adafocus_edge.benchmark.run import Request
        from adafocus_edge.benchmark.run import run as measure
        from adafocus_edge.bundle.classes import check_classes
        from adafocus_edge.bundle.store import check_graph_files, default_bundle, open_bundle
        from adafocus_edge.evaluation.dataset import read_data

        for path in (*self.checkpoints, *([self.checkpoint] if self.checkpoint is not None else [])):
            if not path.is_file():
                raise CheckpointError(f"{path}: no such checkpoint file")
        if not paths:
            say(DEFAULT_MODEL_NOTE, self.quiet)
        bundles: dict[str, Bundle] = {}
        for path in paths or [default_bundle()]:
            name = path.resolve().name
            if name in bundles:
                name = f"{path.resolve().parent.name}/{name}"
            if name in bundles:
                raise UsageError(f"{path}: two of the bundles have the same name")
            bundles[name] = open_bundle(path)
        split = None
        if self.data is not None:
            classes = next(iter(bundles.values())).classes
            split = read_data(self.data, classes, self.frames)
            say_notes(split.notes, self.quiet)
            for bundle in bundles.values():
                check_classes(split.classes, bundle.spec.classes, str(self.data))
                if bundle.classes != classes:
                    raise UsageError(f"{bundle.path}: names other classes than the first bundle")
        checkpoints: dict[str, Path] = {}
        for path in self.checkpoints:
            run = path.resolve()  # runs are told apart by their folders: their checkpoints have the same names
            name = f"{run.parent.name}/{run.name}"
            if (other := checkpoints.setdefault(name, path)).resolve() != run:
                raise UsageError(f"{path}: is called {name} in the report, as {other} is: rename a folder")
        for bundle in bundles.values():
            check_graph_files(bundle)
        state = None if self.json_file is None else kept_beside(self.json_file)
        request = Request(
            bundles, grid.read(labelled=split is not None, checkpoints=tuple(checkpoints)), split, clips=clips,
            rounds=rounds, seed=seed, checkpoint=self.checkpoint, checkpoints=checkpoints,
            multi_label=self.multi_label, state=state,
        )  # fmt: skip
        with progress_for(self.quiet) as bars:
            task = bars.add_task("starting", total=None)
            try:
                return measure(
                    request, lambda what, count, of: bars.update(task, description=what, completed=count, total=of)
                )
            except KeyboardInterrupt:
                if state is not None:
                    say("what was measured is kept: the same command goes on from there", self.quiet)
                raise


def kept_beside(report: Path) -> Path:
    """Return the folder of what was measured so far for a report."""
    return report.with_name(f".{report.name}.parts")


def _names(option: str, text: str) -> tuple[str, ...]:
    """Read names by commas; ``none`` is none of them. Raises ``UsageError``."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{option} is empty: name some by commas")
    return () if names == ("none",) else names


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers by commas. Raises ``UsageError``."""
    names = _names(option, text)
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        raise UsageError(f"{option} {text}: takes whole numbers by commas")
    return tuple(map(int, names))

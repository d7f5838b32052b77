"""Plan a benchmark: one row per setting of a grid, and the reasons why some settings are skipped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adafocus_edge.backends.registry import BACKENDS, find_backend, obstacle
from adafocus_edge.benchmark.settings import PEERS
from adafocus_edge.bundle.variants import EXACT_INT8, ON_CPU, VARIANTS
from adafocus_edge.errors import UsageError
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adafocus_edge.bundle.manifest import Bundle

CHECKPOINT_PEER = "checkpoint:"
"""Prefix of a peer that is a checkpoint, before its name."""
TORCH_PEERS = ("pytorch-eager", "pytorch-compile")
"""Peers whose weights come from a checkpoint, or are random."""


@dataclass(frozen=True, order=True)
class Loading:
    """A model to load for a row, in a process of its own.

    Attributes:
        bundle: the bundle's name in the report.
        backend: name of a backend or a peer.
        variant: the bundle's variant.
        threads: CPU threads.
    """

    bundle: str
    backend: str
    variant: str
    threads: int

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.bundle} {self.backend} {self.variant} {self.threads}t"

    @property
    def peer(self) -> bool:
        """Whether it is a peer."""
        return self.backend not in BACKENDS

    @property
    def on_gpu(self) -> bool:
        """Whether it is the bundle's model on a GPU."""
        return not self.peer and find_backend(self.backend).on_gpu


@dataclass(frozen=True)
class Row:
    """One setting to measure.

    Attributes:
        loading: the model that runs it.
        schedule: ``clip`` or ``stream``.
        segments: frames per clip.
        exit: ``SET/ORDER`` of the bundle's exit thresholds, or empty for all steps.
        streams: clips that step together.
    """

    loading: Loading
    schedule: Literal["clip", "stream"]
    segments: int
    exit: str = ""
    streams: int = 1

    @property
    def order(self) -> str:
        """The order of its frames."""
        return self.exit.partition("/")[2] or "clip"

    @property
    def key(self) -> str:
        """Its name in files; `--compare` compares the rows of two reports with the same key."""
        return f"{self.loading.key} {self.schedule} {self.exit or 'all-steps'} T{self.segments} x{self.streams}"

    @property
    def seen(self) -> str:
        """The name of its logits, which rows that differ only in schedule, thresholds or streams share."""
        return f"{self.loading.key} T{self.segments} {self.order}"


@dataclass(frozen=True)
class Grid:
    """The settings to measure; None stands for everything that suits the bundle and the machine.

    Attributes:
        backends: names from :data:`BACKENDS`.
        variants: variants of the bundles.
        schedules: ``clip``, ``stream``.
        exits: names of threshold sets.
        segments: numbers of frames per clip.
        streams: numbers of clips that step together.
        threads: numbers of CPU threads.
        peers: names from :data:`PEERS`.
        checkpoints: names of checkpoints to run as peers.
        labelled: whether the clips have labels; exit thresholds are measured only on real clips.
    """

    backends: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    schedules: tuple[str, ...] = ("clip", "stream")
    exits: tuple[str, ...] | None = None
    segments: tuple[int, ...] | None = None
    streams: tuple[int, ...] = (1,)
    threads: tuple[int, ...] | None = None
    peers: tuple[str, ...] = tuple(PEERS)
    checkpoints: tuple[str, ...] = ()
    labelled: bool = True


@dataclass(frozen=True)
class Skipped:
    """A setting that was not measured, and the reason."""

    what: str
    why: str


def plan(bundles: Mapping[str, Bundle], grid: Grid) -> tuple[list[Row], list[Skipped]]:
    """Return the rows of a grid, and the settings that are skipped.

    Raises ``UsageError`` for an unknown backend, schedule or peer, a variant or threshold set that no bundle has, or a
    number out of range.
    """
    _check(bundles, grid)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for backend in grid.backends or BACKENDS:
        if (found := obstacle(backend)) is not None:
            skipped.append(Skipped(backend, f"{found.why}{f'; {found.fix}' if found.fix else ''}"))
            continue
        for name, bundle in bundles.items():
            for variant in bundle.manifest.variants:
                if grid.variants is not None and variant not in grid.variants:
                    continue
                if grid.variants is None and (why := _unsuitable(backend, variant)) is not None:
                    skipped.append(Skipped(f"{name} {variant} on {backend}", why))
                    continue
                for threads in grid.threads or (usable_cores(),):
                    rows += _of_model(bundle, Loading(name, backend, variant, threads), grid, skipped)
    for name, bundle in bundles.items():
        rows += _peers(name, bundle, grid, skipped)
    return list(dict.fromkeys(rows)), list(dict.fromkeys(skipped))


def _of_model(bundle: Bundle, loading: Loading, grid: Grid, skipped: list[Skipped]) -> list[Row]:
    """Return the rows of one loaded model."""
    own = bundle.spec.segments
    rows = []
    for segments in grid.segments or (own,):
        for schedule in grid.schedules:
            for streams in grid.streams if schedule == "stream" else (1,):
                rows.append(Row(loading, "clip" if schedule == "clip" else "stream", segments, "", streams))
    # On a GPU, the clip schedule sees a clip that may stop early step by step: there, both schedules are the same.
    stops_on: Literal["clip", "stream"] = "clip" if "clip" in grid.schedules and not loading.on_gpu else "stream"
    if stops_on not in grid.schedules:
        return rows
    for name, sets in bundle.manifest.thresholds.items():
        if grid.exits is not None and name not in grid.exits:
            continue
        if not grid.labelled:
            skipped.append(Skipped(f"exit {name}", "the steps it takes depend on the clips: give --data"))
            continue
        if own not in (grid.segments or (own,)):
            skipped.append(Skipped(f"{loading.bundle} exit {name}", f"its thresholds are for {own} frames"))
            continue
        rows += [Row(loading, stops_on, own, f"{name}/{one.order}") for one in sets if one.order != "live"]
    return rows


def _peers(name: str, bundle: Bundle, grid: Grid, skipped: list[Skipped]) -> list[Row]:
    rows = []
    threads = max(grid.threads or (usable_cores(),))
    for peer in (*grid.peers, *(CHECKPOINT_PEER + checkpoint for checkpoint in grid.checkpoints)):
        if "fp32" not in bundle.manifest.variants and not peer.startswith(("pytorch", CHECKPOINT_PEER)):
            skipped.append(Skipped(f"{name} {peer}", "the bundle has no FP32 graphs"))
            continue
        rows.append(Row(Loading(name, peer, "fp32", threads), "clip", bundle.spec.segments))
    return rows


def _unsuitable(backend: str, variant: str) -> str | None:
    """Return why a variant is not measured on a backend unless named, or None if it is."""
    runner = find_backend(backend)
    if not runner.on_gpu:
        return None if variant in ON_CPU else "made for a GPU: name it with --variants to time it here anyway"
    if any(one.name == variant and "gpu" not in one.hardware for one in VARIANTS):
        return "made for a CPU"
    if variant in EXACT_INT8 and not runner.exact_int8:
        return "this backend computes it in floating point; TensorRT computes it in 8 bits"
    return None


def _check(bundles: Mapping[str, Bundle], grid: Grid) -> None:
    variants = [variant for bundle in bundles.values() for variant in bundle.manifest.variants]
    exits = [name for bundle in bundles.values() for name in bundle.manifest.thresholds]
    for option, asked, known in (
        ("--backends", grid.backends or (), BACKENDS),
        ("--variants", grid.variants or (), variants),
        ("--schedules", grid.schedules, ("clip", "stream")),
        ("--exits", grid.exits or (), exits),
        ("--peers", grid.peers, tuple(PEERS)),
    ):
        _check_names(option, asked, known)
    for option, numbers, most in (
        ("--segments", grid.segments or (), 4096),
        ("--streams", grid.streams, 1024),
        ("--threads", grid.threads or (), os.cpu_count() or 1),
    ):
        for number in numbers:
            if not 1 <= number <= most:
                raise UsageError(f"{option} {number}: must be from 1 to {most}")
    together = max(grid.streams, default=1)
    if together > 1 and "stream" not in grid.schedules:
        raise UsageError(f"--streams {together}: only the stream schedule takes several: add stream to --schedules")


def _check_names(option: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            if not known:
                raise UsageError(f"{option} {name}: the bundle has none")
            raise UsageError(f"{option} {name}: must be one of {', '.join(dict.fromkeys(known))}")

"""What is measured: one row per setting, the settings that a grid asks for, and why some cannot run here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adafocus_edge.backends.names import BACKENDS
from adafocus_edge.backends.registry import obstacle
from adafocus_edge.benchmark.settings import PEERS
from adafocus_edge.bundle.variants import ON_CPU
from adafocus_edge.errors import UsageError
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adafocus_edge.bundle.manifest import Bundle

CHECKPOINT_PEER = "checkpoint:"
"""Before the name of a checkpoint that is run as a peer."""
TORCH_PEERS = ("pytorch-eager", "pytorch-compile")
"""Those whose weights come from a checkpoint, or are random."""
INT8_ON_GPU = ("tensorrt", "onnxruntime-tensorrt")
"""Backends that compute in 8 bits what ``int8-trt`` has in 8 bits."""


@dataclass(frozen=True, order=True)
class Loading:
    """What has to be loaded for a row; each is loaded in a process of its own.

    Attributes:
        bundle: its name in the report.
        backend: one of the backends, or a peer.
        variant: of the bundle.
        threads: for computing on the CPU.
    """

    bundle: str
    backend: str
    variant: str
    threads: int

    @property
    def key(self) -> str:
        """What it is called in files."""
        return f"{self.bundle} {self.backend} {self.variant} {self.threads}t"

    @property
    def peer(self) -> bool:
        """Whether it is something to compare with."""
        return self.backend not in BACKENDS

    @property
    def on_gpu(self) -> bool:
        """Whether it is the bundle's model on a GPU."""
        return not self.peer and self.backend != "onnxruntime-cpu"


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        loading: what runs it.
        schedule: how it sees a clip.
        exit: ``SET/ORDER`` of the bundle's exit thresholds, or empty for all steps.
        segments: frames of a clip.
        streams: clips that step together.
    """

    loading: Loading
    schedule: Literal["clip", "stream"]
    segments: int
    exit: str = ""
    streams: int = 1

    @property
    def order(self) -> str:
        """In which its frames are seen."""
        return self.exit.partition("/")[2] or "clip"

    @property
    def key(self) -> str:
        """What it is called in files: rows of two reports with the same key are compared."""
        return f"{self.loading.key} {self.schedule} {self.exit or 'all-steps'} T{self.segments} x{self.streams}"

    @property
    def seen(self) -> str:
        """What its logits are called: rows that differ in schedule, thresholds or streams only share them."""
        return f"{self.loading.key} T{self.segments} {self.order}"


@dataclass(frozen=True)
class Grid:
    """Which settings to measure; None wherever the bundle and the machine decide.

    Attributes:
        backends: of :data:`BACKENDS`.
        variants: of the bundles.
        schedules: ``clip``, ``stream``.
        exits: names of threshold sets.
        segments: frames of a clip.
        streams: clips that step together.
        threads: for computing on the CPU.
        peers: of :data:`PEERS`.
        checkpoints: names of checkpoints to run as peers.
        labelled: whether there are labelled clips: where thresholds stop depends on what is seen.
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
    """What was not measured, and why."""

    what: str
    why: str


def plan(bundles: Mapping[str, Bundle], grid: Grid) -> tuple[list[Row], list[Skipped]]:
    """Return the rows of a grid and what is left out of it.

    Raises ``UsageError`` for a backend, variant, peer or threshold set that none of the bundles knows.
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
    """Return the rows that one loaded model serves."""
    own = bundle.spec.segments
    rows = []
    for segments in grid.segments or (own,):
        for schedule in grid.schedules:
            for streams in grid.streams if schedule == "stream" else (1,):
                rows.append(Row(loading, "clip" if schedule == "clip" else "stream", segments, "", streams))
    if "stream" not in grid.schedules:
        return rows
    for name, sets in bundle.manifest.thresholds.items():
        if grid.exits is not None and name not in grid.exits:
            continue
        if not grid.labelled:
            skipped.append(Skipped(f"exit {name}", "where it stops depends on the clips: give --data"))
            continue
        if own not in (grid.segments or (own,)):
            skipped.append(Skipped(f"{loading.bundle} exit {name}", f"its thresholds are for {own} frames"))
            continue
        rows += [Row(loading, "stream", own, f"{name}/{one.order}") for one in sets if one.order != "live"]
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
    """Say why a variant is not measured on a backend unless it is asked for, or return None."""
    if backend == "onnxruntime-cpu":
        return None if variant in ON_CPU else "made for a GPU: name it with --variants to time it here all the same"
    if variant == "int8-cpu":
        return "made for a CPU"
    if variant == "int8-trt" and backend not in INT8_ON_GPU:
        return "computes in floats there: TensorRT runs it in 8 bits"
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
                raise UsageError(f"{option} {number}: takes 1 to {most}")


def _check_names(option: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise UsageError(f"{option} {name}: known are {', '.join(dict.fromkeys(known)) or 'none'}")

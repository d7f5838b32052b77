"""A whole archive run: what is left to do, the processes, progress, and one summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.backends.base import CPU_BACKEND
from adafocus_edge.backends.registry import AUTO, may_use_cpu
from adafocus_edge.errors import UsageError
from adafocus_edge.media.remote import list_remote
from adafocus_edge.media.sources import is_remote
from adafocus_edge.runtime.archive.dispatch import BATCH, Dispatcher
from adafocus_edge.runtime.archive.journal import FOLDER, Journal, open_journal
from adafocus_edge.runtime.archive.on_ray import RayExecutor, check_ray
from adafocus_edge.runtime.archive.on_this_machine import LocalExecutor
from adafocus_edge.runtime.archive.settings import MAX_THREADS
from adafocus_edge.runtime.archive.shipped import Shipped
from adafocus_edge.runtime.archive.station import ArchiveJob
from adafocus_edge.runtime.exits import requested_exits
from adafocus_edge.system.addresses import without_password
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.archive.dispatch import Executor
    from adafocus_edge.runtime.archive.settings import ArchiveOptions
    from adafocus_edge.runtime.settings import ClassifyOptions


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: sources of the whole run.
        done: those that have a row.
        rate: rows per second since this start.
        left_s: until the end at that rate, or None before the first row.
    """

    total: int
    done: int
    rate: float
    left_s: float | None


@dataclass(frozen=True)
class Summary:
    """The outcome of a run. Rows of sources that this start was not given, as of an earlier one, do not count.

    Attributes:
        output: folder of the rows.
        sources: how many the run has.
        classified: rows with a result, those of earlier starts included.
        failed: rows with an error.
        before: rows that were there when this start began.
        seconds: that this start took.
        clips_per_s: rows of this start per second.
        engine: executor.
        processes: how many there were at a time, at most.
        backend: that ran the model; empty if nothing was left to do.
    """

    output: str
    sources: int
    classified: int
    failed: int
    before: int
    seconds: float
    clips_per_s: float
    engine: str
    processes: int
    backend: str


def expanded(sources: list[Source]) -> list[Source]:
    """Return the sources of a run, each once: folders and patterns in object stores become their files.

    Raises ``UsageError`` for a live source and for two files of one name, ``SourceError``.
    """
    found: dict[str, Source] = {}
    for source in sources:
        if source.live:
            raise UsageError(f"{source.name}: has no end: --engine is for files")
        for one in list_remote(source) if is_remote(source.address) else [source]:
            if (other := found.setdefault(one.name, one)).address != one.address:
                both = " and ".join(without_password(each.address) for each in (other, one))
                raise UsageError(f"{one.name}: is the name of both {both}: give each a name of its own")
    return list(found.values())


def classify_archive(
    sources: list[Source],
    bundle: Bundle,
    options: ClassifyOptions,
    archive: ArchiveOptions,
    top_k: int,
    output: Path,
    report: Callable[[Progress], None],
) -> Summary:
    """Classify files into a folder, or go on with a run that was interrupted.

    Args:
        sources: files, as :func:`expanded` returns them.
        bundle: of the model.
        options: of the run; those of live sources and videos do not count.
        archive: where the processes are.
        top_k: classes per result.
        output: folder of the rows.
        report: called often with how far it is.

    Raises ``AdaFocusError``.
    """
    variant = bundle.choose_variant(options.variant)
    exits = requested_exits(bundle, options, live=False)
    shipped = Shipped.of(bundle, variant)
    settings = {
        "model": shipped.identity, "variant": variant, "schedule": options.schedule,
        "exit": None if exits is None else repr(exits), "top_k": top_k, "logits": options.logits,
        "video_track": options.video_track, "decode": _decode_of(sources), FOLDER: _folder_of(sources),
    }  # fmt: skip
    backend = options.backend
    if archive.engine == "ray":
        check_ray()
        backend = _backend_of_actors(backend, archive.actor_gpus)
    with open_journal(output, settings) as journal:
        left = [source for source in sources if source.name not in journal.done]
        before, began = len(sources) - len(left), time.monotonic()
        others = len(journal.done) - before  # rows of sources that this run does not have
        dispatcher: Dispatcher | None = None

        def tick() -> None:
            done = len(journal.done) - others
            rate = (done - before) / max(1e-9, time.monotonic() - began)
            report(Progress(len(sources), done, rate, (len(sources) - done) / rate if rate else None))

        if left:

            def job(threads: int) -> ArchiveJob:
                return ArchiveJob(
                    shipped, variant, backend, options.conv_search, options.device, options.schedule, exits, top_k,
                    options.logits, threads,
                )  # fmt: skip

            executor, processes = _executor(archive, options.workers, len(left), job, on_cpu=may_use_cpu(backend))
            try:
                dispatcher = Dispatcher(executor, processes, journal.write, tick)
                dispatcher.run(left)
            finally:
                executor.close()
        took = time.monotonic() - began
        ran = (0, "") if dispatcher is None else (dispatcher.most, dispatcher.backend)
        summary = _summary(journal, sources, output, before, took, archive.engine or "local", *ran)
        journal.finish(vars(summary))
    return summary


def _decode_of(sources: list[Source]) -> str | None:
    """Return how files are decoded; None for exactly, as in folders of runs that could not do otherwise."""
    return next((source.decode for source in sources if source.decode != "exact"), None)


def _folder_of(sources: list[Source]) -> str | None:
    """Return the current folder if paths of sources are relative to it: in another one, they may be other files."""
    relative = any("://" not in source.address and not Path(source.address).is_absolute() for source in sources)
    return str(Path.cwd()) if relative else None


def _backend_of_actors(backend: str, gpus: float) -> str:
    """Return what runs the model in an actor: on a GPU only if it is given one. Raises ``UsageError``."""
    if backend == AUTO:
        return AUTO if gpus else CPU_BACKEND
    if not may_use_cpu(backend) and not gpus:
        raise UsageError(f"--backend {backend}: give each process a GPU, or a share of one: --actor-gpus 1")
    return backend


def _summary(
    journal: Journal, sources: list[Source], output: Path, before: int, took: float, engine: str, processes: int,
    backend: str,
) -> Summary:  # fmt: skip
    names = {source.name for source in sources}
    rows, failed = len(names & journal.done), len(names & journal.failed)
    return Summary(
        str(output), len(sources), rows - failed, failed, before, round(took, 3),
        round((rows - before) / took, 3), engine, processes, backend,
    )  # fmt: skip


def _executor(
    archive: ArchiveOptions, workers: int | None, count: int, job: Callable[[int], ArchiveJob], *, on_cpu: bool
) -> tuple[Executor, Callable[[], int]]:
    """Return the executor, and a function that returns how many processes there shall be."""
    if archive.engine == "local":
        threads = min(workers or usable_cores(), count)
        # A GPU has room for one model: its threads decode, and take turns on it.
        processes = math.ceil(threads / MAX_THREADS) if on_cpu else 1
        return LocalExecutor(job(math.ceil(threads / processes))), lambda: processes
    cluster = RayExecutor(archive, job)
    most = math.ceil(count / BATCH)
    return cluster, lambda: min(workers or cluster.places(), most)

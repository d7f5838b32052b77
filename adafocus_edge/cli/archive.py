"""`adafocus-edge classify --engine`: an archive, into a folder of results."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from adafocus_edge.cli.outputs import LINE_EVERY_S, check_apart, progress_for, say
from adafocus_edge.errors import UsageError
from adafocus_edge.system.cpu import check_threads

if TYPE_CHECKING:
    from pathlib import Path

    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.archive.run import Progress, Summary
    from adafocus_edge.runtime.archive.settings import ArchiveOptions
    from adafocus_edge.runtime.settings import ClassifyOptions


def check_archive(options: ClassifyOptions, archive: ArchiveOptions, only_live: str | None) -> Path:
    """Return the folder of an archive run. Raises ``UsageError`` for options that it has no use for."""
    if options.output is None:
        raise UsageError(f"--engine {archive.engine}: give --output DIR, the folder of the results")
    refused = {
        "--save-video": options.save_video, "--profile": options.profile, "--threads": options.threads,
        only_live: only_live, "--decoder gpu": options.decoder == "gpu",
    }  # fmt: skip
    for name, given in refused.items():
        if given:
            raise UsageError(f"--engine {archive.engine}: {name} cannot be used with it")
    if archive.engine == "local":
        check_threads(options.workers, "--workers")
    return options.output


def run_archive(
    sources: list[Source],
    bundle: Bundle,
    options: ClassifyOptions,
    archive: ArchiveOptions,
    top_k: int,
    output: Path,
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    """Classify an archive, print its summary, and return how many sources failed. Raises ``AdaFocusError``."""
    from adafocus_edge.runtime.archive.run import classify_archive, expanded

    check_apart(output, bundle.path, sources)
    files = expanded(sources)
    with progress_for(quiet) as bars:
        task = bars.add_task("classifying", total=len(files))
        printed = time.monotonic()

        def report(progress: Progress) -> None:
            nonlocal printed
            bars.update(task, completed=progress.done, description=f"classifying, {progress.rate:.1f} clips/s")
            if bars.disable and time.monotonic() - printed >= LINE_EVERY_S:
                printed = time.monotonic()
                say(_line(progress), quiet)

        summary = classify_archive(files, bundle, options, archive, top_k, output, report)
    _print(summary, as_json=as_json)
    return summary.failed


def _line(progress: Progress) -> str:
    left = "" if progress.left_s is None else f", {_span(progress.left_s)} left"
    return f"{progress.done} of {progress.total} done, {progress.rate:.1f} clips/s{left}"


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def _print(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        from adafocus_edge.system.json_lines import to_line

        typer.echo(to_line(asdict(summary)))
        return
    earlier = f", {summary.before} of them before" if summary.before else ""
    typer.echo(
        f"{summary.output}: {summary.classified} classified, {summary.failed} failed{earlier}; "
        f"{summary.seconds:.1f} s, {summary.clips_per_s:.1f} clips/s, {summary.processes} processes ({summary.engine})"
    )

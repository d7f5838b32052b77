"""`adafocus-edge benchmark`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer.core

from adafocus_edge.cli.measure import GridChoice, Measurement, kept_beside
from adafocus_edge.cli.options import (
    Backends,
    ClipCount,
    Debug,
    Exits,
    Json,
    LabelledData,
    Quiet,
    Rounds,
    Seed,
    SplitFrames,
    ThreadCounts,
    Variants,
)
from adafocus_edge.cli.outputs import check_files, check_plot_name, say, say_notes
from adafocus_edge.cli.process import print_error
from adafocus_edge.errors import UsageError

if TYPE_CHECKING:
    from adafocus_edge.benchmark.schema import Report

QUICK_CLIPS = 12
"""Clips of ``benchmark --quick``."""
BENCHMARK_WIDTH = 220
"""Columns of a benchmark's table in a pipe."""


def old_json_form(arguments: Sequence[str]) -> list[str]:
    """Rewrite ``benchmark --json FILE``, which wrote the report there, to ``--json-file FILE``; a switch stays.

    What follows is a file unless it is another option, or a folder, which is a bundle.
    """
    made: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return [*made, argument, *waiting]
        is_file = waiting and not waiting[0].startswith("-") and not Path(waiting[0]).is_dir()
        if argument == "--json" and is_file:
            argument = "--json-file"
            made += [argument, waiting.pop(0)]
        else:
            made.append(argument.replace("--json=", "--json-file=", 1) if argument.startswith("--json=") else argument)
    return made


class BenchmarkCommand(typer.core.TyperCommand):
    """Takes the old form of ``--json``, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, old_json_form(args))


REPORT_SUFFIXES = {".csv": "csv", ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html"}
"""What a benchmark's ``--output`` is written as; JSON under any other name, but a plot under a plot's."""
PLOT_SUFFIX = ".png"


def benchmark(
    bundle: Annotated[
        list[Path] | None, typer.Argument(help="One or more bundles. [default: the default model]")
    ] = None,
    data: LabelledData = None,
    frames: SplitFrames = None,
    backends: Backends = None,
    variants: Variants = None,
    schedules: Annotated[str, typer.Option(help="By commas.")] = "clip,stream",
    exits: Exits = None,
    segments: Annotated[str | None, typer.Option(help="Frames per clip, by commas. [default: the model's]")] = None,
    streams: Annotated[str, typer.Option(help="Clips that step together, by commas.")] = "1",
    threads: ThreadCounts = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="To compare with, by commas, or none: pytorch-eager, pytorch-compile, openvino, whole-frames, "
            "glancer-alone, centre-patches, random-patches. [default: all; with --quick none]"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of the PyTorch peers. [default: random ones, timed only]")
    ] = None,
    peer_checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint of any stage to compare with, by PyTorch, such as stage 0's; may be repeated."),
    ] = None,
    rounds: Rounds = 30,
    clips: ClipCount = 128,
    quick: Annotated[bool, typer.Option("--quick", help="Few clips, few rounds, no peers: under a minute.")] = False,
    seed: Seed = 1007,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="mAP by all labels of a clip (FCVID).")] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the report here, as JSON, or as FILE.csv, FILE.md, FILE.html (a page that needs "
            "nothing else) or FILE.png; may be repeated. With JSON, a run that was broken off goes on.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write fronts, curves and bars as a PNG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json-file", hidden=True)] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", hidden=True)] = None,
    markdown: Annotated[Path | None, typer.Option(hidden=True)] = None,
    html: Annotated[Path | None, typer.Option(hidden=True)] = None,
    report: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: take this report, for the outputs and --compare.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="An older report: exit with 1 if accuracy or latency got worse.")
    ] = None,
    max_slowdown: Annotated[float, typer.Option(min=0.0, help="Percent that --compare lets a median grow.")] = 10.0,
    max_accuracy_drop: Annotated[float, typer.Option(min=0.0, help="Points that --compare lets top-1 fall.")] = 1.0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Weigh accuracy against latency: every setting of a bundle that can run here, and what to compare it with."""
    del debug
    from adafocus_edge.benchmark import compare as comparing

    check_plot_name(plot)
    files = _Reports.of(output or [], plot)
    files = files.with_old(quiet, {"json": json_file, "csv": csv_file, "markdown": markdown, "html": html})
    files.check()  # before anything is measured
    old = None if compare is None else comparing.read_report(compare)
    if report is not None:
        if bundle or data is not None:
            raise UsageError("--from takes a report that is there: it needs no bundle and no --data")
        made = comparing.read_report(report)
    else:
        grid = GridChoice(backends, variants, schedules, exits, segments, streams, threads, peers, quick=quick)
        asked = Measurement(data, frames, checkpoint, tuple(peer_checkpoint or ()), multi_label, files.kept_for, quiet)
        made = asked.run(bundle or [], grid, 3 if quick else rounds, min(clips, QUICK_CLIPS) if quick else clips, seed)
    found = None
    if compare is not None and old is not None:
        found = comparing.compare(made, old, comparing.Limits(max_slowdown / 100, max_accuracy_drop))
        made = replace(made, compared=comparing.to_json(found, compare))
    with ExitStack() as stack:
        stack.callback(_print_benchmark, made, as_json=as_json)  # whatever becomes of the files
        files.write(made)
    if found is not None:
        say_notes(found.notes, quiet)
        for sentence in found.worse:
            print_error(f"worse: {sentence}", 1)
        say(f"compared {found.rows} rows with {compare}: {len(found.worse)} findings", quiet)
        if found.worse:
            raise typer.Exit(1)


@dataclass(frozen=True)
class _Reports:
    """The files that a benchmark's report is written to, each with its format."""

    files: tuple[tuple[str, Path], ...]

    @classmethod
    def of(cls, outputs: list[Path], plot: Path | None) -> _Reports:
        """Return those of ``--output``, whose names tell the formats, and of ``--plot``."""
        formats = {**REPORT_SUFFIXES, PLOT_SUFFIX: "plot"}
        named = [(formats.get(path.suffix.lower(), "json"), path) for path in outputs]
        return cls((*named, *([("plot", plot)] if plot is not None else [])))

    def with_old(self, quiet: bool, old: dict[str, Path | None]) -> _Reports:
        """Return them with those of the options from before ``--output``, whose names tell nothing."""
        given = [(kind, path) for kind, path in old.items() if path is not None]
        for kind, path in given:
            say(f"note: --{kind} FILE is deprecated: use --output {path}, whose name tells the format", quiet)
        return _Reports((*self.files, *given))

    @property
    def kept_for(self) -> Path | None:
        """The file beside which what was measured is kept: the first JSON that is a file of its own, if any."""
        from adafocus_edge.system.files import is_stream

        return next((path for kind, path in self.files if kind == "json" and not is_stream(path)), None)

    def check(self) -> None:
        """Check that all of them can be written. Raises ``AdaFocusError``."""
        from adafocus_edge.system.files import is_stream
        from adafocus_edge.system.retention import check_folder

        drawn = next((path for kind, path in self.files if kind in ("plot", "html")), None)
        if drawn is not None:
            from adafocus_edge.evaluation.plot import check_plot

            check_plot(drawn)
        check_files(*(path for _, path in self.files))
        for _, path in self.files:
            if not is_stream(path):
                check_folder(path.parent, "reports")

    def write(self, report: Report) -> None:
        """Write all of them."""
        from adafocus_edge.benchmark.schema import to_json
        from adafocus_edge.benchmark.tables import csv_text, markdown
        from adafocus_edge.system.files import write_text

        def draw(path: Path) -> None:
            from adafocus_edge.benchmark.plots import draw

            draw(report, path)

        def write_page(path: Path) -> None:
            from adafocus_edge.benchmark.plots import write_page

            write_page(report, path)

        writers: dict[str, Callable[[Path], None]] = {
            "json": lambda path: write_text(path, json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n"),
            "csv": lambda path: write_text(path, csv_text(report)),
            "markdown": lambda path: write_text(path, markdown(report)),
            "html": write_page,
            "plot": draw,
        }
        for kind, path in self.files:
            writers[kind](path)
        if self.kept_for is not None:
            shutil.rmtree(kept_beside(self.kept_for), ignore_errors=True)


def _print_benchmark(report: Report, *, as_json: bool) -> None:
    if as_json:
        from adafocus_edge.benchmark.schema import to_json
        from adafocus_edge.system.json_lines import to_line

        typer.echo(to_line(to_json(report)))
        return
    from adafocus_edge.benchmark.tables import tables
    from adafocus_edge.system.console import console

    to = console(BENCHMARK_WIDTH)
    for part in tables(report):
        to.print(part, markup=False, soft_wrap=isinstance(part, str))

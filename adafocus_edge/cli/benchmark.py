"""`adafocus-edge benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adafocus_edge.benchmark.settings import BenchmarkOptions, CompareOptions
from adafocus_edge.cli.help import Verb
from adafocus_edge.cli.options import DEFAULT_MODEL_NOTE, Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import progress_for, say, say_notes
from adafocus_edge.cli.process import print_error
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.settings import check_plot_name
from adafocus_edge.system.options import OUTPUT, Option

if TYPE_CHECKING:
    from adafocus_edge.benchmark.schema import Report

TABLE_WIDTH = 220
"""Columns of the table in a pipe."""


def old_json_form(arguments: Sequence[str]) -> list[str]:
    """Rewrite ``benchmark --json FILE``, which wrote the report there, to ``--json-file FILE``; a switch stays.

    The next argument is a file unless it is another option, or a folder, which is a bundle.
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


class BenchmarkVerb(Verb):
    """The verb with the old form of ``--json``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, the old form rewritten."""
        return super().parse_args(ctx, old_json_form(args))


@with_options
def benchmark(
    options: BenchmarkOptions,
    comparison: CompareOptions,
    bundle: Annotated[
        list[Path] | None, typer.Argument(help="One or more bundles.", show_default="the default model")
    ] = None,
    output: Annotated[
        list[Path] | None,
        Option(
            "Write the report to this file, in the format of its suffix: .csv, .md, .html (a page that needs no "
            "other file) or .png, else JSON. With JSON, an interrupted benchmark resumes.",
            OUTPUT,
            ("--output", "-o"),
            metavar="FILE",
        ),
    ] = None,
    plot: Annotated[Path | None, Option("Draw fronts, curves and bars as a PNG.", OUTPUT, metavar="FILE")] = None,
    report: Annotated[
        Path | None,
        Option(
            "Take this report instead of measuring, for the outputs and --compare.", OUTPUT, ("--from",), metavar="FILE"
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json-file", hidden=True)] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", hidden=True)] = None,
    markdown: Annotated[Path | None, typer.Option(hidden=True)] = None,
    html: Annotated[Path | None, typer.Option(hidden=True)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure accuracy against latency over all settings of a bundle that this machine can run, and over its peers.

    Examples:
      adafocus-edge benchmark --quick
      adafocus-edge benchmark my-bundle --data clips/ -o report.json -o report.html
      adafocus-edge benchmark --from report.json --compare older.json
    """
    del debug
    from adafocus_edge.benchmark import compare as comparing
    from adafocus_edge.benchmark.files import ReportFiles

    check_plot_name(plot)
    files = ReportFiles.named(output or [], plot)
    given = {"json": json_file, "csv": csv_file, "markdown": markdown, "html": html}
    files = files.added(_old_outputs(given, quiet))
    labels = None if options.data is None or options.data.is_dir() else options.data
    inputs = (labels, options.checkpoint, *(options.peer_checkpoint or ()), *(bundle or ()))
    files.check(inputs)  # before anything is measured
    older = None if comparison.compare is None else comparing.read_report(comparison.compare)
    if report is not None:
        if bundle or options.data is not None:
            raise UsageError("--from takes an existing report: remove the bundle and --data")
        made = comparing.read_report(report)
    else:
        made = _measure(bundle, options, files.kept_for, quiet)
    found = None
    if comparison.compare is not None and older is not None:
        limits = comparing.Limits(comparison.max_slowdown / 100, comparison.max_accuracy_drop)
        found = comparing.compare(made, older, limits)
        made = replace(made, compared=comparing.to_json(found, comparison.compare))
    with ExitStack() as stack:
        stack.callback(_print_benchmark, made, as_json=as_json)  # even if a file cannot be written
        files.write(made)
    if found is not None:
        say_notes(found.notes, quiet)
        for sentence in found.worse:
            print_error(f"worse: {sentence}", 1)
        say(f"compared {found.rows} rows with {comparison.compare}: {len(found.worse)} findings", quiet)
        if found.worse:
            raise typer.Exit(1)


def _old_outputs(given: dict[str, Path | None], quiet: bool) -> list[tuple[str, Path]]:
    """Return the files of the options that were replaced by ``--output``, and print a note on each."""
    files = [(kind, path) for kind, path in given.items() if path is not None]
    for kind, path in files:
        say(f"note: --{kind} FILE is deprecated: use --output {path}, whose name sets the format", quiet)
    return files


def _measure(bundles: list[Path] | None, options: BenchmarkOptions, report: Path | None, quiet: bool) -> Report:
    from adafocus_edge.benchmark.measure import benchmark as measure
    from adafocus_edge.bundle.store import default_bundle

    if not bundles:
        say(DEFAULT_MODEL_NOTE, quiet)
    with progress_for(quiet) as bars:
        task = bars.add_task("starting", total=None)
        return measure(
            bundles or [default_bundle()],
            options,
            report,
            lambda line: say(line, quiet),
            lambda what, count, total: bars.update(task, description=what, completed=count, total=total),
        )


def _print_benchmark(report: Report, *, as_json: bool) -> None:
    if as_json:
        from adafocus_edge.benchmark.schema import to_json
        from adafocus_edge.system.json_lines import to_line

        typer.echo(to_line(to_json(report)))
        return
    from adafocus_edge.benchmark.tables import tables
    from adafocus_edge.system.console import console

    to = console(TABLE_WIDTH)
    for part in tables(report):
        to.print(part, markup=False, soft_wrap=isinstance(part, str))

"""`adafocus-edge calibrate`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import check_files, progress_for, say_notes
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.calibrate_settings import CalibrateArguments
from adafocus_edge.system.companions import import_companion


@with_options
def calibrate(
    options: CalibrateArguments,
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle with FP32 graphs.", show_default="the default model, with --output"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make FP16 and INT8 variants and exit thresholds from real glimpses, and report what each costs.

    Examples:
      adafocus-edge calibrate my-bundle --data clips/
      adafocus-edge calibrate my-bundle --data clips/ --exit-goal fast=steps:4
    """
    del debug
    if bundle is None and options.output is None:
        raise UsageError("--output is missing: the default model is read-only; give a folder for a copy of it")
    from adafocus_edge.bundle.store import default_bundle, open_bundle

    options.check_clips()
    path = bundle or default_bundle()
    open_bundle(path)
    if options.plot is not None:
        from adafocus_edge.evaluation.plot import check_plot

        check_plot(options.plot)
        check_files(options.plot)
    made = import_companion("calibration.options", "calibrate", "calibrate")
    with progress_for(quiet) as bars:
        task = bars.add_task("calibrating", total=None)
        done = made.calibrate_as_asked(
            path,
            options,
            lambda what, count, total: bars.update(task, description=what, completed=count, total=total or None),
        )
    say_notes(done.notes, quiet)
    with ExitStack() as stack:
        stack.callback(_print_calibration, done, as_json=as_json)  # even if the plot cannot be written
        if options.plot is not None:
            from adafocus_edge.evaluation.plot import draw_calibration

            draw_calibration(done.bundle, options.plot)


def _print_calibration(done: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(done.to_json()))
        return
    from adafocus_edge.cli.tables import calibration_tables
    from adafocus_edge.system.console import console

    for table in calibration_tables(done.bundle):
        console().print(table)

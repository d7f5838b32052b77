"""`adafocus-edge calibrate`."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import LINE_EVERY_S, HiddenBars, check_files, progress_for, say, say_notes
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.calibrate_settings import CalibrateArguments
from adafocus_edge.system.companions import import_companion

if TYPE_CHECKING:
    from rich.progress import Progress


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
        done = made.calibrate_as_asked(path, options, _Shown(bars, quiet).show)
    say_notes(done.notes, quiet)
    with ExitStack() as stack:
        stack.callback(_print_calibration, done, as_json=as_json)  # even if the plot cannot be written
        if options.plot is not None:
            from adafocus_edge.evaluation.plot import draw_calibration

            draw_calibration(done.bundle, options.plot)


class _Shown:
    """Shows one activity after another: a bar with its own time left; without a terminal, a line now and then.

    Args:
        bars: where they are drawn.
        quiet: whether no line is printed.
    """

    def __init__(self, bars: Progress | HiddenBars, quiet: bool) -> None:
        self._bars, self._quiet = bars, quiet
        self._task = bars.add_task("calibrating", total=None)
        self._what, self._done = "", 0
        self._began_s = self._printed_s = time.monotonic()

    def show(self, what: str, done: int, total: int) -> None:
        """Show that of an activity's steps so many are done; a total of 0 is unknown."""
        if what != self._what or done < self._done:
            self._bars.remove_task(self._task)
            self._task = self._bars.add_task(what, total=total or None)
        self._what, self._done = what, done
        self._bars.update(self._task, completed=done, total=total or None)
        now_s = time.monotonic()
        if self._bars.disable and now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s = now_s
            steps = f", {done} of {total}" if total else ""
            say(f"{what}{steps} ({(now_s - self._began_s) / 60:.0f} min so far)", self._quiet)


def _print_calibration(done: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(done.to_json()))
        return
    from adafocus_edge.cli.tables import calibration_tables
    from adafocus_edge.system.console import console

    for table in calibration_tables(done.bundle):
        console().print(table)

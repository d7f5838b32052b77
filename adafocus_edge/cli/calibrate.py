"""`adafocus-edge calibrate`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from adafocus_edge.bundle.variants import CALIBRATED
from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import check_files, progress_for, say_notes
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.settings import CalibrationPatches, SplitFrames, check_plot_name
from adafocus_edge.live.settings import DEFAULT_GLIMPSE_FPS
from adafocus_edge.model.defaults import SEED
from adafocus_edge.system.companions import import_companion
from adafocus_edge.system.cpu import check_threads
from adafocus_edge.system.options import GENERAL, INPUT, OUTPUT, Option

VARIANTS = "Variants"
EXITS = "Exit thresholds"


@with_options
def calibrate(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle with FP32 graphs.", show_default="the default model, with --output"),
    ] = None,
    data: Annotated[
        Path | None,
        Option(
            "Read clips that training has not seen from a folder per class, a CSV, a split list, or plain videos.",
            INPUT,
            metavar="PATH",
        ),
    ] = None,
    frames: SplitFrames = None,
    report_on: Annotated[
        Path | None,
        Option("Report on these labelled clips.", INPUT, default="a share of --data", metavar="PATH"),
    ] = None,
    share: Annotated[
        float,
        Option(
            "Calibrate on this share of --data; the rest reports.", INPUT, minimum=0.1, maximum=0.9, metavar="SHARE"
        ),
    ] = 0.5,
    clips: Annotated[
        int, Option("Use at most this many clips for calibration, and as many for the report.", INPUT, minimum=4)
    ] = 128,
    samples: Annotated[int, Option("Take ranges from this many recorded steps.", INPUT, minimum=4)] = 128,
    seed: Annotated[int, Option("Random seed.", INPUT, minimum=0)] = SEED,
    variants: Annotated[
        str, Option(f"Make these variants: {', '.join(CALIBRATED)}; `none` makes none.", VARIANTS, metavar="NAME,...")
    ] = ",".join(CALIBRATED),
    patches: Annotated[
        CalibrationPatches, Option("Look at these patches while inputs are recorded.", VARIANTS)
    ] = "policy",
    method: Annotated[
        Literal["auto", "minmax", "entropy", "percentile"],
        Option("Choose ranges by this method; auto takes the most accurate.", VARIANTS),
    ] = "auto",
    max_accuracy_drop: Annotated[
        float,
        Option(
            "Keep layers in higher precision until a variant loses no more than this.",
            VARIANTS,
            minimum=0.0,
            metavar="POINTS",
        ),
    ] = 1.0,
    reduce_range: Annotated[
        Literal["auto", "on", "off"],
        Option("Use 7-bit weights in int8-cpu; auto: where this CPU needs them.", VARIANTS, metavar="MODE"),
    ] = "auto",
    exit_goal: Annotated[
        list[str] | None,
        Option(
            "Solve thresholds for NAME=steps:N, gflops:G, drop:POINTS, accuracy:PERCENT, ratio:Q; `none` solves none.",
            EXITS,
            default="half=steps:T/2 and safe=drop:0.5",
            metavar="GOAL",
        ),
    ] = None,
    confidence: Annotated[
        Literal["probability", "logit", "entropy"],
        Option("Measure of confidence that thresholds apply to.", EXITS, metavar="MEASURE"),
    ] = "probability",
    orders: Annotated[
        str,
        Option("Solve thresholds for these orders of frames: clip, coarse-to-fine, live.", EXITS, metavar="NAME,..."),
    ] = "clip",
    glimpse_fps: Annotated[
        float,
        Option(
            "Solve thresholds for live windows of this many glimpses per second.", EXITS, minimum=0.01, metavar="FPS"
        ),
    ] = DEFAULT_GLIMPSE_FPS,
    threads: Annotated[
        int | None, Option("Compute with this many CPU threads.", GENERAL, default="all usable cores", minimum=1)
    ] = None,
    output: Annotated[
        Path | None,
        Option(
            "Write a copy of the bundle with the variants to this folder.",
            OUTPUT,
            ("--output", "-o"),
            default="add them to BUNDLE",
            metavar="DIR",
        ),
    ] = None,
    plot: Annotated[
        Path | None, Option("Draw accuracy against size, time and steps as a PNG.", OUTPUT, metavar="FILE")
    ] = None,
    force: Annotated[bool, Option("Replace existing variants and thresholds.", OUTPUT)] = False,
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
    if data is None:
        raise UsageError("--data is missing: give clips that training has not seen, best with labels")
    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model is read-only; give a folder for a copy of it")
    check_plot_name(plot)
    check_threads(threads)
    from adafocus_edge.bundle.store import default_bundle, open_bundle
    from adafocus_edge.evaluation.dataset import check_data
    from adafocus_edge.media.sources import VIDEO_SUFFIXES

    for clips_path in (data, report_on):
        # A single video is accepted as well.
        if clips_path is not None and not (clips_path.suffix.lower() in VIDEO_SUFFIXES and clips_path.is_file()):
            check_data(clips_path, frames)
    path = bundle or default_bundle()
    found = open_bundle(path)
    if plot is not None:
        from adafocus_edge.evaluation.plot import check_plot

        check_plot(plot)
        check_files(plot)
    made = import_companion("calibration.calibrate", "calibrate", "calibrate")
    arguments = import_companion("calibration.options", "calibrate", "calibrate").CalibrateArguments(
        data=data, frames=frames, report_on=report_on, variants=variants, output=output, clips=clips, samples=samples,
        share=share, seed=seed, patches=patches, method=method, max_drop=max_accuracy_drop, exit_goals=exit_goal,
        confidence=confidence, orders=orders, glimpse_fps=glimpse_fps, reduce_range=reduce_range, threads=threads,
        force=force,
    )  # fmt: skip
    options = arguments.options(found.spec.segments)
    with progress_for(quiet) as bars:
        task = bars.add_task("calibrating", total=None)
        done = made.calibrate(
            path,
            options,
            lambda what, count, total: bars.update(task, description=what, completed=count, total=total or None),
        )
    say_notes(done.notes, quiet)
    with ExitStack() as stack:
        stack.callback(_print_calibration, done, as_json=as_json)  # even if the plot cannot be written
        if plot is not None:
            from adafocus_edge.evaluation.plot import draw_calibration

            draw_calibration(done.bundle, plot)


def _print_calibration(done: Any, *, as_json: bool) -> None:
    if as_json:
        sets = done.bundle.manifest.thresholds
        thresholds = {name: [asdict(one) for one in of_name] for name, of_name in sets.items()}
        typer.echo(json.dumps({"bundle": str(done.bundle.path), **done.report, "exits": thresholds}))
        return
    from adafocus_edge.cli.tables import calibration_tables
    from adafocus_edge.system.console import console

    for table in calibration_tables(done.bundle):
        console().print(table)

"""`adafocus-edge calibrate`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from adafocus_edge.cli.inputs import check_threads
from adafocus_edge.cli.options import Debug, Json, PatchesName, Quiet, Threads
from adafocus_edge.cli.outputs import check_files, check_plot_name, progress_for, say_notes
from adafocus_edge.errors import UsageError
from adafocus_edge.live.settings import DEFAULT_GLIMPSE_FPS
from adafocus_edge.system.companions import import_companion


def calibrate(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle with FP32 graphs. [default: the default model, with --output]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Clips that training never saw: a folder per class, CSV, split list; or plain videos."),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Which to make, by commas: int8-cpu, int8-trt, fp16; or none.")
    ] = "int8-cpu,int8-trt,fp16",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a copy with the variants. [default: add to BUNDLE]")
    ] = None,
    frames: Annotated[Path | None, typer.Option(help="For a split list: the folder its paths lie in.")] = None,
    report_on: Annotated[
        Path | None, typer.Option(help="Other labelled clips to report on. [default: a share of --data]")
    ] = None,
    clips: Annotated[int, typer.Option(min=4, help="Clips to use at most, to calibrate and to report each.")] = 128,
    samples: Annotated[int, typer.Option(min=4, help="Recorded steps that ranges are taken from.")] = 128,
    share: Annotated[float, typer.Option(min=0.1, max=0.9, help="Of --data that calibrates; the rest reports.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that chance decides.")] = 1007,
    patches: Annotated[
        PatchesName, typer.Option(help="Where the float model looks while inputs are recorded.")
    ] = PatchesName.POLICY,
    method: Annotated[str, typer.Option(help="Of ranges: minmax, entropy, percentile; auto: by accuracy.")] = "auto",
    max_accuracy_drop: Annotated[
        float, typer.Option(min=0.0, help="Points: keep layers in higher precision until a variant loses no more.")
    ] = 1.0,
    exit_goal: Annotated[
        list[str] | None,
        typer.Option(help="NAME=steps:N, gflops:G, drop:POINTS or accuracy:PERCENT. [default: half and safe]"),
    ] = None,
    confidence: Annotated[str, typer.Option(help="For exits: probability, logit or entropy.")] = "probability",
    orders: Annotated[str, typer.Option(help="Exits for, by commas: clip, coarse-to-fine, live.")] = "clip",
    glimpse_fps: Annotated[float, typer.Option(min=0.01, help="Of live windows.")] = DEFAULT_GLIMPSE_FPS,
    reduce_range: Annotated[
        str, typer.Option(help="7-bit weights in int8-cpu: on, off, or auto: where this CPU needs them.")
    ] = "auto",
    threads: Threads = None,
    plot: Annotated[Path | None, typer.Option(help="Write accuracy against size, time and steps as a PNG.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace variants and thresholds that are there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make FP16 and INT8 variants and exit thresholds from real glimpses, and say what each costs."""
    del debug
    if data is None:
        raise UsageError("--data is missing: clips that the model was not trained on, best with labels")
    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model itself is not written to")
    check_plot_name(plot)
    check_threads(threads)
    from adafocus_edge.bundle.store import default_bundle, open_bundle
    from adafocus_edge.evaluation.dataset import check_data
    from adafocus_edge.media.sources import VIDEO_SUFFIXES

    for clips_path in (data, report_on):
        # One video is taken, too.
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
        share=share, seed=seed, patches=patches.value, method=method, max_drop=max_accuracy_drop, exit_goals=exit_goal,
        confidence=confidence, orders=orders, glimpse_fps=glimpse_fps, reduce_range=reduce_range, threads=threads,
        force=force,
    )  # fmt: skip
    options = arguments.options(found.spec.segments)
    with progress_for(quiet) as bars:
        task = bars.add_task("calibrating", total=None)
        done = made.calibrate(
            path,
            options,
            lambda what, count, of: bars.update(task, description=what, completed=count, total=of or None),
        )
    say_notes(done.notes, quiet)
    with ExitStack() as stack:
        stack.callback(_print_calibration, done, as_json=as_json)  # whatever becomes of the plot
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

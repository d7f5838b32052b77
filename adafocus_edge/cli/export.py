"""`adafocus-edge export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet
from adafocus_edge.cli.outputs import say, say_notes, show_stages
from adafocus_edge.errors import CheckpointError, UsageError
from adafocus_edge.system.companions import import_companion


def export_verb(
    checkpoint: Annotated[Path, typer.Argument(help="An official AdaFocus checkpoint (.pth.tar), or one of `train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    patch_size: Annotated[int | None, typer.Option(help="Side of the focuser's patch in pixels, such as 128.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names, one per line (classInd.txt).")] = None,
    segments: Annotated[int | None, typer.Option(help="Frames per clip. [default: 16]")] = None,
    glance_size: Annotated[
        int | None, typer.Option(help="Side of the glancer's frame. [default: from the weights]")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the preprocessed frame. [default: 224]")] = None,
    fused: Annotated[bool, typer.Option("--fused", help="Also write step.onnx, the four graphs joined.")] = False,
    half_weights: Annotated[
        bool,
        typer.Option("--half-weights", help="Store the fp32 graphs' weights as FP16: half the size, FP32 arithmetic."),
    ] = False,
    half: Annotated[
        bool,
        typer.Option("--half", help="Also write an fp16 variant, which computes in FP16: for GPUs. Needs no data."),
    ] = False,
    frames: Annotated[str | None, typer.Option(help="Video or folder of frames to compare the graphs on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to a bundle of four ONNX graphs, and compare them with PyTorch."""
    del debug
    # What needs no PyTorch to tell is told at once.
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such checkpoint file")
    if output.exists() and not force:
        raise UsageError(f"{output}: exists already; give another name, or --force to replace it")
    if classes is not None:
        from adafocus_edge.bundle.classes import read_classes

        read_classes(classes)
    if frames is not None:
        from adafocus_edge.media.sources import Source

        if (missing := Source(frames, frames).missing()) is not None:
            raise missing
    from adafocus_edge.system.retention import check_parent

    check_parent(output)
    exporter = import_companion("export.exporter", "export", "export")
    halve = import_companion("calibration.fp16", "export", "export").halve if half else None
    options = exporter.ExportOptions(
        model=exporter.ModelOptions(
            patch_size=patch_size, glance_size=glance_size, input_size=input_size, num_segments=segments
        ),
        classes=classes,
        fused=fused,
        frames=frames,
        replace=force,
        half_weights=half_weights,
    )
    with show_stages(quiet) as progress:
        made = exporter.export(checkpoint, output, options, progress, halve)
    for warning in made.warnings:
        say(f"warning: {warning}", quiet)
    say_notes(made.notes, quiet)
    if as_json:
        told = {"warnings": made.warnings, "notes": made.notes}
        reports = made.bundle.manifest.reports
        converted = {"fp16": reports["fp16"]} if half else {}
        typer.echo(json.dumps({"bundle": str(output), **reports["parity"], **converted, **told}))
        return
    from adafocus_edge.cli.tables import parity_table
    from adafocus_edge.system.console import console

    megabytes, gflops = made.bundle.totals("fp32")
    clip = gflops * made.bundle.spec.segments
    console().print(parity_table(made.bundle.manifest.reports["parity"]["rows"]))
    console().print(f"{output}: {megabytes:.1f} MB, {gflops:.2f} GFLOPs per frame, {clip:.1f} per clip")

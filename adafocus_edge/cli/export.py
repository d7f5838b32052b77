"""`adafocus-edge export`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import say, say_notes, show_stages
from adafocus_edge.errors import CheckpointError, UsageError
from adafocus_edge.system.companions import import_companion
from adafocus_edge.system.options import MODEL, OUTPUT, Option

GRAPHS = "Graphs"
MAX_BIAS = 20
"""Largest logit that ``--class-bias`` adds or takes."""


@with_options
def export_verb(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official AdaFocus checkpoint (.pth.tar), or one that `train` wrote.")
    ],
    output: Annotated[Path, Option("Write the bundle to this folder.", OUTPUT, ("--output", "-o"), metavar="DIR")],
    patch_size: Annotated[
        int | None,
        Option(
            "Set the side of the focuser's patch, such as 128; official checkpoints need it.", MODEL, metavar="PIXELS"
        ),
    ] = None,
    classes: Annotated[
        Path | None, Option("Read class names from this file, one per line (classInd.txt).", MODEL, metavar="FILE")
    ] = None,
    class_bias: Annotated[
        list[str] | None,
        Option(
            "Add LOGITS to this class's logit, to balance classes on validation clips; repeatable.",
            MODEL,
            metavar="CLASS=LOGITS",
        ),
    ] = None,
    segments: Annotated[int | None, Option("Set the frames per clip.", MODEL, default="16")] = None,
    glance_size: Annotated[
        int | None,
        Option("Set the side of the glancer's frame.", MODEL, default="from the weights", metavar="PIXELS"),
    ] = None,
    input_size: Annotated[
        int | None, Option("Set the side of the preprocessed frame.", MODEL, default="224", metavar="PIXELS")
    ] = None,
    sample: Annotated[
        bool | None,
        Option(
            "Of AdaFocus V2: whether it was trained with --sample, which orders a clip's frames coarse to fine.",
            MODEL,
            ("--sample/--no-sample",),
            default="--sample",
        ),
    ] = None,
    half_weights: Annotated[
        bool, Option("Store the weights of the fp32 graphs as FP16: half the size, FP32 arithmetic.", GRAPHS)
    ] = False,
    half: Annotated[
        bool, Option("Also write an fp16 variant, which computes in FP16, for GPUs; it needs no data.", GRAPHS)
    ] = False,
    fused: Annotated[bool, Option("Also write step.onnx, the four graphs joined.", GRAPHS)] = False,
    frames: Annotated[
        str | None,
        Option("Compare the graphs with PyTorch on this video or folder of frames.", GRAPHS, metavar="PATH"),
    ] = None,
    force: Annotated[bool, Option("Replace an existing bundle.", OUTPUT)] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to a bundle of four ONNX graphs, and compare them with PyTorch.

    Examples:
      adafocus-edge export runs/3/best.pth.tar -o my-bundle
      adafocus-edge export actnet.pth.tar -o official --patch-size 96 --half
    """
    del debug
    biases = _parse_biases(class_bias or ())
    _check_inputs(checkpoint, output, classes, frames, force=force)
    exporter = import_companion("export.exporter", "export", "export")
    halve = import_companion("calibration.fp16", "export", "export").halve if half else None
    options = exporter.ExportOptions(
        model=exporter.ModelOptions(
            patch_size=patch_size,
            glance_size=glance_size,
            input_size=input_size,
            num_segments=segments,
            sample=sample,
        ),
        classes=classes,
        fused=fused,
        frames=frames,
        replace=force,
        half_weights=half_weights,
        class_bias=biases,
    )
    with show_stages(quiet) as progress:
        made = exporter.export(checkpoint, output, options, progress, halve)
    for warning in made.warnings:
        say(f"warning: {warning}", quiet)
    say_notes(made.notes, quiet)
    if as_json:
        messages = {"warnings": made.warnings, "notes": made.notes}
        reports = made.bundle.manifest.reports
        converted = {"fp16": reports["fp16"]} if half else {}
        typer.echo(json.dumps({"bundle": str(output), **reports["parity"], **converted, **messages}))
        return
    from adafocus_edge.cli.tables import parity_table
    from adafocus_edge.system.console import console

    megabytes, gflops = made.bundle.totals("fp32")
    clip = gflops * made.bundle.spec.segments
    console().print(parity_table(made.bundle.manifest.reports["parity"]["rows"]))
    console().print(f"{output}: {megabytes:.1f} MB, {gflops:.2f} GFLOPs per frame, {clip:.1f} per clip")


def _parse_biases(texts: Sequence[str]) -> dict[str, float]:
    """Return the numbers by class. Raises ``UsageError``, also for a class that is named twice."""
    biases: dict[str, float] = {}
    for name, value in map(_parse_bias, texts):
        if name in biases:
            raise UsageError(f"--class-bias {name}: given twice")
        biases[name] = value
    return biases


def _parse_bias(text: str) -> tuple[str, float]:
    """Return the class and the number of ``CLASS=LOGITS``. Raises ``UsageError``."""
    name, sign, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not sign or not name or not abs(value) <= MAX_BIAS:
        raise UsageError(
            f"--class-bias {text}: must be CLASS=LOGITS, such as fight=0.5, from -{MAX_BIAS} to {MAX_BIAS}"
        )
    return name, value


def _check_inputs(checkpoint: Path, output: Path, classes: Path | None, frames: str | None, *, force: bool) -> None:
    """Check what needs no PyTorch, which takes seconds to import. Raises ``AdaFocusError``."""
    from adafocus_edge.bundle.classes import read_classes
    from adafocus_edge.media.sources import Source
    from adafocus_edge.system.retention import check_parent

    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such checkpoint file")
    if output.exists() and not force:
        raise UsageError(f"{output}: exists already; give another name, or --force to replace it")
    if classes is not None:
        read_classes(classes)
    if frames is not None and (missing := Source(frames, frames).missing()) is not None:
        raise missing
    check_parent(output)

"""`adafocus-edge prepare`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet
from adafocus_edge.cli.outputs import progress_for, say_notes
from adafocus_edge.cli.process import print_error
from adafocus_edge.system.companions import import_companion


class DatasetName(str, Enum):
    """Values of ``prepare --dataset``."""

    CUSTOM = "custom"
    ACTNET = "actnet"
    FCVID = "fcvid"
    MINIK = "minik"


def prepare(
    source: Annotated[Path, typer.Argument(help="Folder of videos: one sub-folder per class, or with --annotations.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write: the data_dir of `train`.")],
    dataset: Annotated[
        DatasetName, typer.Option(help="custom: a folder per class; others: from --annotations.")
    ] = DatasetName.CUSTOM,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(help="ActivityNet's JSON; FCVID's or Mini-Kinetics' text or CSV (training, then validation)."),
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="CSV `video,source`: clips of one source stay on one side of the split.")
    ] = None,
    val_share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of own videos to validate on.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of that split.")] = 1007,
    size: Annotated[int, typer.Option(min=32, max=8192, help="Short side of the frames in pixels.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 95,
    fps: Annotated[
        float | None, typer.Option(min=0.01, max=1000.0, help="Frames per second to keep. [default: all]")
    ] = None,
    frames: Annotated[
        bool, typer.Option("--frames/--no-frames", help="Without: write lists only; training reads the videos.")
    ] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads. [default: usable cores]")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn videos into frames and split lists for `train`. A run that was broken off goes on where it stopped."""
    del debug
    made = import_companion("training.prepare", "prepare", "train")
    plan = made.PrepareOptions(
        source=source, output=output, dataset=dataset.value, annotations=tuple(annotations or ()), groups=groups,
        val_share=val_share, seed=seed, size=size, quality=quality, fps=fps, frames=frames, workers=workers,
    )  # fmt: skip
    with progress_for(quiet) as bars:
        task = bars.add_task("preparing", total=None)
        done = made.prepare(plan, lambda count, total: bars.update(task, completed=count, total=total))
    say_notes(done.notes, quiet)
    for name, error in done.broken:
        print_error(f"left out: {name}: {error}", 1)
    if as_json:
        typer.echo(json.dumps(done.to_json()))
    else:
        from adafocus_edge.system.console import printable

        typer.echo(printable(done.summary()))
    if done.broken:
        raise typer.Exit(1)

"""`adafocus-edge prepare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import progress_for, say_notes
from adafocus_edge.cli.process import print_error
from adafocus_edge.model.defaults import SEED
from adafocus_edge.system.companions import import_companion
from adafocus_edge.system.options import GENERAL, INPUT, OUTPUT, Option

FRAMES = "Frames"
SPLIT = "Split"
Dataset = Literal["custom", "actnet", "fcvid", "minik"]
"""Formats of class lists."""


@with_options
def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of videos, with one sub-folder per class unless --annotations name the classes, or with "
            "--from-events an archive of events."
        ),
    ],
    output: Annotated[
        Path, Option("Write to this folder, the data_dir of `train`.", OUTPUT, ("--output", "-o"), metavar="DIR")
    ],
    dataset: Annotated[
        Dataset, Option("Read classes from sub-folders (custom), or from the --annotations of this data set.", INPUT)
    ] = "custom",
    annotations: Annotated[
        list[Path] | None,
        Option(
            "Read classes from this file: ActivityNet's JSON, or FCVID's or Mini-Kinetics' text or CSV (training, then "
            "validation).",
            INPUT,
            metavar="FILE",
        ),
    ] = None,
    from_events: Annotated[
        bool, Option("Take the clips that were marked right or wrong in an archive of events.", INPUT)
    ] = False,
    groups: Annotated[
        Path | None,
        Option("Keep clips of one source on one side of the split, by this CSV `video,source`.", SPLIT, metavar="FILE"),
    ] = None,
    val_share: Annotated[
        float,
        Option(
            "Hold out this share of the videos for validation (custom only).",
            SPLIT,
            minimum=0.01,
            maximum=0.99,
            metavar="SHARE",
        ),
    ] = 0.2,
    seed: Annotated[int, Option("Seed the split.", SPLIT, minimum=0)] = SEED,
    frames: Annotated[
        bool,
        Option("Write frames, or only lists: training then reads the videos.", FRAMES, ("--frames/--no-frames",)),
    ] = True,
    size: Annotated[
        int, Option("Set the short side of the frames.", FRAMES, minimum=32, maximum=8192, metavar="PIXELS")
    ] = 256,
    quality: Annotated[int, Option("Set the JPEG quality.", FRAMES, minimum=1, maximum=100)] = 95,
    fps: Annotated[
        float | None,
        Option("Keep this many frames per second.", FRAMES, default="all", minimum=0.01, maximum=1000.0, metavar="FPS"),
    ] = None,
    workers: Annotated[
        int | None, Option("Decode with this many threads.", GENERAL, default="all usable cores", minimum=1)
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn videos into frames and split lists for `train`. An interrupted run resumes.

    Examples:
      adafocus-edge prepare videos/ -o data
      adafocus-edge prepare videos/ -o data --dataset actnet --annotations anet.json
      adafocus-edge prepare events/ -o data --from-events
    """
    del debug
    made = import_companion("training.prepare", "prepare", "train")
    plan = made.PrepareOptions(
        source=source, output=output, dataset=dataset, annotations=tuple(annotations or ()), groups=groups,
        val_share=val_share, seed=seed, size=size, quality=quality, fps=fps, frames=frames, workers=workers,
        from_events=from_events,
    )  # fmt: skip
    with progress_for(quiet) as bars:
        task = bars.add_task("preparing", total=None)
        done = made.prepare(plan, lambda count, total: bars.update(task, completed=count, total=total))
    say_notes(done.notes, quiet)
    for name, error in done.broken:
        print_error(f"skipped: {name}: {error}", 1)
    if as_json:
        typer.echo(json.dumps(done.to_json()))
    else:
        from adafocus_edge.system.printable import printable

        typer.echo(printable(done.summary()))
    if done.broken:
        raise typer.Exit(1)

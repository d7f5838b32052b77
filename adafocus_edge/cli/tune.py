"""`adafocus-edge tune`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.benchmark.settings import TuneOptions
from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import progress_for, say


@with_options
def tune(
    options: TuneOptions,
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle to tune; the profile is stored in it.", show_default="the default model, with --output"
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the setting that meets a demand on this device, and store it as a profile for `classify --profile`.

    Examples:
      adafocus-edge tune my-bundle --data clips/ --max-latency-ms 40
      adafocus-edge tune -o tuned --data clips/ --min-accuracy 90 --percentile p99
    """
    del debug
    from adafocus_edge.benchmark.schema import to_json
    from adafocus_edge.benchmark.tune import tune as run

    with progress_for(quiet) as bars:
        task = bars.add_task("starting", total=None)
        done = run(
            bundle,
            options,
            lambda line: say(line, quiet),
            lambda what, count, total: bars.update(task, description=what, completed=count, total=total),
        )
    profile, row = done.profile, done.row
    if as_json:
        entry = {"bundle": str(done.bundle), "profile": done.name, **asdict(profile), "row": to_json(row)}
        typer.echo(json.dumps(entry))
        return
    low, high = row.interval
    typer.echo(
        f"{done.bundle}: profile {done.name!r}: {row.key.partition(' ')[2]}: {options.percentile} "
        f"{profile.latency_ms:.1f} ms, top-1 {profile.top1:.1f} % ({low:.0f} to {high:.0f}) on {profile.clips} clips\n"
        f"use it: adafocus-edge classify VIDEO --bundle {done.bundle} --profile {done.name}"
    )

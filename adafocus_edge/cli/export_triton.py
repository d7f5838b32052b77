"""`adafocus-edge export-triton`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge import __version__
from adafocus_edge.backends.triton.settings import RepositoryOptions
from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import progress_for
from adafocus_edge.system.companions import import_companion
from adafocus_edge.system.options import OUTPUT, Option

VERB = "export-triton"


@with_options
def export_triton(
    options: RepositoryOptions,
    output: Annotated[
        Path, Option("Write the model repository to this folder.", OUTPUT, ("--output", "-o"), metavar="DIR")
    ],
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to serve.", show_default="the default model")] = None,
    check: Annotated[
        bool,
        Option("Write nothing: check the hash of every file of the repository, and that it is of BUNDLE.", OUTPUT),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a bundle as a model repository for NVIDIA Triton: one model of steps with states, one of whole clips.

    Examples:
      adafocus-edge export-triton my-bundle -o model_repository
      adafocus-edge export-triton my-bundle -o model_repository --check
    """
    del debug
    from adafocus_edge.backends.triton.repository import (
        check_repository,
        describe,
        engine_builder,
        graphs_of,
        write_repository,
    )
    from adafocus_edge.bundle.store import default_bundle, read_bundle
    from adafocus_edge.model.spec import CLIP_GRAPH, STEP_GRAPH
    from adafocus_edge.system.retention import check_parent

    if check:
        made = check_repository(output, None if bundle is None else read_bundle(bundle))
    else:
        found = read_bundle(bundle or default_bundle())
        served = describe(found, options)  # reported before anything slow
        check_parent(output)
        joins = {STEP_GRAPH: import_companion("export.fuse", VERB, "export").fuse}
        if CLIP_GRAPH in graphs_of(served):
            joins[CLIP_GRAPH] = import_companion("export.unroll", VERB, "export").unroll
        with progress_for(quiet) as bars:
            task = bars.add_task("writing", total=None)
            builder = None
            if options.backend == "tensorrt":
                builder = engine_builder(
                    lambda what, count, total: bars.update(task, description=what, completed=count, total=total or None)
                )
            made = write_repository(found, output, options, joins, builder, {"adafocus-edge": __version__})
    megabytes = sum(file.size_bytes for file in made.files.values()) / 1e6
    if as_json:
        entry = {"repository": str(output), "models": made.models, "size_mb": round(megabytes, 3)}
        about = {name: getattr(made.served, name) for name in ("variant", "backend", "version", "graphs_sha256")}
        typer.echo(json.dumps({**entry, **about}))
        return
    from adafocus_edge.system.console import console

    what = "intact" if check else f"{megabytes:.1f} MB"
    served_as = f"{made.served.variant} on {made.served.backend}, version {made.served.version}"
    console().print(f"{output}: {', '.join(made.models)} ({served_as}), {what}", markup=False, soft_wrap=True)

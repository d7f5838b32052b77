"""`adafocus-edge build`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.bundle.variants import BUILT_FROM
from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import progress_for
from adafocus_edge.errors import UsageError
from adafocus_edge.model.spec import HardwareCompatibility, Library
from adafocus_edge.system.companions import import_companion
from adafocus_edge.system.options import MODEL, OUTPUT, Option

TARGET = "Target"


@with_options
def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle to build engines for; they are stored in it.", show_default="the default model, with --output"
        ),
    ] = None,
    variant: Annotated[
        str, Option(f"Build engines of this variant: {', '.join(BUILT_FROM)}.", MODEL, metavar="NAME")
    ] = "auto",
    streams: Annotated[
        int, Option("Allow at most this many streams to step together.", MODEL, minimum=1, maximum=1024)
    ] = 1,
    library: Annotated[Library, Option("Build with this library, which then runs the engines.", TARGET)] = "auto",
    target: Annotated[
        str | None,
        Option(
            "Build without a GPU for these compute capabilities, such as sm_89,sm_120; TensorRT-RTX only.",
            TARGET,
            default="the GPU of this machine",
            metavar="SM,...",
        ),
    ] = None,
    version_compatible: Annotated[
        bool, Option("Let newer releases of the same major version load the engines; TensorRT only.", TARGET)
    ] = False,
    hardware_compatible: Annotated[
        HardwareCompatibility,
        Option(
            "Let other GPUs load the engines: of the same compute capability, or all from Ampere on.",
            TARGET,
            metavar="GPUS",
        ),
    ] = "none",
    output: Annotated[
        Path | None,
        Option(
            "Copy the bundle to this folder first, and build in the copy.", OUTPUT, ("--output", "-o"), metavar="DIR"
        ),
    ] = None,
    force: Annotated[bool, Option("Rebuild engines that are up to date.", OUTPUT)] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Build TensorRT engines of a bundle's variant; engines that are up to date are kept.

    Examples:
      adafocus-edge build my-bundle --variant fp16
      adafocus-edge build my-bundle --library tensorrt-rtx --target sm_89,sm_120
    """
    del debug
    from adafocus_edge.backends.tensorrt.build import BuildRequest
    from adafocus_edge.backends.tensorrt.build import build as run
    from adafocus_edge.bundle.engines import BuildOptions
    from adafocus_edge.bundle.store import default_bundle, read_bundle

    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model is read-only; give a folder for a copy of it")
    found = read_bundle(bundle or default_bundle())
    options = BuildOptions(streams, version_compatible, hardware_compatible)
    targets = tuple(part.strip() for part in target.split(",") if part.strip()) if target is not None else ()
    if target is not None and not targets:
        raise UsageError("--target is empty: give compute capabilities, such as sm_89")
    request = BuildRequest(library, variant, targets, options, force, output)
    with progress_for(quiet) as bars:
        task = bars.add_task("building", total=None)
        done = run(
            found,
            request,
            lambda: import_companion("export.fuse", "build", "tensorrt").fuse,
            lambda what, count, total: bars.update(task, description=what, completed=count, total=total or None),
        )
    if as_json:
        rows = [{"graph": row.graph, "built": row.built, **asdict(row.engine)} for row in done.rows]
        about = {**asdict(done.engines.built_for), "variant": done.engines.variant, "batches": done.engines.batches}
        typer.echo(json.dumps({"folder": str(done.folder), **about, "engines": rows}))
        return
    from adafocus_edge.cli.tables import build_table, where_built
    from adafocus_edge.system.console import console

    console().print(build_table(done))
    console().print(f"{done.folder}: {where_built(done.engines)}", markup=False, soft_wrap=True)

"""`adafocus-edge build`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet
from adafocus_edge.cli.outputs import progress_for
from adafocus_edge.errors import UsageError
from adafocus_edge.system.companions import import_companion


class LibraryName(str, Enum):
    """Values of ``build --library``."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"


class HardwareName(str, Enum):
    """Values of ``build --hardware-compatible``."""

    NONE = "none"
    SAME = "same"
    AMPERE = "ampere+"


def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the bundle; engines are stored in it. [default: the default model, with --output]"
        ),
    ] = None,
    variant: Annotated[str, typer.Option(help="Which of its variants: fp32, fp16 or int8-trt.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the bundle there first, and build in the copy.")
    ] = None,
    library: Annotated[LibraryName, typer.Option(help="What builds and runs the engines.")] = LibraryName.AUTO,
    streams: Annotated[int, typer.Option(min=1, max=1024, help="Streams that step together, at most.")] = 1,
    target: Annotated[
        str | None,
        typer.Option(help="TensorRT-RTX: build without a GPU for these, by commas: sm_89. [default: GPU at hand]"),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT: let newer releases of the same major load them.")
    ] = False,
    hardware_compatible: Annotated[
        HardwareName, typer.Option(help="Let other GPUs load them: of the same compute capability, or all from Ampere.")
    ] = HardwareName.NONE,
    force: Annotated[bool, typer.Option("--force", help="Build even what is there and fits.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Build TensorRT engines of a bundle's variant. What is there and still fits is kept."""
    del debug
    from adafocus_edge.backends.tensorrt.build import BuildRequest
    from adafocus_edge.backends.tensorrt.build import build as run
    from adafocus_edge.bundle.engines import BuildOptions
    from adafocus_edge.bundle.store import default_bundle, read_bundle

    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model itself is not written to")
    found = read_bundle(bundle or default_bundle())
    options = BuildOptions(streams, version_compatible, hardware_compatible.value)
    targets = tuple(part.strip() for part in target.split(",") if part.strip()) if target is not None else ()
    if target is not None and not targets:
        raise UsageError("--target is empty: name a compute capability, such as sm_89")
    request = BuildRequest(library.value, variant, targets, options, force, output)
    with progress_for(quiet) as bars:
        task = bars.add_task("building", total=None)
        done = run(
            found,
            request,
            lambda: import_companion("export.fuse", "build", "tensorrt").fuse,
            lambda what, count, of: bars.update(task, description=what, completed=count, total=of or None),
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

"""`adafocus-edge inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.cli.options import Debug, Json, with_options


@with_options
def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to show.", show_default="the default model")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a bundle holds, after checking every hash in it.

    Examples:
      adafocus-edge inspect my-bundle
      adafocus-edge inspect my-bundle --json
    """
    del debug
    from adafocus_edge.bundle.engines import engine_folders
    from adafocus_edge.bundle.manifest import encode_manifest
    from adafocus_edge.bundle.store import default_bundle, read_bundle
    from adafocus_edge.cli.tables import bundle_tables
    from adafocus_edge.system.console import console

    found = read_bundle(bundle or default_bundle())
    if as_json:
        manifest = json.loads(encode_manifest(found.manifest))
        totals = {}
        for variant in found.manifest.variants:
            megabytes, gflops = found.totals(variant)
            totals[variant] = {
                "size_mb": round(megabytes, 3),
                "gflops_per_step": round(gflops, 6),
                "gflops_per_clip": round(gflops * found.spec.segments, 6),
            }
        engines = [{"folder": folder.name, **asdict(holds)} for folder, holds in engine_folders(found)]
        whole = {**manifest, "classes": list(found.classes), "totals": totals, "engines": engines}
        typer.echo(json.dumps(whole, indent=2))
        return
    for table in bundle_tables(found):
        console().print(table)

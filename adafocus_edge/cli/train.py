"""`adafocus-edge train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet
from adafocus_edge.cli.outputs import say, say_notes, show_stages
from adafocus_edge.errors import UsageError
from adafocus_edge.system.companions import check_installed, import_companion


def train(
    options: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="Options of training, the official code's and ours."),
    ],
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Train once with each of several values: epochs=5,10.")
    ] = False,
    config_dir: Annotated[
        Path | None,
        typer.Option("--config-dir", "-cd", help="Folder of your own config files: preset/NAME.yaml, GROUP/NAME.yaml."),
    ] = None,
    cfg: Annotated[
        str | None, typer.Option("--cfg", "-c", metavar="job", help="Print the composed options as YAML and exit.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one of the four stages, or all of them: `train dataset=custom data_dir=DIR stages=all ...`."""
    del debug
    if cfg not in (None, "job"):
        raise UsageError(f"--cfg {cfg}: must be job, the options of training")
    check_installed("torch", "train", "train")
    # Before PyTorch is loaded, which takes seconds.
    compose = import_companion("training.compose", "train", "train")
    runs = compose.sweep(options) if multirun else [options]
    composed = [compose.compose_options(run, config_dir) for run in runs]
    if cfg is not None:
        for one in composed:
            typer.echo(compose.as_yaml(one.options), nl=False)
        return
    for number, one in enumerate(composed, start=1):
        if multirun:
            say(f"run {number} of {len(composed)}: {one.run_dir}", quiet)
        if one.options.stages:
            all_stages = import_companion("training.all_stages", "train", "train")
            if one.options.export:  # missing libraries are reported before hours of training
                import_companion("export.exporter", "train", "export")
            all_stages.train_all(one, quiet, as_json=as_json, export=partial(_export, quiet=quiet))
        else:
            import_companion("training.train", "train", "train").run_composed(one, quiet, as_json=as_json)


def _export(checkpoint: Path, bundle: Path, *, quiet: bool) -> None:
    """Export a finished model."""
    exporter = import_companion("export.exporter", "train", "export")
    with show_stages(quiet) as progress:
        made = exporter.export(checkpoint, bundle, exporter.ExportOptions(model=exporter.ModelOptions()), progress)
    for warning in made.warnings:
        say(f"warning: {warning}", quiet)
    say_notes(made.notes, quiet)

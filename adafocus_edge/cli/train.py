"""`adafocus-edge train`."""

from __future__ import annotations

from typing import Annotated

import typer

from adafocus_edge.cli.options import Debug, Json, Quiet
from adafocus_edge.system.companions import check_installed, import_companion


def train(
    options: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="The official code's options, and ours; see the README."),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one of the four stages: `train dataset=custom data_dir=DIR train_stage=1 ...`."""
    del debug
    check_installed("torch", "train", "train")
    # Before PyTorch is loaded, which takes seconds.
    composed = import_companion("training.options", "train", "train").compose_options(options)
    import_companion("training.train", "train", "train").run_composed(composed, quiet, as_json=as_json)

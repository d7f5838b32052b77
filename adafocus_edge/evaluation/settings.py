"""The options of an evaluation, as a command line or a program gives them; nothing here imports NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from adafocus_edge.errors import UsageError
from adafocus_edge.model.spec import MAX_SEGMENTS
from adafocus_edge.runtime.settings import DecodeOption, GraphOptions, ScheduleOption
from adafocus_edge.system.options import INPUT, MODEL, OUTPUT, Option, check_limits, check_names, reader_of

Patches = Literal["policy", "centre", "random", "oracle"]
PATCHES: tuple[Patches, ...] = get_args(Patches)
"""Where to look: as the policy says, or, to compare with it, at fixed places, or at the best ones for the label."""

"""Default seed, the official code's."""
CalibrationPatches = Literal["policy", "centre", "random"]
"""Where the float model looks while a calibration records inputs: kinds that need no labels."""

LabelledData = Annotated[
    Path | None,
    Option(
        "Read labelled clips from a folder with one sub-folder per class, a CSV `video,class`, or a split list.",
        INPUT,
        metavar="PATH",
    ),
]
SplitFrames = Annotated[Path | None, Option("Resolve the paths of a split list in this folder.", INPUT, metavar="DIR")]
MultiLabel = Annotated[bool, Option("Count all labels of a clip in mAP, as FCVID does.", INPUT)]


@dataclass(frozen=True)
class EvaluateOptions(GraphOptions):
    """What `evaluate` is asked for, beside the model. Checked when made; raises ``UsageError``."""

    data: LabelledData = None
    frames: SplitFrames = None
    classes: Annotated[
        Path | None,
        Option("Read class names from this file, one per line, for a model without its own.", INPUT, metavar="FILE"),
    ] = None
    multi_label: MultiLabel = False
    schedule: ScheduleOption = "auto"
    decode: DecodeOption = "exact"
    patches: Annotated[
        tuple[str, ...],
        Option(
            f"Look at these patches: {', '.join(PATCHES)}; comma-separated kinds are compared in one table. oracle "
            "knows the label and tries every cell.",
            MODEL,
            metavar="KIND,...",
            read=reader_of(PATCHES),
        ),
    ] = ("policy",)
    patch_size: Annotated[
        int | None, Option("Use this patch size for an official checkpoint, in pixels.", MODEL, metavar="PIXELS")
    ] = None
    segments: Annotated[
        int | None,
        Option("Look at this many frames per clip.", MODEL, default="the model's", minimum=1, maximum=MAX_SEGMENTS),
    ] = None
    output: Annotated[
        Path | None, Option("Also write the JSON to this file.", OUTPUT, ("--output", "-o"), metavar="FILE")
    ] = None
    plot: Annotated[
        Path | None, Option("Draw the accuracy per step and the confusion matrix as a PNG.", OUTPUT, metavar="FILE")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits(self)
        if self.data is None:
            raise UsageError("--data is missing: give a folder with a sub-folder per class, a CSV, or a split list")
        check_names("--patches", self.patches, PATCHES)
        if not self.patches:
            raise UsageError(f"--patches none: give at least one of {', '.join(PATCHES)}")
        check_plot_name(self.plot)

    @property
    def clips(self) -> Path:
        """Where the labelled clips are."""
        assert self.data is not None
        return self.data


def check_plot_name(plot: Path | None) -> None:
    """Check that a plot's file is named as a PNG. Raises ``UsageError``."""
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: plots are written as PNG; name it *.png")

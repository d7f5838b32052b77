"""The options of `calibrate`, as a command line or a program gives them; nothing here imports NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adafocus_edge.bundle.variants import CALIBRATED
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.settings import CalibrationPatches, SplitFrames, check_plot_name
from adafocus_edge.model.defaults import DEFAULT_GLIMPSE_FPS, SEED
from adafocus_edge.system.cpu import check_threads
from adafocus_edge.system.options import GENERAL, INPUT, OUTPUT, Option, check_limits

VARIANTS = "Variants"
EXITS = "Exit thresholds"


@dataclass(frozen=True)
class CalibrateArguments:
    """What `calibrate` is asked for, beside the bundle. Checked when made; raises ``UsageError``."""

    data: Annotated[
        Path | None,
        Option(
            "Read clips that training has not seen from a folder per class, a CSV, a split list, or plain videos.",
            INPUT,
            metavar="PATH",
        ),
    ] = None
    frames: SplitFrames = None
    report_on: Annotated[
        Path | None,
        Option("Report on these labelled clips.", INPUT, default="a share of --data", metavar="PATH"),
    ] = None
    share: Annotated[
        float,
        Option(
            "Calibrate on this share of --data; the rest reports.", INPUT, minimum=0.1, maximum=0.9, metavar="SHARE"
        ),
    ] = 0.5
    clips: Annotated[
        int, Option("Use at most this many clips for calibration, and as many for the report.", INPUT, minimum=4)
    ] = 128
    samples: Annotated[int, Option("Take ranges from this many recorded steps.", INPUT, minimum=4)] = 128
    seed: Annotated[int, Option("Random seed.", INPUT, minimum=0)] = SEED
    variants: Annotated[
        str, Option(f"Make these variants: {', '.join(CALIBRATED)}; `none` makes none.", VARIANTS, metavar="NAME,...")
    ] = ",".join(CALIBRATED)
    patches: Annotated[CalibrationPatches, Option("Look at these patches while inputs are recorded.", VARIANTS)] = (
        "policy"
    )
    method: Annotated[
        Literal["auto", "minmax", "entropy", "percentile"],
        Option("Choose ranges by this method; auto takes the most accurate.", VARIANTS),
    ] = "auto"
    max_accuracy_drop: Annotated[
        float,
        Option(
            "Keep layers in higher precision until a variant loses no more than this.",
            VARIANTS,
            minimum=0.0,
            metavar="POINTS",
        ),
    ] = 1.0
    max_latency_ms: Annotated[
        float | None,
        Option(
            "Keep more of the sensitive layers of int8-cpu in float, up to this time per clip on this machine.",
            VARIANTS,
            default="only as many as accuracy needs",
            minimum=0.001,
            metavar="MS",
        ),
    ] = None
    reduce_range: Annotated[
        Literal["auto", "on", "off"],
        Option("Use 7-bit weights in int8-cpu; auto: where this CPU needs them.", VARIANTS, metavar="MODE"),
    ] = "auto"
    exit_goal: Annotated[
        list[str] | None,
        Option(
            "Solve thresholds for NAME=steps:N, gflops:G, drop:POINTS, accuracy:PERCENT, ratio:Q; `none` solves none.",
            EXITS,
            default="half=steps:T/2 and safe=drop:0.5",
            metavar="GOAL",
        ),
    ] = None
    confidence: Annotated[
        Literal["probability", "logit", "entropy"],
        Option("Measure of confidence that thresholds apply to.", EXITS, metavar="MEASURE"),
    ] = "probability"
    orders: Annotated[
        str,
        Option("Solve thresholds for these orders of frames: clip, coarse-to-fine, live.", EXITS, metavar="NAME,..."),
    ] = "clip"
    glimpse_fps: Annotated[
        float,
        Option(
            "Solve thresholds for live windows of this many glimpses per second.", EXITS, minimum=0.01, metavar="FPS"
        ),
    ] = DEFAULT_GLIMPSE_FPS
    threads: Annotated[
        int | None, Option("Compute with this many CPU threads.", GENERAL, default="all usable cores", minimum=1)
    ] = None
    output: Annotated[
        Path | None,
        Option(
            "Write a copy of the bundle with the variants to this folder.",
            OUTPUT,
            ("--output", "-o"),
            default="add them to BUNDLE",
            metavar="DIR",
        ),
    ] = None
    plot: Annotated[
        Path | None, Option("Draw accuracy against size, time and steps as a PNG.", OUTPUT, metavar="FILE")
    ] = None
    force: Annotated[bool, Option("Replace existing variants and thresholds.", OUTPUT)] = False

    def __post_init__(self) -> None:
        if self.data is None:
            raise UsageError("--data is missing: give clips that training has not seen, best with labels")
        check_limits(self)
        check_plot_name(self.plot)
        check_threads(self.threads)

    def check_clips(self) -> None:
        """Check that the clips are there, before anything slow is imported. Raises ``UsageError``, ``DataError``."""
        from adafocus_edge.evaluation.dataset import check_data
        from adafocus_edge.media.sources import VIDEO_SUFFIXES

        for clips in (self.data, self.report_on):
            # A single video is accepted as well.
            if clips is not None and not (clips.suffix.lower() in VIDEO_SUFFIXES and clips.is_file()):
                check_data(clips, self.frames)

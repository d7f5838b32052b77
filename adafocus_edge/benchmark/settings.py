"""The options of `benchmark` and `tune`, as a command line or a program gives them; nothing here imports NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adafocus_edge.backends.registry import ALIASES, BACKENDS
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.settings import LabelledData, MultiLabel, SplitFrames
from adafocus_edge.model.defaults import SEED
from adafocus_edge.system.options import OUTPUT, Option, read_names, read_numbers, reader_of

GRID = "Grid of settings"
MEASURING = "Measuring"
DEMAND = "Demand"
COMPARISON = "Comparison with an older report"

PEERS = {
    "pytorch-eager": "eager PyTorch, as in the official code",
    "pytorch-compile": "the same networks with torch.compile",
    "whole-frames": "the focuser on whole frames (TSN), with the classifier that was trained on patches",
    "glancer-alone": "the glancer and the classifier, without a focuser",
    "centre-patches": "centre patches, without a policy",
    "random-patches": "random patches, without a policy",
}
"""Descriptions of the peers to compare the model with, by their names in ``--peers``."""
Latency = Literal["model", "whole", "step"]
"""Of a clip in the glimpse loop; of a clip from opening the file; of one glimpse on the stream schedule."""
Percentile = Literal["median", "p95", "p99"]
SCHEDULES = ("clip", "stream")
CLIPS = 128
ROUNDS = 30
QUICK_CLIPS = 12
"""Clips of ``benchmark --quick``."""
QUICK_ROUNDS = 3
ROUNDS_HELP = "Time every setting once in each of this many rounds."
CLIPS_HELP = "Use at most this many clips to measure accuracy."


def _read_backends(option: str, text: str) -> tuple[str, ...]:
    return reader_of(BACKENDS)(option, ",".join(ALIASES.get(name, name) for name in read_names(option, text)) or "none")


@dataclass(frozen=True)
class MeasureOptions:
    """What `benchmark` and `tune` share: labelled clips and a grid; None where bundle and machine decide."""

    data: LabelledData = None
    frames: SplitFrames = None
    backends: Annotated[
        tuple[str, ...] | None,
        Option(
            f"Measure these backends: {', '.join(BACKENDS)}; cpu and cuda are short for the first two.",
            GRID,
            default="all that can run on this machine",
            metavar="NAME,...",
            read=_read_backends,
        ),
    ] = None
    variants: Annotated[
        tuple[str, ...] | None,
        Option(
            "Measure these variants, such as fp32,fp16,int8-cpu.",
            GRID,
            default="those made for each backend",
            metavar="NAME,...",
            read=read_names,
        ),
    ] = None
    exits: Annotated[
        tuple[str, ...] | None,
        Option(
            "Measure these threshold sets of early exit; `none` disables them.",
            GRID,
            default="all of the bundle",
            metavar="NAME,...",
            read=read_names,
        ),
    ] = None
    segments: Annotated[
        tuple[int, ...] | None,
        Option(
            "Measure these numbers of frames per clip.", GRID, default="the model's", metavar="N,...", read=read_numbers
        ),
    ] = None
    threads: Annotated[
        tuple[int, ...] | None,
        Option(
            "Measure these numbers of CPU threads.", GRID, default="usable cores", metavar="N,...", read=read_numbers
        ),
    ] = None
    seed: Annotated[
        int, Option("Seed the choice of clips and the order of settings within a round.", MEASURING, minimum=0)
    ] = SEED


@dataclass(frozen=True)
class BenchmarkOptions(MeasureOptions):
    """What only `benchmark` has."""

    schedules: Annotated[
        tuple[str, ...],
        Option(
            f"Measure these schedules: {', '.join(SCHEDULES)}.", GRID, metavar="NAME,...", read=reader_of(SCHEDULES)
        ),
    ] = SCHEDULES
    streams: Annotated[
        tuple[int, ...],
        Option("Step these numbers of clips together.", GRID, metavar="N,...", read=read_numbers),
    ] = (1,)
    peers: Annotated[
        tuple[str, ...] | None,
        Option(
            f"Compare with these: {', '.join(PEERS)}; `none` disables them.",
            GRID,
            default="all; none with --quick",
            metavar="NAME,...",
            read=reader_of(tuple(PEERS)),
        ),
    ] = None
    checkpoint: Annotated[
        Path | None,
        Option(
            "Load the weights of the PyTorch peers from this checkpoint.",
            GRID,
            default="random weights, timed only",
            metavar="FILE",
        ),
    ] = None
    peer_checkpoint: Annotated[
        list[Path] | None,
        Option("Compare with this checkpoint of any stage, such as stage 0, run by PyTorch.", GRID, metavar="FILE"),
    ] = None
    multi_label: MultiLabel = False
    rounds: Annotated[
        int | None, Option(ROUNDS_HELP, MEASURING, default=f"{ROUNDS}; {QUICK_ROUNDS} with --quick", minimum=1)
    ] = None
    clips: Annotated[
        int | None, Option(CLIPS_HELP, MEASURING, default=f"{CLIPS}; {QUICK_CLIPS} with --quick", minimum=1)
    ] = None
    quick: Annotated[
        bool,
        Option(
            f"Measure {QUICK_CLIPS} clips in {QUICK_ROUNDS} rounds, without peers, unless given: under a minute.",
            MEASURING,
        ),
    ] = False

    @property
    def compared_with(self) -> tuple[str, ...]:
        """The peers: those given, or all, or none of a quick benchmark."""
        if self.peers is not None:
            return self.peers
        return () if self.quick else tuple(PEERS)

    @property
    def number_of_rounds(self) -> int:
        """The rounds: those given, or fewer for a quick benchmark."""
        if self.rounds is not None:
            return self.rounds
        return QUICK_ROUNDS if self.quick else ROUNDS

    @property
    def max_clips(self) -> int:
        """The clips: those given, or fewer for a quick benchmark."""
        if self.clips is not None:
            return self.clips
        return QUICK_CLIPS if self.quick else CLIPS


@dataclass(frozen=True)
class CompareOptions:
    """An older report, and how much worse a new one may be.

    Attributes:
        compare: the older report, or None.
        max_slowdown: percent that a median may grow.
        max_accuracy_drop: points that top-1 may fall.
    """

    compare: Annotated[
        Path | None,
        Option(
            "Compare with this report; exit with 1 if accuracy or latency got worse, or a setting fails now.",
            COMPARISON,
            metavar="FILE",
        ),
    ] = None
    max_slowdown: Annotated[
        float, Option("Accept medians that grew by this much.", COMPARISON, minimum=0.0, metavar="PERCENT")
    ] = 10.0
    max_accuracy_drop: Annotated[
        float, Option("Accept a top-1 that fell by this much.", COMPARISON, minimum=0.0, metavar="POINTS")
    ] = 1.0


@dataclass(frozen=True)
class TuneOptions(MeasureOptions):
    """What only `tune` has. Checked when made; raises ``UsageError``."""

    segments: Annotated[
        tuple[int, ...] | None,
        Option(
            "Try these numbers of frames per clip.",
            GRID,
            default="the model's, half and a quarter of it",
            metavar="N,...",
            read=read_numbers,
        ),
    ] = None
    rounds: Annotated[int, Option(ROUNDS_HELP, MEASURING, minimum=1)] = 20
    clips: Annotated[int, Option(CLIPS_HELP, MEASURING, minimum=1)] = CLIPS
    max_latency_ms: Annotated[
        float | None,
        Option("Require at most this latency; the most accurate setting wins.", DEMAND, minimum=0.0, metavar="MS"),
    ] = None
    min_accuracy: Annotated[
        float | None,
        Option(
            "Require at least this top-1; the fastest setting wins.",
            DEMAND,
            minimum=0.0,
            maximum=100.0,
            metavar="PERCENT",
        ),
    ] = None
    latency: Annotated[
        Latency,
        Option(
            "Constrain this latency: model time per clip, the whole time per clip from file to result, or the time of "
            "a step (a glimpse).",
            DEMAND,
        ),
    ] = "model"
    percentile: Annotated[Percentile, Option("Constrain this percentile of the latency.", DEMAND)] = "p95"
    name: Annotated[str, Option("Store the profile under this name.", OUTPUT, metavar="NAME")] = "tuned"
    output: Annotated[
        Path | None,
        Option(
            "Copy the bundle to this folder first, and store the profile in the copy.",
            OUTPUT,
            ("--output", "-o"),
            metavar="DIR",
        ),
    ] = None
    force: Annotated[bool, Option("Replace a profile of that name.", OUTPUT)] = False

    def __post_init__(self) -> None:
        if self.data is None:
            raise UsageError(
                "--data is missing: give labelled clips, best some that neither training nor calibration has seen"
            )
        if not self.name or not self.name.isprintable() or "/" in self.name:
            raise UsageError(f"--name {self.name!r}: must be a printable word without /")

    @property
    def labelled(self) -> Path:
        """Where the labelled clips are."""
        assert self.data is not None
        return self.data

"""The options of running a bundle's model, as a command line or a program gives them; nothing here imports NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adafocus_edge.backends.base import CONV_SEARCH, ConvSearch
from adafocus_edge.backends.registry import BackendChoice, canonical_backend
from adafocus_edge.backends.triton.address import EXAMPLE, is_address, parse_address
from adafocus_edge.errors import UsageError
from adafocus_edge.media.decode_modes import DecodeMode
from adafocus_edge.system.cpu import check_threads
from adafocus_edge.system.options import EXIT, INPUT, MODEL, OUTPUT, Option

Schedule = Literal["auto", "clip", "stream"]
"""How a model sees a clip: whole clip at once, frame by frame, or whichever suits the source."""
Decoder = Literal["auto", "cpu", "gpu"]
"""What decodes: the GPU where it can, the CPU, or the GPU and nothing else."""
DEFAULT_TOP_K = 5

ScheduleOption = Annotated[Schedule, Option("Run the model on the whole clip at once, or frame by frame.", MODEL)]
DecodeOption = Annotated[
    DecodeMode,
    Option(
        "Decode video files exactly, without the codec's loop filter, or at key frames instead of the middle of each "
        "segment.",
        INPUT,
    ),
]
BackendOption = Annotated[
    str,
    Option(
        "Run the graphs with this backend; cpu and cuda are short for onnxruntime-cpu and onnxruntime-cuda.",
        MODEL,
        read=lambda _, name: canonical_backend(name),
        accepts=BackendChoice,
    ),
]


ARCHIVE_ENGINES = ("local", "ray")
"""Engines that classify an archive: processes of this machine, or of a Ray cluster."""


def read_server(option: str, text: str) -> str:
    """Return the address of a Triton server. Raises ``UsageError`` if it is none."""
    if not is_address(text):
        raise UsageError(f"{option} {text}: must be a Triton server such as {EXAMPLE}")
    parse_address(text)
    return text


def read_engine(option: str, text: str) -> str:
    """Return the value of ``--engine`` of `classify` if it is one. Raises ``UsageError``."""
    if text in ARCHIVE_ENGINES:
        return text
    if not is_address(text):
        raise UsageError(
            f"{option} {text}: must be {' or '.join(ARCHIVE_ENGINES)}, or a Triton server such as {EXAMPLE}"
        )
    return read_server(option, text)


@dataclass(frozen=True)
class GraphOptions:
    """What runs a bundle's graphs, and which of its exit thresholds. Checked when made; raises ``UsageError``."""

    backend: BackendOption = "auto"
    variant: Annotated[
        str,
        Option(
            "Run this variant of the bundle, such as fp32, fp16 or int8-cpu; auto prefers fp32.", MODEL, metavar="NAME"
        ),
    ] = "auto"
    threads: Annotated[
        int | None,
        Option("Compute on the CPU with this many threads.", MODEL, default="all usable cores", minimum=1),
    ] = None
    device: Annotated[
        str | None,
        Option("Compute on this device of OpenVINO: CPU, GPU or NPU.", MODEL, default="CPU", metavar="NAME"),
    ] = None
    exit_set: Annotated[
        str | None,
        Option(
            "Stop early by one of the bundle's threshold sets: NAME, or NAME/coarse-to-fine.",
            EXIT,
            ("--exit",),
            metavar="NAME",
        ),
    ] = None
    engine: Annotated[
        str | None,
        Option(
            f"Run the model on a Triton server that serves it: {EXAMPLE}.",
            MODEL,
            default="run it in this process",
            metavar="triton://HOST:PORT",
            read=read_server,
        ),
    ] = None

    def __post_init__(self) -> None:
        check_threads(self.threads)


@dataclass(frozen=True)
class RunOptions(GraphOptions):
    """What `classify` and `serve` share."""

    bundle: Annotated[
        Path | None,
        Option("Run the model of this bundle.", MODEL, default="the model that ships with the product", metavar="DIR"),
    ] = None
    conv_search: Annotated[
        ConvSearch,
        Option(
            "Choose the convolution algorithms of ONNX Runtime on a GPU by heuristics, or by timing all of them at "
            "start-up.",
            MODEL,
            metavar="METHOD",
        ),
    ] = CONV_SEARCH
    decoder: Annotated[
        Decoder,
        Option(
            "Decode on the CPU, or on the NVIDIA GPU that runs the model; auto prefers the GPU where it can decode.",
            INPUT,
        ),
    ] = "cpu"
    video_track: Annotated[
        int | None,
        Option(
            "Read this video track, from 0 as in FFmpeg's v:N.",
            INPUT,
            default="the one with the main picture",
            minimum=0,
        ),
    ] = None
    exit_confidence: Annotated[
        float | None,
        Option("Stop early once the best class reaches this probability.", EXIT, minimum=0.0, maximum=1.0, metavar="P"),
    ] = None
    top_k: Annotated[
        int | None,
        Option("List this many classes per result.", OUTPUT, default=f"{DEFAULT_TOP_K}", minimum=1),
    ] = None
    output: Annotated[
        Path | None,
        Option(
            "Also write the results to this file: as CSV or Parquet if its name ends so, else as JSON lines.",
            OUTPUT,
            ("--output", "-o"),
            metavar="FILE",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit_confidence is not None and self.exit_set is not None:
            raise UsageError("--exit and --exit-confidence: give one of them, not both")


@dataclass(frozen=True)
class ClassifyOptions(RunOptions):
    """What only `classify` has."""

    engine: Annotated[
        str | None,
        Option(
            "Classify an archive with processes of this machine (local) or of a Ray cluster (ray): --output names a "
            "folder of results, and a run that was interrupted goes on where it stopped. Or run the model on a Triton "
            f"server that serves it: {EXAMPLE}.",
            MODEL,
            default="classify in this process",
            metavar="local|ray|triton://HOST:PORT",
            read=read_engine,
        ),
    ] = None
    decode: DecodeOption = "exact"
    schedule: ScheduleOption = "auto"
    workers: Annotated[
        int | None,
        Option(
            "Classify this many files side by side; 1 gives each file all cores.",
            MODEL,
            default="one per usable core",
            minimum=1,
        ),
    ] = None
    profile: Annotated[
        str | None,
        Option(
            "Use a profile that `tune` stored in the bundle; it sets backend, variant, schedule, threads and exit.",
            MODEL,
            metavar="NAME",
        ),
    ] = None
    logits: Annotated[bool, Option("Add the logits of every step to the JSON.", OUTPUT)] = False
    save_video: Annotated[
        Path | None,
        Option(
            "Write the video with the patch drawn on it; with several sources, into a folder.",
            OUTPUT,
            metavar="FILE|DIR",
        ),
    ] = None
    provisional: Annotated[
        bool, Option("Also print the provisional result after every glimpse of a live source.", OUTPUT)
    ] = False
    show: Annotated[
        bool,
        Option("Show live sources in a window: q quits, space pauses, s saves a picture.", OUTPUT),
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decode != "exact" and self.decoder != "cpu":
            raise UsageError(f"--decode {self.decode}: is for the CPU's decoder: remove --decoder {self.decoder}")
        if self.workers is not None and self.threads is not None and self.workers > self.threads:
            raise UsageError(
                f"--workers {self.workers}: must be at most {self.threads}, the threads that compute (--threads, or "
                "those of --profile)"
            )

    def check_live(self) -> None:
        """Check that the options suit live sources. Raises ``UsageError``."""
        if self.profile is not None:
            raise UsageError(
                f"--profile {self.profile}: profiles are tuned for clips; give a live source --backend, --variant and "
                "--exit instead"
            )
        if self.save_video is not None:
            raise UsageError("--save-video takes files, not live sources: --record writes those")
        if self.workers is not None:
            raise UsageError("--workers is for files: live sources share one model")
        if self.decode != "exact":
            raise UsageError(f"--decode {self.decode} is for files: live sources are decoded exactly")
        if self.schedule == "clip":
            raise UsageError("--schedule clip is for files: a live source is seen frame by frame")

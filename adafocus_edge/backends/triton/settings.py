"""The options of a repository for Triton, as a command line or a program gives them; nothing here imports NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from adafocus_edge.backends.triton.address import NAME, check_name
from adafocus_edge.system.options import MODEL, OUTPUT, Option, check_limits

SERVING = "Serving"
Device = Literal["auto", "cpu", "gpu"]
"""Where instances compute: on the GPUs if the server has some, on its CPU, or on its GPUs."""


@dataclass(frozen=True)
class RepositoryOptions:
    """How a bundle is served. Checked when made; raises ``UsageError``."""

    variant: Annotated[
        str,
        Option("Serve this variant of the bundle, such as fp32 or fp16; auto prefers fp32.", MODEL, metavar="NAME"),
    ] = "auto"
    backend: Annotated[
        Literal["onnxruntime", "tensorrt"],
        Option("Run the graphs with this backend of Triton; tensorrt builds engines for this machine's GPU.", MODEL),
    ] = "onnxruntime"
    name: Annotated[
        str, Option("Begin the names of the models with this name.", SERVING, metavar="NAME", read=check_name)
    ] = NAME
    version: Annotated[
        int,
        Option("Write the models as this version; give a changed model a new one.", SERVING, minimum=1, maximum=2**31),
    ] = 1
    streams: Annotated[
        int, Option("Batch the steps of at most this many streams.", SERVING, minimum=1, maximum=1024)
    ] = 16
    clips: Annotated[
        int,
        Option("Batch at most this many whole clips; 0 serves steps only.", SERVING, minimum=0, maximum=256),
    ] = 4
    instances: Annotated[
        int, Option("Run this many instances of each model, on each GPU or on the CPU.", SERVING, minimum=1, maximum=64)
    ] = 1
    device: Annotated[
        Device, Option("Run the instances here; auto takes the server's GPUs if it has any.", SERVING)
    ] = "auto"
    delay_us: Annotated[
        int,
        Option(
            "Wait at most this long for a batch to fill, in microseconds.", SERVING, ("--delay-us",), minimum=0,
            maximum=1_000_000,
        ),
    ] = 1000  # fmt: skip
    idle_s: Annotated[
        int,
        Option(
            "Forget a stream that has sent no frame for this many seconds.", SERVING, ("--idle",), minimum=1,
            maximum=86_400, metavar="SECONDS",
        ),
    ] = 600  # fmt: skip
    force: Annotated[bool, Option("Replace an existing repository.", OUTPUT)] = False

    def __post_init__(self) -> None:
        check_limits(self)
        check_name("--name", self.name)

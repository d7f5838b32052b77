"""The options of an archive run, as a command line or a program gives them; nothing here imports NumPy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from adafocus_edge.errors import UsageError
from adafocus_edge.system.options import Option

ARCHIVE = "Archives"
AUTO = "auto"
"""The address of the cluster that this machine is part of."""
MAX_THREADS = 4
"""Threads per process: with more, they would wait for Python's lock."""


@dataclass(frozen=True)
class ArchiveOptions:
    """Where an archive run's processes are. Checked when made; raises ``UsageError``."""

    engine: Annotated[
        Literal["local", "ray"] | None,
        Option(
            "Classify an archive with processes of this machine (local) or of a Ray cluster (ray): --output names "
            "a folder of results, and a run that was interrupted goes on where it stopped.",
            ARCHIVE,
            default="classify in this process",
        ),
    ] = None
    address: Annotated[
        str | None,
        Option(
            "Connect to this Ray cluster.",
            ARCHIVE,
            default="start Ray on this machine",
            metavar="auto|HOST:PORT",
        ),
    ] = None
    actor_cores: Annotated[
        float | None,
        Option(
            "Give each process of the cluster this many cores, or a fraction of one.",
            ARCHIVE,
            default=f"those of the smallest machine, at most {MAX_THREADS}",
            minimum=0.01,
        ),
    ] = None
    actor_gpus: Annotated[
        float,
        Option("Give each process of the cluster this many GPUs, or a fraction of one.", ARCHIVE, minimum=0.0),
    ] = 0.0

    def __post_init__(self) -> None:
        if self.engine != "ray":
            for name, given in (
                ("address", self.address),
                ("actor-cores", self.actor_cores),
                ("actor-gpus", self.actor_gpus),
            ):
                if given:
                    raise UsageError(f"--{name} {given}: is for --engine ray")
        if self.address not in (None, AUTO) and not re.fullmatch(r"\S+:\d{1,5}", self.address or ""):
            raise UsageError(f"--address {self.address}: must be {AUTO} or HOST:PORT, such as 10.0.0.7:6379")

"""The options of an archive run, as a command line or a program gives them; nothing here imports NumPy."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Annotated

from adafocus_edge.errors import UsageError
from adafocus_edge.runtime.settings import ARCHIVE_ENGINES
from adafocus_edge.system.options import Option

ARCHIVE = "Archives"
AUTO = "auto"
"""The address of the cluster that this machine is part of."""
MAX_THREADS = 4
"""Threads per process: with more, they would wait for Python's lock."""


@dataclass(frozen=True)
class ClusterOptions:
    """Where the processes of an archive run on Ray are."""

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


@dataclass(frozen=True)
class ArchiveOptions(ClusterOptions):
    """What runs the processes of an archive, and where. Checked when made; raises ``UsageError``.

    Attributes:
        engine: one of :data:`ARCHIVE_ENGINES`; None if no archive is classified.
    """

    engine: str | None = None

    @classmethod
    def of(cls, engine: str | None, cluster: ClusterOptions) -> ArchiveOptions:
        """Return the options of a run with this ``--engine``."""
        return cls(**asdict(cluster), engine=engine if engine in ARCHIVE_ENGINES else None)

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

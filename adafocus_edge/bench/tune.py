"""`adafocus-edge tune`: the setting that meets a demand on this device, kept in the bundle as a named profile."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from adafocus_edge.bundle import Profile
from adafocus_edge.errors import AdaFocusError, UsageError

if TYPE_CHECKING:
    from adafocus_edge.bench.report import Report

Latency = Literal["model", "whole", "step"]
"""Of a clip in the glimpse loop; of a clip from opening the file; of one glimpse on the stream schedule."""
Percentile = Literal["median", "p95", "p99"]
NO_LIMIT = float("inf")


@dataclass(frozen=True)
class Demand:
    """What a setting must meet; at least one of the first two.

    Attributes:
        max_latency_ms: at most; None for any.
        min_accuracy: top-1 in percent, at least; None for any.
        latency: which latency.
        percentile: which of its values.
    """

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    latency: Latency = "model"
    percentile: Percentile = "p95"

    def __post_init__(self) -> None:
        if self.max_latency_ms is None and self.min_accuracy is None:
            raise UsageError("say what is wanted: --max-latency-ms, --min-accuracy, or both")

    def __str__(self) -> str:
        words = []
        if self.max_latency_ms is not None:
            words.append(f"{self.percentile} of a {_OF[self.latency]} at most {self.max_latency_ms:g} ms")
        if self.min_accuracy is not None:
            words.append(f"top-1 at least {self.min_accuracy:g} %")
        return ", ".join(words)

    def latency_of(self, row: Report) -> float:
        """Return what a row takes, or infinity where it has no such latency."""
        times = row[f"{self.latency}_ms"]
        return NO_LIMIT if times is None else float(times[self.percentile])

    def met_by(self, row: Report) -> bool:
        """Whether a row meets it."""
        fast = self.max_latency_ms is None or self.latency_of(row) <= self.max_latency_ms
        return fast and (self.min_accuracy is None or row["top1"] >= self.min_accuracy)


_OF = {"model": "clip in the model", "whole": "clip from file to result", "step": "glimpse"}


def choose(report: Report, demand: Demand) -> Report:
    """Return the row to use: with an accuracy demanded the fastest that meets it all, else the most accurate.

    Raises ``AdaFocusError`` that says what came nearest if none meets it.
    """
    rows = [row for row in report["rows"] if not row["peer"] and row["streams"] == 1 and "top1" in row]
    rows = [row for row in rows if demand.latency_of(row) < NO_LIMIT]
    if not rows:
        raise AdaFocusError("no setting was measured: " + "; ".join(one["why"] for one in report["skipped"][:2]))
    meeting = [row for row in rows if demand.met_by(row)]
    if meeting and demand.min_accuracy is not None:
        return min(meeting, key=lambda row: (demand.latency_of(row), -row["top1"]))
    if meeting:
        return max(meeting, key=lambda row: (row["top1"], -demand.latency_of(row)))
    fastest = min(rows, key=demand.latency_of)
    best = max(rows, key=lambda row: (row["top1"], -demand.latency_of(row)))
    raise AdaFocusError(
        f"no setting meets it ({demand}); the fastest: {demand.latency_of(fastest):.1f} ms, {fastest['top1']:.1f} % "
        f"({fastest['key']}); the most accurate: {demand.latency_of(best):.1f} ms, {best['top1']:.1f} % ({best['key']})"
    )


def profile_of(report: Report, row: Report, demand: Demand) -> Profile:
    """Make a profile of a row."""
    machine = report["machine"]
    gpu = machine["gpu"] if row["backend"] != "onnxruntime-cpu" else ""
    return Profile(
        backend=row["backend"],
        variant=row["variant"],
        schedule=row["schedule"],
        segments=row["segments"],
        threads=row["threads"],
        exit=row["exit"] or "",
        device=gpu or machine["processor"],
        demand=str(demand),
        latency_ms=round(demand.latency_of(row), 3),
        top1=row["top1"],
        clips=report["data"]["clips"],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )

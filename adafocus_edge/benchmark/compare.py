"""Compare a report with an older one, for users' own CI: which rows got worse, in what, and by how much."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from adafocus_edge.benchmark.machine import same_machine
from adafocus_edge.errors import UsageError
from adafocus_edge.system.files import read_whole

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from adafocus_edge.benchmark.report import Report

SCHEMA = 1
SMALLEST_SHARE = 0.01
"""Parts with less than this share of the whole time are not compared."""
TIMES = {"model_ms": "the model", "whole_ms": "the whole", "step_ms": "a step"}


@dataclass(frozen=True)
class Limits:
    """The tolerances of a comparison.

    Attributes:
        slowdown: share by which a median may grow.
        accuracy_drop: points of top-1 that may be lost.
    """

    slowdown: float = 0.1
    accuracy_drop: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        worse: what got worse, in words.
        notes: notes for the reader.
        rows: number of rows in both reports.
    """

    worse: tuple[str, ...]
    notes: tuple[str, ...]
    rows: int


class _Times(TypedDict):
    median: float
    p95: float
    p99: float
    min: float
    spread: float
    low: float
    high: float
    rounds: int


class _Judged(TypedDict, total=False):
    top1: float
    top1_interval_95: tuple[float, float]
    per_step_top1: list[float]


class _Row(_Judged):
    id: int
    key: str
    bundle: str
    patch_size: int
    backend: str
    variant: str
    schedule: str
    exit: str | None
    segments: int
    streams: int
    threads: int
    peer: bool
    model_ms: _Times
    whole_ms: _Times | None
    step_ms: _Times | None
    clips_per_s: float
    size_mb: float | None
    cold_start_ms: float
    host_mb: float
    device_mb: float | None
    joules_per_clip: float | None
    mean_steps: float
    gflops_per_clip: float
    parts_ms: dict[str, _Times] | None
    parts_over_whole: float | None
    on_front: bool
    on_whole_front: bool
    on_gflops_front: bool
    same_time_as: list[int]


class _Machine(TypedDict):
    processor: str
    memory: str
    gpu: str
    virtual: bool


class _Skipped(TypedDict):
    what: str
    why: str


class _Data(TypedDict):
    origin: str
    clips: int
    chosen: str


class _Shape(TypedDict):
    schema: int
    rounds: int
    machine: _Machine
    data: _Data | None
    yardstick_ms: _Times | None
    energy_of: str | None
    rows: list[_Row]
    skipped: list[_Skipped]
    findings: list[str]


def read_report(path: Path) -> Report:
    """Read a report. Raises ``UsageError`` if it cannot be read, is not a report, or has another schema."""
    try:
        report: Report = json.loads(read_whole(path))
        if report["schema"] != SCHEMA:
            raise UsageError(f"{path}: is a report of schema {report['schema']}, but this version reads {SCHEMA}")
        msgspec.convert(report, _Shape)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, RecursionError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: is not a report of `adafocus-edge benchmark` ({error})") from None
    return report


def compare(new: Report, old: Report, limits: Limits) -> Comparison:
    """Compare the rows that two reports share.

    A time is worse if its median grew by more than the limit and the 95 % intervals of both medians do not overlap. If
    the yardstick of the rounds slowed down as well, the growth relative to it must exceed the limit, too.

    Raises ``UsageError`` if they share no row.
    """
    before = {row["key"]: row for row in old["rows"]}
    pairs = [(row, before[row["key"]]) for row in new["rows"] if row["key"] in before]
    if not pairs:
        raise UsageError("the two reports share no row: they have different bundles or settings")
    notes = []
    if not same_machine(new["machine"], old["machine"]):
        notes.append(
            f"the old report is from another machine ({old['machine']['processor']}): times are hardly comparable"
        )
    same_clips = (new["data"] or {}).get("chosen") == (old["data"] or {}).get("chosen")
    if not same_clips:
        notes.append("the reports are on different clips: accuracy is not compared")
    missing = len(before) - len(pairs)
    if missing:
        notes.append(f"{missing} rows of the old report were not measured again")
    drift = _drift(new, old)
    if abs(drift - 1) > limits.slowdown / 2:
        notes.append(f"the machine itself now takes {drift:.2f} times as long for the same work")
    worse: list[str] = []
    for ours, theirs in pairs:
        worse += _slower(ours, theirs, limits, max(1.0, drift))
        if same_clips and "top1" in ours and "top1" in theirs:
            lost = theirs["top1"] - ours["top1"]
            if lost > limits.accuracy_drop + 1e-9:
                worse.append(f"{ours['key']}: top-1 fell from {theirs['top1']:.2f} % to {ours['top1']:.2f} %")
    return Comparison(tuple(worse), tuple(notes), len(pairs))


def _drift(new: Report, old: Report) -> float:
    ours, theirs = new["yardstick_ms"], old["yardstick_ms"]
    return float(ours["median"] / theirs["median"]) if ours and theirs and theirs["median"] else 1.0


def _slower(ours: Report, theirs: Report, limits: Limits, drift: float) -> Iterable[str]:
    times = {name: (ours.get(key), theirs.get(key)) for key, name in TIMES.items()}
    parts, before = ours["parts_ms"] or {}, theirs["parts_ms"] or {}
    least = SMALLEST_SHARE * theirs["whole_ms"]["median"] if theirs["whole_ms"] else 0.0
    times |= {part: (parts[part], before[part]) for part in parts if part in before and before[part]["median"] >= least}
    for name, (new, old) in times.items():
        if new is None or old is None or not old["median"]:
            continue
        grown = new["median"] / old["median"]
        if grown > 1 + limits.slowdown and grown / drift > 1 + limits.slowdown and new["low"] > old["high"]:
            yield (
                f"{ours['key']}: {name} takes {new['median']:.2f} ms instead of {old['median']:.2f} ms "
                f"({grown:.2f} times)"
            )


def to_json(found: Comparison, against: Path) -> dict[str, Any]:
    """Return a comparison as the report's ``compared`` entry."""
    return {"with": str(against), "rows": found.rows, "worse": list(found.worse), "notes": list(found.notes)}

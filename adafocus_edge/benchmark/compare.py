"""Compare a report with an older one, for users' own CI: which rows got worse, in what, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adafocus_edge.benchmark.machine import same_machine
from adafocus_edge.benchmark.schema import read_report
from adafocus_edge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from adafocus_edge.benchmark.grid import Skipped
    from adafocus_edge.benchmark.schema import Report, RowReport

__all__ = ["Comparison", "Limits", "compare", "read_report", "to_json"]
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


def compare(new: Report, old: Report, limits: Limits) -> Comparison:
    """Compare the rows that two reports share.

    A time is worse if its median grew by more than the limit and the 95 % intervals of both medians do not overlap. If
    the yardstick of the rounds slowed down as well, the growth relative to it must exceed the limit, too. A row of the
    old report is worse if the new one says that it failed or cannot run; any other missing row was not requested.

    Raises ``UsageError`` if they share no row, and none failed or cannot run.
    """
    before = {row.key: row for row in old.rows}
    pairs = [(row, before[row.key]) for row in new.rows if row.key in before]
    measured = {row.key for row in new.rows}
    missing = [row for row in old.rows if row.key not in measured]
    failed = {row.key: why for row in missing if (why := _obstacle(row, new.skipped)) is not None}
    if not pairs and not failed:
        raise UsageError("the two reports share no row: they have different bundles or settings")
    notes = []
    if not same_machine(new.machine, old.machine):
        notes.append(
            f"the old report is from another machine ({old.machine.processor}): times are not directly comparable"
        )
    same_clips = (new.data and new.data.chosen) == (old.data and old.data.chosen)
    if not same_clips:
        notes.append("the reports are on different clips: accuracy is not compared")
    if len(missing) > len(failed):
        notes.append(f"{len(missing) - len(failed)} rows of the old report were not measured again")
    drift = _drift(new, old)
    if abs(drift - 1) > limits.slowdown / 2:
        notes.append(f"the machine itself now takes {drift:.2f} times as long for the same work")
    worse = [f"{key}: cannot be measured any more ({why})" for key, why in failed.items()]
    for ours, theirs in pairs:
        worse += _slower(ours, theirs, limits, max(1.0, drift))
        if same_clips and ours.top1 is not None and theirs.top1 is not None:
            lost = theirs.top1 - ours.top1
            if lost > limits.accuracy_drop + 1e-9:
                worse.append(f"{ours.key}: top-1 fell from {theirs.top1:.2f} % to {ours.top1:.2f} %")
    return Comparison(tuple(worse), tuple(notes), len(pairs))


def _obstacle(row: RowReport, skipped: Iterable[Skipped]) -> str | None:
    """Return why a row failed, or its backend or peer cannot run; None if nothing is known of it."""
    names = (row.key, row.backend, f"{row.bundle} {row.backend}")
    return next((one.why for one in skipped if one.what in names), None)


def _drift(new: Report, old: Report) -> float:
    ours, theirs = new.yardstick_ms, old.yardstick_ms
    return ours.median / theirs.median if ours and theirs and theirs.median else 1.0


def _slower(ours: RowReport, theirs: RowReport, limits: Limits, drift: float) -> Iterable[str]:
    times = {name: (getattr(ours, key), getattr(theirs, key)) for key, name in TIMES.items()}
    parts, before = ours.parts_ms or {}, theirs.parts_ms or {}
    least = SMALLEST_SHARE * theirs.whole_ms.median if theirs.whole_ms else 0.0
    times |= {part: (parts[part], before[part]) for part in parts if part in before and before[part].median >= least}
    for name, (new, old) in times.items():
        if new is None or old is None or not old.median:
            continue
        grown = new.median / old.median
        if grown > 1 + limits.slowdown and grown / drift > 1 + limits.slowdown and new.low > old.high:
            yield (f"{ours.key}: {name} takes {new.median:.2f} ms instead of {old.median:.2f} ms ({grown:.2f} times)")


def to_json(found: Comparison, against: Path) -> dict[str, Any]:
    """Return a comparison as the report's ``compared`` entry."""
    return {"with": str(against), "rows": found.rows, "worse": list(found.worse), "notes": list(found.notes)}

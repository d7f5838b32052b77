"""How reliable figures on a set of clips are: intervals, inconclusive requirements, clips used before."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from adafocus_edge.evaluation.metrics import wilson_interval
from adafocus_edge.evaluation.reports import VerdictReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from adafocus_edge.evaluation.dataset import Example

CALIBRATION = "calibration"
"""Key of the calibration's report in a manifest."""
CONVERTED = "fp16"
"""Key of the report on conversion to half precision without data; also the name of that variant."""
WIDE_POINTS = 10.0
"""A 95 % interval of an accuracy that is wider than this gets a note even without a requirement."""
Z = 1.959964
"""Standard deviations on either side of the mean that hold 95 %."""
SAMPLED_BYTES = 1 << 20
"""Bytes read at a large file's beginning, middle and end, to recognise its content."""
Interval = tuple[float, float]
Part = Literal["calibrate", "report"]
"""The clips for ranges and thresholds, and the clips of the report."""


# -- intervals and demands ---------------------------------------------------------------------------------------------


def share_interval(hits: int, count: int) -> Interval:
    """Return the 95 % interval of a share, in percent; it may include 0 and 100."""
    low, high = wilson_interval(hits, count)
    return round(low * 100, 2) + 0.0, round(high * 100, 2)


def drop_interval(before: Sequence[bool], after: Sequence[bool]) -> Interval:
    """Return the 95 % interval of the points lost from one set of predictions to another on the same clips.

    The shares of clips lost and won each have a Wilson interval; MOVER (Zou and Donner 2008) combines them as if they
    were independent. The interval stays wide if no clip changed, which proves little for few clips.

    Args:
        before: whether each clip was right.
        after: whether the same clip is right now.
    """
    count = len(before)
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    (lost_low, lost_high), (won_low, won_high) = share_interval(lost, count), share_interval(won, count)
    lost_share, won_share = lost / count * 100, won / count * 100
    drop = lost_share - won_share
    low = drop - math.hypot(lost_share - lost_low, won_high - won_share)
    high = drop + math.hypot(lost_high - lost_share, won_share - won_low)
    return round(max(low, -100.0), 2), round(min(high, 100.0), 2)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of a mean, by its standard error."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    spread = Z * math.sqrt(variance / len(values))
    return round(mean - spread, 4), round(mean + spread, 4)


@dataclass(frozen=True)
class Verdict:
    """Whether clips meet a requirement, and whether they are enough to decide that.

    Attributes:
        demand: in words, such as ``at most 0.5 points lost``.
        limit: its number.
        found: the same quantity on these clips.
        interval: its 95 % interval.
        clips: number of clips.
        at_most: whether ``limit`` is a maximum, else a minimum.
    """

    demand: str
    limit: float
    found: float
    interval: Interval
    clips: int
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Return whether these clips meet the requirement."""
        return self.found <= self.limit + 1e-9 if self.at_most else self.found >= self.limit - 1e-9

    @property
    def conclusive(self) -> bool:
        """Return whether the whole interval is on one side of the limit."""
        low, high = self.interval
        return (high <= self.limit or low > self.limit) if self.at_most else (low >= self.limit or high < self.limit)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that a report holds."""
        report = VerdictReport(
            demand=self.demand,
            limit=self.limit,
            found=round(self.found, 4),
            interval_95=list(self.interval),
            clips=self.clips,
            met=self.met,
            conclusive=self.conclusive,
        )
        made: dict[str, Any] = msgspec.to_builtins(report)
        return made


def warning_of(what: str, verdict: Mapping[str, Any]) -> str | None:
    """Return a warning about a verdict's JSON object, or None if the requirement is met conclusively.

    Args:
        what: the thing that had to meet it, with which the warning begins.
        verdict: see :meth:`Verdict.to_json`.
    """
    low, high = verdict["interval_95"]
    known = f"{verdict['found']:.4g} ({low:.3g} to {high:.3g}, 95 %) on {verdict['clips']} held-out clips"
    if not verdict["met"]:
        chance = "" if verdict["conclusive"] else "; with so few clips this may be due to chance"
        return f"{what}: requirement not met ({verdict['demand']}): {known}{chance}"
    if not verdict["conclusive"]:
        return f"{what}: too few clips to decide whether {verdict['demand']} holds: {known}"
    return None


def few_clips_note(interval: Sequence[float], clips: int) -> str | None:
    """Return a note if there are too few clips for a precise top-1 accuracy."""
    low, high = interval
    if high - low <= WIDE_POINTS:
        return None
    return f"few clips: on {clips}, top-1 is known to lie between {low:.0f} and {high:.0f} % only (95 %)"


# -- clips that were used before ---------------------------------------------------------------------------------------


def marks_of(example: Example) -> frozenset[str]:
    """Return hashes of a clip's path, content and source, which identify it without revealing names."""
    facts = {f"path {example.path.resolve()}"}
    if example.source:
        facts.add(f"source {example.source}")
    content = content_of(example.path)
    if content is not None:
        facts.add(f"content {content}")
    return frozenset(hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16] for text in facts)


def content_of(path: Path) -> str | None:
    """Return a hash of a file's content, or of a folder of frames: names, sizes and some content; None if unreadable.

    For a large file, the size, beginning, middle and end are hashed.
    """
    try:
        if not path.is_dir():
            return _file_hash(path)
        files = sorted((entry for entry in os.scandir(path) if entry.is_file()), key=lambda entry: entry.name)
        digest = hashlib.sha256(repr([(entry.name, entry.stat().st_size) for entry in files]).encode())
        for place in sorted({0, len(files) // 2, len(files) - 1} if files else ()):
            digest.update(_file_hash(path / files[place].name).encode())
        return digest.hexdigest() if files else None
    except OSError:
        return None


def _file_hash(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= 3 * SAMPLED_BYTES:
            digest.update(file.read())
        else:
            for start in (0, (size - SAMPLED_BYTES) // 2, size - SAMPLED_BYTES):
                file.seek(start)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def reused_clips(reports: Mapping[str, Any], examples: Iterable[Example]) -> dict[str, int]:
    """Return how many clips a bundle's calibration has used, by :data:`Part`; empty if none.

    Args:
        reports: of the bundle's manifest.
        examples: the clips.
    """
    seen = reports.get(CALIBRATION, {}).get("clips_seen", {})
    if not seen:
        return {}
    marks = [marks_of(example) for example in examples]
    counts = {part: sum(not own.isdisjoint(known) for own in marks) for part, known in seen.items()}
    return {part: count for part, count in counts.items() if count}


def reuse_note(reused: Mapping[str, int], clips: int) -> str | None:
    """Return a note on clips that a calibration has used, or None."""
    uses = {"calibrate": "ranges and exit thresholds were made on", "report": "the calibration's report is about"}
    parts = [f"{count} of the {clips} clips are among those that {uses[part]}" for part, count in reused.items()]
    if not parts:
        return None
    return f"{' and '.join(parts)} (same path, content or source): figures may look better than on new clips"

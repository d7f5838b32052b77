"""Choose the clips to calibrate on and those to report on: drawn at random, with no scene in both parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.errors import DataError, UsageError
from adafocus_edge.evaluation.dataset import Example, Split, read_data
from adafocus_edge.evaluation.evidence import content_of, marks_of
from adafocus_edge.media.frame_folder import unknown_rate_notes
from adafocus_edge.media.sources import VIDEO_SUFFIXES, entries_in, find_sources, skipped_note
from calibration.samples import choose_clips, halve

MIN_CLIPS = 4
"""Min clips in each of the two parts."""


@dataclass(frozen=True)
class Inputs:
    """The clips of a calibration, not opened yet.

    Attributes:
        origin: where the clips to calibrate on were listed.
        labelled: whether the clips have labels.
        calibrate_on: clips for ranges, choices and thresholds.
        report_on: held-out clips for the report's figures.
        notes: notes for the user, a line each.
    """

    origin: str
    labelled: bool
    calibrate_on: tuple[Example, ...]
    report_on: tuple[Example, ...]
    notes: tuple[str, ...]

    def marks(self) -> dict[str, list[str]]:
        """Return the fingerprints of the clips of each part; see :func:`marks_of`."""
        parts = {"calibrate": self.calibrate_on, "report": self.report_on}
        return {name: sorted({mark for example in part for mark in marks_of(example)}) for name, part in parts.items()}

    def identity(self) -> dict[str, Any]:
        """Return what identifies these clips in any folder: their numbers, and a hash of names, sizes and labels."""
        clips = [
            [[e.name, e.path.stat().st_size if e.path.is_file() else None, list(e.labels)] for e in part]
            for part in (self.calibrate_on, self.report_on)
        ]
        return {
            "labelled": self.labelled,
            "clips_to_calibrate": len(self.calibrate_on),
            "clips_to_report": len(self.report_on),
            "clips_sha256": hashlib.sha256(json.dumps(clips).encode()).hexdigest(),
        }


def read_inputs(
    bundle: Bundle, data: Path, frames: Path | None, report_on: Path | None, most: int, share: float, seed: int
) -> Inputs:
    """List the clips and divide them into the two parts.

    Args:
        bundle: the bundle whose classes the labels must name.
        data: labelled clips, or videos without labels.
        frames: for a split list, the folder that its paths are relative to.
        report_on: other clips to report on, or None to hold back a share of ``data``.
        most: max clips in each part.
        share: share of ``data`` to calibrate on, 0..1, if ``report_on`` is None.
        seed: random seed.

    Raises ``DataError`` for too few clips, unknown classes or bad files, ``UsageError`` if a clip or scene is in both.
    """
    split, labelled = _read_split(data, bundle, frames)
    notes = list(split.notes)
    if not labelled:
        notes.append(f"{data}: no labels, so accuracy is measured as agreement with the float model")
    if report_on is None:
        chosen = choose_clips(split, int(most / max(share, 1 - share)), seed)
        parts = halve(chosen, share, seed)
    else:
        other, other_labelled = _read_split(report_on, bundle, frames)
        if other_labelled != labelled:
            raise UsageError("--report-on: must have labels if and only if --data has labels")
        _check_apart(split.examples, other.examples)
        notes += other.notes
        parts = choose_clips(split, most, seed), choose_clips(other, most, seed)
        _check_contents(*parts)
    for part, what in zip(parts, ("calibrate on", "report on"), strict=True):
        if len(part) < MIN_CLIPS:
            raise DataError(
                f"{data}: only {len(part)} clips to {what}, at least {MIN_CLIPS} are needed: give more clips"
                + ("" if report_on else ", or another --share")
            )
        present = {example.labels[0] for example in part}
        missing = [name for number, name in enumerate(bundle.classes) if number not in present]
        if labelled and missing:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes.append(f"no clips to {what} for {len(missing)} of the {len(bundle.classes)} classes: {named}")
    notes += unknown_rate_notes([example.path for part in parts for example in part], bundle.spec.motion_gap_s)
    return Inputs(split.origin, labelled, tuple(parts[0]), tuple(parts[1]), tuple(notes))


def _check_apart(examples: Sequence[Example], others: Sequence[Example]) -> None:
    shared = {str(e.path.resolve()) for e in examples} & {str(e.path.resolve()) for e in others}
    if shared:
        raise UsageError(f"--report-on: {len(shared)} of its clips are also in --data, such as {sorted(shared)[0]}")
    scenes = ({e.source for e in examples} & {e.source for e in others}) - {""}
    if scenes:
        raise UsageError(f"--report-on: {len(scenes)} of its sources are also in --data, such as {sorted(scenes)[0]}")


def _check_contents(examples: Sequence[Example], others: Sequence[Example]) -> None:
    """Raise ``UsageError`` if both parts hold copies of one clip, under any names."""
    names = {content: example.name for example in examples if (content := content_of(example.path)) is not None}
    for example in others:
        if (content := content_of(example.path)) in names:
            raise UsageError(f"--report-on: {example.name} is a copy of {names[content]} in --data")


def _read_split(path: Path, bundle: Bundle, frames: Path | None) -> tuple[Split, bool]:
    """List labelled clips, or videos without labels: one video, or a folder without sub-folders.

    Returns the clips, and whether they have labels.
    """
    plain = frames is None and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
    left_out: list[str] = []
    if path.is_dir():
        plain = not any(entry.is_dir() for entry in entries_in(path, []))
    if not plain:
        return read_data(path, bundle.classes, frames), True
    sources = find_sources([str(path)], left_out)
    examples = tuple(Example(source.name, Path(source.address), (0,)) for source in sources)
    notes = (skipped_note(left_out),) if left_out else ()
    return Split(examples, bundle.classes, str(path), notes=notes), False

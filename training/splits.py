"""The training and the validation split that options name."""

from __future__ import annotations

import os
from pathlib import Path

from adafocus_edge.bundle.classes import read_classes
from adafocus_edge.errors import DataError
from adafocus_edge.evaluation.dataset import Split, read_data, read_list
from adafocus_edge.media.frame_folder import unknown_rate_notes
from training.options import TrainOptions


def read_splits(options: TrainOptions) -> tuple[Split, Split]:
    """Read the training and the validation split. Raises ``DataError`` that names file, line and what is wrong."""
    classes: tuple[str, ...] | None = None
    if options.path("classes").exists() or options.dataset != "custom":
        classes = read_classes(options.path("classes"))
    if options.evaluate and classes is not None:
        # An evaluation needs no training list.
        val = _read_split(options, "val_list", classes)
        return val, val
    train = _read_split(options, "train_list", classes)
    return train, _read_split(options, "val_list", train.classes)


def split_notes(train: Split, val: Split, motion_gap_s: float) -> list[str]:
    """Return notes on the two splits, such as clips that are in both; an evaluation reads one split only."""
    paths = [example.path for example in (val.examples if train is val else (*train.examples, *val.examples))]
    rate_notes = unknown_rate_notes(paths, motion_gap_s)
    if train is val:
        return [*val.notes, *rate_notes]
    notes = list(dict.fromkeys((*train.notes, *val.notes, *rate_notes)))
    shared = {os.path.normpath(e.path) for e in train.examples} & {os.path.normpath(e.path) for e in val.examples}
    if shared:
        notes.append(
            f"{len(shared)} clips to validate are in {train.origin}, too, so they prove nothing: {min(shared)}"
        )
    return notes


def _read_split(options: TrainOptions, name: str, classes: tuple[str, ...] | None) -> Split:
    path = options.path(name)
    if path.is_dir() or path.suffix.lower() == ".csv":
        return read_data(path, classes)
    if classes is None:
        raise DataError(
            f"{options.path('classes')}: no such class file; the ids in {path} are its line numbers, from 0"
        )
    # Extracted frames if they exist; else, unless another folder was named, the videos themselves.
    places: list[Path] = [options.path("root_path")]
    if options.root_path == TrainOptions.root_path:
        places += [options.root / "videos", options.root]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        raise DataError(f"{places[0]}: no such folder of frames or videos (root_path)")
    return read_list(path, root, classes, options.separator)

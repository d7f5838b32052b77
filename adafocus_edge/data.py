"""Labelled clips: a folder per class, a CSV, or an official split list; read once, checked line by line."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.errors import DataError
from adafocus_edge.files import read_whole
from adafocus_edge.sources import VIDEO_SUFFIXES, FrameFolder, Source, find_sources, natural_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adafocus_edge.sources import Clip

FEWEST_FRAMES = 3
"""Clips that a list says are shorter are left out, as in the official code."""
MOST_DIGITS = 9
"""Of a number in a list."""
MOST_LABELS = 3
"""Class ids that one line of an official list may hold."""


@dataclass(frozen=True)
class Example:
    """One labelled clip, not opened yet.

    Attributes:
        name: how it is shown.
        path: a video file, or a folder of frames.
        labels: its class ids, distinct and rising, at least one; the first is the one that counts where one is wanted.
        frames: how many frames its list promises (``image_00001.jpg`` ...), or None to take what is there.
        source: what a CSV's column ``source`` says: clips of one source show the same scene; empty if it does not.
    """

    name: str
    path: Path
    labels: tuple[int, ...]
    frames: int | None = None
    source: str = ""

    def open_clip(self) -> Clip:
        """Open it. Raises ``SourceError``."""
        if self.frames is not None and os.path.isdir(self.path):
            return FrameFolder(str(self.path), self.frames)
        return Source(self.name, str(self.path)).open_clip()


@dataclass(frozen=True)
class Split:
    """Labelled clips and their classes.

    Attributes:
        examples: the clips.
        classes: class names, in the order of the class ids.
        origin: where they were read from.
        left_out: clips of the list that are too short to be used.
    """

    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    origin: str
    left_out: int = 0


def read_data(path: Path, classes: Sequence[str] | None = None, frames: Path | None = None) -> Split:
    """Read labelled clips in any of the forms that ``--data`` takes.

    Args:
        path: a folder with a sub-folder per class, a CSV with the columns ``video,class``, or an official split list.
        classes: names that the classes must be among; None to take them from the data.
        frames: for a split list: the folder in which its paths lie.

    Raises ``DataError`` that names the file, the line and what is wrong with it.
    """
    check_data(path, frames)
    if os.path.isdir(path):
        return _read_folders(path, classes)
    if path.suffix.lower() == ".csv":
        return _read_csv(path, classes)
    assert frames is not None
    if classes is None:
        raise DataError(f"{path}: a split list names no classes")
    return read_list(path, frames, classes)


def check_data(path: Path, frames: Path | None = None) -> None:
    """Check that there is something that :func:`read_data` can read, without reading it. Raises ``DataError``."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such folder, CSV or split list")
    if os.path.isdir(path) or path.suffix.lower() == ".csv":
        return
    if frames is None:
        raise DataError(f"{path}: a split list needs the folder that its paths lie in: give --frames DIR")


def read_list(path: Path, root: Path, classes: Sequence[str], separator: str | None = None) -> Split:
    """Read an official split list: path, frame count, one to three class ids per line.

    Args:
        path: of the list.
        root: the folder in which its paths lie.
        classes: class names; an id must be below their number. A single class may also stand by its name.
        separator: ``,`` or a space; None to tell from the first line.

    A path is a folder of frames, or a video, with or without its suffix. Raises ``DataError``.
    """
    examples: list[Example] = []
    left_out = 0
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        separator = separator or ("," if "," in line else " ")
        # A path may hold spaces: with a space as the separator, the last two fields count.
        parts = [part.strip() for part in (line.split(",") if separator == "," else line.rsplit(maxsplit=2))]
        if len(parts) < 3 or not parts[0]:
            raise DataError(f"{where}: {line!r} is not `path{separator}frames{separator}class`")
        if not is_number(parts[1]):
            raise DataError(f"{where}: {parts[1]!r} is no number of frames")
        if len(parts) > 2 + MOST_LABELS:
            raise DataError(f"{where}: more than {MOST_LABELS} classes")
        labels = tuple(sorted({_label(part, classes, where) for part in parts[2:]}))
        count = int(parts[1])
        if count < FEWEST_FRAMES:
            left_out += 1
            continue
        examples.append(Example(parts[0], _find_clip(root, parts[0]), labels, count))
    return _split(examples, classes, str(path), left_out)


def is_number(text: str) -> bool:
    """Whether a list's text is a whole number: Python takes ever longer for those of thousands of digits."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def _label(text: str, classes: Sequence[str], where: str) -> int:
    if text.isdecimal():
        if not is_number(text) or int(text) >= len(classes):
            raise DataError(f"{where}: class id {text} is out of range: there are {len(classes)} classes, from 0")
        return int(text)
    if text in classes:
        return list(classes).index(text)
    raise DataError(f"{where}: {text!r} is neither a class id nor one of the {len(classes)} class names")


def _find_clip(root: Path, name: str) -> Path:
    """Return a folder of frames, or a video of that name with any suffix; what is not there is told when opened."""
    path = root / name
    if os.path.isdir(path) or (path.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path)):
        return path
    for suffix in sorted(VIDEO_SUFFIXES):
        if os.path.isfile(video := path.with_name(path.name + suffix)):
            return video
    return path


def _read_folders(folder: Path, classes: Sequence[str] | None) -> Split:
    groups = sorted((p for p in folder.iterdir() if os.path.isdir(p) and not p.name.startswith(".")), key=natural_order)
    if not groups:
        raise DataError(f"{folder}: no sub-folders in it; there must be one for each class")
    names = tuple(classes) if classes is not None else tuple(group.name for group in groups)
    examples = []
    for group in groups:
        if group.name not in names:
            raise DataError(f"{group}: {group.name!r} is none of the classes ({_some(names)})")
        # An empty folder stays as a source that cannot be opened; here it is a class without clips.
        for source in find_sources([str(group)]):
            if source.address != str(group):
                label = (names.index(group.name),)
                examples.append(Example(str(Path(source.address).relative_to(folder)), Path(source.address), label))
    return _split(examples, names, str(folder))


def csv_rows(path: Path, *columns: str, also: str = "") -> Iterator[tuple[int, list[str]]]:
    """Yield line number and the stripped values of some columns of each row. Raises ``DataError`` if one is missing.

    The values of column ``also`` come last, empty where there is no such column.
    """
    try:
        with io.StringIO(read_whole(path).decode("utf-8-sig"), newline="") as file:
            rows = csv.DictReader(file)
            if not set(columns) <= set(rows.fieldnames or ()):
                wanted = " and ".join(f"`{column}`" for column in columns)
                raise DataError(f"{path}: needs the columns {wanted}, and has {_some(rows.fieldnames or ())}")
            for row in rows:
                wanted_of = (*columns, also) if also else columns
                yield rows.line_num, [(row.get(column) or "").strip() for column in wanted_of]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None


def _read_csv(path: Path, classes: Sequence[str] | None) -> Split:
    found: list[tuple[str, Path, str, int, str]] = []
    for number, (video, label, source) in csv_rows(path, "video", "class", also="source"):
        if not video or not label:
            raise DataError(f"{path}, line {number}: a video and its class must be given")
        near = path.parent / video
        inside = path.parent / "videos" / video
        found.append(
            (video, near if os.path.exists(near) or not os.path.exists(inside) else inside, label, number, source)
        )
    names = tuple(classes) if classes is not None else tuple(sorted({label for _, _, label, _, _ in found}))
    examples = []
    for video, clip, label, number, source in found:
        if label not in names:
            raise DataError(f"{path}, line {number}: {label!r} is none of the classes ({_some(names)})")
        examples.append(Example(video, clip, (names.index(label),), source=source))
    return _split(examples, names, str(path))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty."""
    try:
        text = read_whole(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such split list") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a split list in UTF-8 ({error})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _split(examples: list[Example], classes: Sequence[str], origin: str, left_out: int = 0) -> Split:
    if not examples:
        short = f" ({left_out} have fewer than {FEWEST_FRAMES} frames)" if left_out else ""
        raise DataError(f"{origin}: no clips in it{short}")
    return Split(tuple(examples), tuple(classes), origin, left_out)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") or "none"

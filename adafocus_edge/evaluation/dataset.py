"""Labelled clips from a folder per class, a CSV, or an official split list, checked line by line."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.bundle.classes import check_distinct, read_lines
from adafocus_edge.errors import DataError
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.media.sources import VIDEO_SUFFIXES, Source, clips_in, entries_in, skipped_note, videos_in
from adafocus_edge.model.spec import class_name
from adafocus_edge.system.files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adafocus_edge.media.clip import Clip
    from adafocus_edge.media.decode_modes import DecodeMode

MIN_FRAMES = 3
"""Clips that are shorter by their list are skipped, as in the official code."""
MAX_DIGITS = 9
"""Maximum digits of a number in a list."""
MAX_LABELS = 3
"""Maximum class ids on one line of an official list."""


@dataclass(frozen=True)
class Example:
    """One labelled clip, not opened yet.

    Attributes:
        name: its name in reports.
        path: a video file, or a folder of frames.
        labels: its class ids, distinct and ascending, at least one; metrics with one label per clip use the first.
        frames: number of frames by its list (``image_00001.jpg`` ...), or None for all frames in the folder.
        source: column ``source`` of a CSV: clips of one source show the same scene; empty if unknown.
        decode: how a video file is decoded.
    """

    name: str
    path: Path
    labels: tuple[int, ...]
    frames: int | None = None
    source: str = ""
    decode: DecodeMode = "exact"

    def open_clip(self) -> Clip:
        """Open it. Raises ``SourceError``."""
        if self.frames is not None and os.path.isdir(self.path):
            return FrameFolder(str(self.path), self.frames)
        return Source(self.name, str(self.path), decode=self.decode).open_clip()


@dataclass(frozen=True)
class Split:
    """Labelled clips and their classes.

    Attributes:
        examples: the clips.
        classes: class names, in the order of the class ids.
        origin: the folder or file from which they were read.
        left_out: number of clips in the list that are too short to be used.
        notes: what the user should know, a line each.
    """

    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    origin: str
    left_out: int = 0
    notes: tuple[str, ...] = ()


def read_data(path: Path, classes: Sequence[str] | None = None, frames: Path | None = None) -> Split:
    """Read labelled clips in any form that ``--data`` takes.

    Args:
        path: a folder with a sub-folder per class, a CSV with the columns ``video,class``, or an official split list.
        classes: all allowed class names; None to take them from the data, sorted.
        frames: for a split list: the folder that its paths are relative to.

    Raises ``DataError`` that names the file, the line and the mistake.
    """
    if classes is not None:
        classes = class_names(classes)
    check_data(path, frames)
    if os.path.isdir(path):
        return _read_folders(path, classes)
    if path.suffix.lower() == ".csv":
        return _read_csv(path, classes)
    assert frames is not None
    if classes is None:
        raise DataError(f"{path}: a split list holds no class names: give --classes FILE")
    return read_list(path, frames, classes)


def class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names in the form in which they are compared. Raises ``DataError`` if two are the same."""
    found = tuple(map(class_name, names))
    check_distinct(found, "class names", DataError, "entries")
    return found


def check_data(path: Path, frames: Path | None = None) -> None:
    """Check, without reading it, that data exists for :func:`read_data`. Raises ``DataError``."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such folder, CSV or split list")
    if os.path.isdir(path) or path.suffix.lower() == ".csv":
        return
    if frames is None:
        raise DataError(f"{path}: a split list needs the folder of its clips: give --frames DIR")


def read_list(path: Path, root: Path, classes: Sequence[str], separator: str | None = None) -> Split:
    """Read an official split list: path, frame count and class id per line, or, with commas, one to three class ids.

    Args:
        path: of the list.
        root: the folder that its paths are relative to.
        classes: class names; ids are from 0 to below their number. A line may hold a class name instead.
        separator: ``,`` or a space; None to detect it from the first line.

    A path is a folder of frames, or a video, with or without its suffix. Raises ``DataError``, also if a path matches
    two videos, or if a clip is listed twice with different classes.
    """
    classes = class_names(classes)
    examples: list[Example] = []
    short: list[str] = []
    finder, seen = _Finder(root), Seen()
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        separator = separator or ("," if "," in line else " ")
        # A path may hold spaces: with a space as the separator, the last two fields count.
        parts = [part.strip() for part in (line.split(",") if separator == "," else line.rsplit(maxsplit=2))]
        if len(parts) < 3 or not parts[0]:
            raise DataError(f"{where}: {line!r} is not `path{separator}frames{separator}class`")
        if not is_number(parts[1]):
            raise DataError(f"{where}: {parts[1]!r} is not a number of frames")
        if len(parts) > 2 + MAX_LABELS:
            raise DataError(f"{where}: more than {MAX_LABELS} classes")
        labels = tuple(sorted({_label(part, classes, where) for part in parts[2:]}))
        found = finder.find(parts[0], where)
        if found is None and separator != ",":
            _check_one_label(parts[0], finder, f"{where}: {line!r}")
        clip = found or root / parts[0]
        seen.add(clip, [classes[label] for label in labels], where)
        count = int(parts[1])
        if count < MIN_FRAMES:
            short.append(parts[0])
            continue
        examples.append(Example(parts[0], clip, labels, count))
    notes = seen.notes(path)
    if short:
        notes += (f"{path}: skipped clips of fewer than {MIN_FRAMES} frames: {len(short)}, such as {short[0]}",)
    return _split(examples, classes, str(path), len(short), notes)


def _check_one_label(name: str, finder: _Finder, where: str) -> None:
    """Refuse several class ids after a space, which would be taken for a part of the path. Raises ``DataError``."""
    for _ in range(MAX_LABELS - 1):
        parts = name.rsplit(maxsplit=1)
        if len(parts) < 2 or not is_number(parts[1]):
            return
        name = parts[0]
        if finder.find(name, where) is not None:
            raise DataError(f"{where} has several classes: put commas between its fields")


def is_number(text: str) -> bool:
    """Return whether text is a whole number of few digits: Python is slow for numbers of thousands of digits."""
    return text.isdecimal() and len(text) <= MAX_DIGITS


def _label(text: str, classes: Sequence[str], where: str) -> int:
    if text.isdecimal():
        if not is_number(text) or int(text) >= len(classes):
            raise DataError(f"{where}: class id {text} is out of range: there are {len(classes)} classes, from 0")
        return int(text)
    if class_name(text) in classes:
        return list(classes).index(class_name(text))
    raise DataError(f"{where}: {text!r} is neither a class id nor one of the {len(classes)} class names")


def list_path(name: str) -> str:
    """Return a list's path in the form in which it is compared: forward slashes, no ``.`` parts, Unicode NFC."""
    return unicodedata.normalize("NFC", "/".join(Path(name.replace("\\", "/")).parts))


def without_suffix(name: str) -> str:
    """Return a clip's path without the suffix of a video: ``a.b.mp4`` and ``a.b`` are both ``a.b``."""
    return str(Path(name).with_suffix("")) if Path(name).suffix.lower() in VIDEO_SUFFIXES else name


class Seen:
    """The clips that a list has named so far, each with its classes and its line."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[set[str], str]] = {}
        self._twice: list[str] = []

    def add(self, clip: Path, labels: Iterable[str], where: str) -> None:
        """Add a line's clip. Raises ``DataError`` if another line gives it other classes."""
        key, own = os.path.normpath(clip), set(labels)
        before, line = self._found.setdefault(key, (own, where))
        if before != own:
            earlier, now = (", ".join(map(repr, sorted(names))) for names in (before, own))
            raise DataError(f"{where}: {clip} is {now} here, and {earlier} in {line}: list each clip once")
        if line != where:
            self._twice.append(f"{clip} ({where})")

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return a note if clips are listed more than once."""
        if not self._twice:
            return ()
        return (f"{path}: lists {len(self._twice)} clips again, which are counted again: {self._twice[0]}",)


class _Finder:
    """Finds the clips of a list in a folder; each folder is read at most once, and only if needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._videos: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str, where: str) -> Path | None:
        """Return a folder of frames or a video, which may be named without its suffix; None if there is none.

        Raises ``DataError`` if two videos have that name.
        """
        plain = list_path(name)
        spellings = list(dict.fromkeys((name, plain, unicodedata.normalize("NFD", plain))))
        for path in (self._root / spelling for spelling in spellings):
            if os.path.isdir(path) or (path.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path)):
                return path
        for path in (self._root / spelling for spelling in spellings):
            found = self._named(path.parent).get(path.name, [])
            if len(found) > 1:
                raise DataError(f"{where}: {name!r} matches {found[0]} and {found[1]}: give its suffix")
            if found:
                return found[0]
        return next((self._root / spelling for spelling in spellings if os.path.exists(self._root / spelling)), None)

    def _named(self, folder: Path) -> dict[str, list[Path]]:
        """Return a folder's videos by their names without suffix."""
        if folder not in self._videos:
            named = self._videos[folder] = {}
            try:
                entries = entries_in(folder, [])
            except OSError:  # opening the clip reports the error
                entries = []
            for entry in entries:
                if entry.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(entry):
                    named.setdefault(entry.stem, []).append(entry)
        return self._videos[folder]


class VideoIndex:
    """The videos in a folder, at any depth, by all names that a list may use.

    Args:
        folder: to search.
        left_out: receives the names of skipped files.
    """

    def __init__(self, folder: Path, left_out: list[str]) -> None:
        self._folder = folder
        self._raw: dict[str, Path] = {}
        self._whole: dict[str, list[Path]] = {}
        """By path within the folder, with and without suffix."""
        self._tails: dict[str, list[Path]] = {}
        """By the last parts of that path."""
        for video in videos_in(folder, left_out):
            inner = str(video.relative_to(folder))
            self._raw[inner] = video
            for name in dict.fromkeys((list_path(inner), without_suffix(list_path(inner)))):
                self._whole.setdefault(name, []).append(video)
                parts = name.split("/")
                for start in range(1, len(parts)):
                    self._tails.setdefault("/".join(parts[start:]), []).append(video)

    def find(self, name: str, where: str, *, whole: bool = False) -> Path | None:
        """Return the video that a name in a list matches, or None. Raises ``DataError`` if it matches two.

        Matches its path within the folder, with or without suffix; then the last parts of either path, or with
        ``whole`` only a bare file name.
        """
        if name in self._raw:
            return self._raw[name]
        plain = list_path(name)
        bare, parts = without_suffix(plain), plain.split("/")
        below = [] if whole else ["/".join(parts[start:]) for start in range(1, len(parts))]
        tails = {} if whole and len(parts) > 1 else self._tails
        known = [(plain, self._whole), (plain, tails), (bare, self._whole), (bare, tails)]
        known += [(one, self._whole) for one in (*below, *map(without_suffix, below))]
        found = next((videos[one] for one, videos in known if one in videos), [])
        if len(found) > 1:
            raise DataError(
                f"{where}: {name!r} matches {found[0]} and {found[1]}: give its path in the folder, with its suffix"
            )
        return found[0] if found else None

    def stem(self, name: str) -> Path | None:
        """Return the only video in any folder with a path's file name, without suffixes; None if not exactly one."""
        stem = without_suffix(list_path(name)).rpartition("/")[2]
        found = self._whole.get(stem, []) + self._tails.get(stem, [])
        return found[0] if len(found) == 1 else None


def _read_folders(folder: Path, classes: Sequence[str] | None) -> Split:
    left_out: list[str] = []
    entries = entries_in(folder, left_out)
    groups = [path for path in entries if os.path.isdir(path)]
    strays = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES and path not in groups]
    left_out += [f"{path} (not in the folder of a class)" for path in strays]
    if not groups:
        raise DataError(f"{folder}: it has no sub-folders; expected one for each class")
    names = tuple(classes) if classes is not None else _in_order(class_name(group.name) for group in groups)
    examples = []
    for group in groups:
        name = class_name(group.name)
        if name not in names:
            raise DataError(f"{group}: unknown class {group.name!r}; the classes are {_some(names)}")
        for source in clips_in(group, left_out):
            path = Path(source.address)
            examples.append(Example(str(path.relative_to(folder)), path, (names.index(name),)))
    return _split(examples, names, str(folder), notes=(skipped_note(left_out),) if left_out else ())


def csv_rows(path: Path, *columns: str, also: str = "") -> Iterator[tuple[int, list[str]]]:
    """Yield line number and the stripped values of some columns of each row. Raises ``DataError`` if one is missing.

    The value of column ``also`` comes last, empty if there is no such column.
    """
    try:
        with io.StringIO(read_text(path), newline="") as file:
            rows = csv.DictReader(file)
            if not set(columns) <= set(rows.fieldnames or ()):
                wanted = " and ".join(f"`{column}`" for column in columns)
                raise DataError(f"{path}: needs the columns {wanted}, but has {_some(rows.fieldnames or ())}")
            for row in rows:
                wanted_of = (*columns, also) if also else columns
                yield rows.line_num, [(row.get(column) or "").strip() for column in wanted_of]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None


def _read_csv(path: Path, classes: Sequence[str] | None) -> Split:
    found: list[tuple[str, Path, str, int, str]] = []
    near, inside = _Finder(path.parent), _Finder(path.parent / "videos")
    seen = Seen()
    for number, (video, label, source) in csv_rows(path, "video", "class", also="source"):
        where = f"{path}, line {number}"
        if not video or not label:
            raise DataError(f"{where}: expected a video and its class")
        clip = near.find(video, where) or inside.find(video, where) or path.parent / video
        found.append((video, clip, class_name(label), number, source))
    names = tuple(classes) if classes is not None else _in_order(label for _, _, label, _, _ in found)
    examples = []
    for video, clip, label, number, source in found:
        if label not in names:
            raise DataError(f"{path}, line {number}: unknown class {label!r}; the classes are {_some(names)}")
        seen.add(clip, [label], f"{path}, line {number}")
        examples.append(Example(video, clip, (names.index(label),), source=source))
    return _split(examples, names, str(path), notes=seen.notes(path))


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of data without a class file in the order of their ids, which `prepare` has, too: sorted."""
    return tuple(sorted(set(names)))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty. Raises ``DataError``."""
    for number, line in enumerate(read_lines(path, "split list", "split list", DataError), start=1):
        if line:
            yield number, line


def _split(
    examples: list[Example], classes: Sequence[str], origin: str, left_out: int = 0, notes: tuple[str, ...] = ()
) -> Split:
    if not examples:
        short = f" ({left_out} have fewer than {MIN_FRAMES} frames)" if left_out else "".join(f" ({n})" for n in notes)
        raise DataError(f"{origin}: no clips in it{short}")
    return Split(tuple(examples), tuple(classes), origin, left_out, notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") or "none"

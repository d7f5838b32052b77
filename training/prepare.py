"""Writes frames and split lists of videos, in the layout of the official extraction; parallel and resumable."""

from __future__ import annotations

import csv
import errno
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from adafocus_edge.bundle.classes import read_classes
from adafocus_edge.errors import AdaFocusError, DataError, SourceError, UsageError
from adafocus_edge.evaluation.dataset import (
    MAX_LABELS,
    MIN_FRAMES,
    VideoIndex,
    csv_rows,
    is_number,
    list_path,
    read_data,
    without_suffix,
)
from adafocus_edge.media.frame_folder import FPS_FILE, FRAME_NAME, TIMES_FILE
from adafocus_edge.media.sources import natural_path, skipped_note
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.model.defaults import SEED
from adafocus_edge.model.spec import class_name
from adafocus_edge.system.addresses import shown_failure
from adafocus_edge.system.cpu import usable_cores
from adafocus_edge.system.files import folded, read_text, reason, write_text
from training.frame_origin import are_current, stamp_of, write_origin
from training.judged_events import judged_clips
from training.layouts import LAYOUTS
from training.split import split_groups

SETTINGS = "prepare.json"
"""File of the settings of the frames in a folder, so that a second run does not mix two kinds."""
TRAIN, VAL = "train", "val"
ONE_LABEL = ("custom", "minik")
"""Data sets whose videos have one line each, with one class unless that line names more."""
SUBSETS = {"training": TRAIN, "train": TRAIN, "validation": VAL, "validate": VAL, "val": VAL, "test": VAL}


@dataclass(frozen=True)
class PrepareOptions:
    """Options of ``adafocus-edge prepare``; see its help.

    Attributes:
        source: folder of videos, or with ``from_events`` an archive of events.
        from_events: whether to take the clips that a person has marked in an archive of events.
        output: folder to write.
        dataset: one of :data:`LAYOUTS`.
        annotations: files with the videos' classes; empty for a folder per class.
        groups: CSV ``video,source``.
        val_share: share of own videos to validate on, 0..1.
        seed: random seed of the split.
        size: short side in pixels.
        quality: quality of the JPEGs, 1..100.
        fps: frames per second to keep, or None for all.
        frames: whether to write frames.
        workers: threads, or None for one per core.
    """

    source: Path
    output: Path
    dataset: str = "custom"
    annotations: tuple[Path, ...] = ()
    groups: Path | None = None
    val_share: float = 0.2
    seed: int = SEED
    size: int = 256
    quality: int = 95
    fps: float | None = None
    frames: bool = True
    workers: int | None = None
    from_events: bool = False


@dataclass(frozen=True)
class Item:
    """One video to prepare: its name in the list, its file, its class names, and its part of the split."""

    name: str
    video: Path
    labels: tuple[str, ...]
    subset: str


@dataclass(frozen=True)
class Line:
    """An annotation of a video: its possible names, its class names, its part of the split, and file and line."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    subset: str
    where: str


@dataclass
class Prepared:
    """The outcome.

    Attributes:
        output: output folder.
        lists: number of clips per list.
        frames: number of frames, written or found.
        broken: name and error of each video that was skipped.
        missing: number of annotated videos that are not in the folder.
        short: number of videos with too few frames, which training skips.
        classes: number of classes.
        labels: all class names in annotations, including those of missing videos.
        notes: notes for the user, a line each.
    """

    output: Path
    lists: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    missing: int = 0
    short: int = 0
    classes: int = 0
    labels: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as an object for ``--json``."""
        broken = [{"video": name, "error": error} for name, error in self.broken]
        entry = {name: value for name, value in asdict(self).items() if name not in ("labels", "notes")}
        return {**entry, "output": str(self.output), "broken": broken}

    def summary(self) -> str:
        """Return the outcome as text."""
        parts = [f"{name}: {count} clips" for name, count in self.lists.items()]
        parts.append(f"{self.classes} classes, {self.frames} frames")
        for count, what in (
            (len(self.broken), "broken videos skipped"),
            (self.missing, "annotated videos not found"),
            (self.short, f"videos of fewer than {MIN_FRAMES} frames, which training skips"),
        ):
            if count:
                parts.append(f"{count} {what}")
        return f"{self.output}: " + "; ".join(parts)


def prepare(options: PrepareOptions, progress: Callable[[int, int], None] = lambda *_: None) -> Prepared:
    """Write frames, split lists and the class file.

    A video's frames appear whole or not at all, so a run after an interruption extracts only what is missing. The lists
    are written last.

    Raises ``UsageError``, ``DataError``, or ``AdaFocusError`` if the disk cannot be written, such as a full one.
    """
    done = Prepared(options.output)
    if not options.source.is_dir():
        raise UsageError(f"{options.source}: no such folder of videos")
    if options.from_events:
        items = _judged(options, done)
    else:
        items = _annotated(options, done) if options.annotations else _own(options, done)
    classes = _classes(options, {*done.labels, *(label for item in items for label in item.labels)})
    done.classes = len(classes)
    _check_names(options, items, classes)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        _check_settings(options)
        counts = _extract_all(options, items, done, progress)
        _write_lists(options, items, classes, counts, done)
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else f"cannot be written ({error.strerror})"
        raise AdaFocusError(f"{error.filename or options.output}: {why}; run again to resume") from None
    return done


# -- what there is ----------------------------------------------------------------------------------------------------


def _own(options: PrepareOptions, done: Prepared) -> list[Item]:
    """Return the videos of a folder per class, split so that no group of videos is in both parts."""
    if options.dataset != "custom":
        raise UsageError(f"--dataset {options.dataset} needs --annotations: the file or files with the videos' classes")
    data = read_data(options.source)
    done.notes += data.notes
    examples = sorted(data.examples, key=lambda example: natural_path(example.path))
    videos = [example for example in examples if example.path.is_file()]
    if not videos:
        raise DataError(f"{options.source}: no videos in its sub-folders")
    if len(videos) < len(examples):
        frames = next(example for example in examples if not example.path.is_file())
        done.notes.append(f"skipped: {len(examples) - len(videos)} folders of frames, such as {frames.path}")
    names = [str(example.path.relative_to(options.source)) for example in videos]
    _check_stems(options, names)
    group_of = _groups(options.groups, VideoIndex(options.source, [])) if options.groups else {}
    labels = [data.classes[example.labels[0]] for example in videos]
    groups: dict[str, list[int]] = {}
    ungrouped = []
    for number, (name, example) in enumerate(zip(names, videos, strict=True)):
        group = group_of.get(example.path)
        if not group and options.groups:
            ungrouped.append(name)
        groups.setdefault(group or name, []).append(number)
    if ungrouped:
        raise DataError(f"{options.groups}: no row for {len(ungrouped)} of the videos, such as {ungrouped[0]!r}")
    return _split(options, names, [example.path for example in videos], labels, list(groups.values()))


def _split(
    options: PrepareOptions,
    names: Sequence[str],
    videos: Sequence[Path],
    labels: Sequence[str],
    groups: Sequence[Sequence[int]],
) -> list[Item]:
    """Divide videos into training and validation, so that no group of them is in both. Raises ``DataError``."""
    validation = split_groups(groups, labels, options.val_share, options.seed)
    if not validation:
        raise DataError(f"{options.source}: too few clips or sources to hold some of each class back for validation")
    return [
        Item(name, video, (label,), VAL if number in validation else TRAIN)
        for number, (name, video, label) in enumerate(zip(names, videos, labels, strict=True))
    ]


def _judged(options: PrepareOptions, done: Prepared) -> list[Item]:
    """Return the clips of an archive of events that a person has marked; those of one source and day stay together."""
    if options.annotations or options.groups or options.dataset != "custom":
        raise UsageError("--from-events: takes neither --annotations nor --groups nor another --dataset")
    judged = judged_clips(options.source)
    clips = judged.clips
    done.labels.update(judged.classes)
    if judged.left_out:
        done.notes.append(f"skipped: {judged.left_out} marked events without a clip, or wrong without their class")
    groups: dict[str, list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault(clip.group, []).append(number)
    videos, labels = [clip.path for clip in clips], [clip.label for clip in clips]
    items = _split(options, [video.name for video in videos], videos, labels, list(groups.values()))
    missing = set(labels) - {item.labels[0] for item in items if item.subset == VAL}
    if missing:
        raise DataError(
            f"{options.source}: no day of one source can be held back for {sorted(missing)[0]!r}: mark events of more "
            "days or sources, or raise --val-share"
        )
    return items


def _check_stems(options: PrepareOptions, names: Sequence[str]) -> None:
    """Refuse two videos of one name, which only a list could distinguish. Raises ``UsageError``."""
    before: dict[str, str] = {}
    for name in names:
        place = frame_folder(name)
        if (other := before.setdefault(place, name)) != name:
            raise UsageError(f"{options.source}: two videos have the name {place}: {other} and {name}: rename one")


def _groups(path: Path, index: VideoIndex) -> dict[Path, str]:
    """Return the videos' groups from a CSV ``video,source``. Raises ``DataError`` for a video in two groups."""
    found: dict[Path, str] = {}
    for number, (name, group) in csv_rows(path, "video", "source"):
        where = f"{path}, line {number}"
        video = index.find(name, where, whole=True) if name else None
        if video is not None and found.setdefault(video, group) != group:
            raise DataError(f"{where}: {video} is of source {group!r} here, and of {found[video]!r} above")
    return found


def _check_names(options: PrepareOptions, items: Sequence[Item], classes: tuple[str, ...]) -> None:
    """Check that names fit lists and the class file: one line of UTF-8 each. Raises ``DataError``."""
    for name in (*(item.name for item in items), *classes):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{options.source}: {name!r} is not UTF-8, or this locale's encoding is not: rename it, or "
                            "set LC_ALL=C.UTF-8") from None  # fmt: skip
        if name.splitlines() != [name]:
            raise DataError(f"{options.source}: {name!r}: a line break would end a list's line: rename it")


def _annotated(options: PrepareOptions, done: Prepared) -> list[Item]:
    """Return the videos that annotation files name: by path in the folder, or by a name that only one video has."""
    left_out: list[str] = []
    index = VideoIndex(options.source, left_out)
    if left_out:
        done.notes.append(skipped_note(left_out))
    lines = list(_annotations(options))
    stems = Counter(stem for line in lines for stem in {_stem(name) for name in line.names})
    elsewhere, joined = [], set()
    named: dict[Path, Line] = {}
    for line in lines:
        done.labels.update(line.labels)
        video = next((found for name in line.names if (found := index.find(name, line.where))), None)
        if video is None and len(line.names) == 1 and stems[_stem(line.names[0])] == 1:
            video = index.stem(line.names[0])
            if video is not None:
                elsewhere.append(f"{line.names[0]} is {video}")
        if video is None:
            done.missing += 1
        else:
            before = named.get(video, line)
            named[video] = _joined(options, video, before, line)
            if named[video].labels != before.labels:
                joined.add(video)
    if not lines:
        raise DataError(f"{options.annotations[0]}: contains no videos")
    if not named:
        raise DataError(
            f"{options.source}: contains none of the {done.missing} annotated videos, such as {lines[0].names[0]!r}"
        )
    if joined:
        done.notes.append(f"{len(joined)} videos have the classes of several lines each, such as {min(joined)}")
    if elsewhere:
        done.notes.append(f"{len(elsewhere)} videos are in other folders than in their lists: {elsewhere[0]}")
    return [
        Item(str(video.relative_to(options.source)), video, line.labels[:MAX_LABELS], line.subset)
        for video, line in named.items()
    ]


def _stem(name: str) -> str:
    return without_suffix(list_path(name)).rpartition("/")[2]


def _joined(options: PrepareOptions, video: Path, before: Line, line: Line) -> Line:
    """Join two lines of one video: a line may stand for a part of it or, with several labels, for one label.

    Raises ``DataError`` if they contradict each other.
    """
    if before.subset != line.subset:
        raise DataError(
            f"{line.where}: {video} is here for {_side(line)}, and in {before.where} for {_side(before)}: remove one"
        )
    if options.dataset in ONE_LABEL and set(line.labels) != set(before.labels):
        earlier, now = (", ".join(map(repr, one.labels)) for one in (before, line))
        raise DataError(f"{line.where}: {video} is {now} here, and {earlier} in {before.where}: remove one")
    return before if before is line else replace(before, labels=tuple(sorted({*before.labels, *line.labels})))


def _side(line: Line) -> str:
    return "training" if line.subset == TRAIN else "validation"


def _annotations(options: PrepareOptions) -> Iterator[Line]:
    """Yield the lines of annotation files."""
    for number, path in enumerate(options.annotations):
        # Of two files that do not name the split, the second is the validation part.
        default = VAL if number == 1 else TRAIN
        try:
            text = read_text(path)
        except (OSError, UnicodeError) as error:
            raise DataError(f"{path}: cannot be read ({reason(error)})") from None
        if path.suffix.lower() == ".json":
            lines = _activitynet(path, text)
        elif options.dataset == "minik":
            lines = _kinetics(path, text, default)
        else:
            lines = _plain(path, text, default)
        yield from (replace(line, labels=tuple(map(class_name, line.labels))) for line in lines)


def _activitynet(path: Path, text: str) -> Iterator[Line]:
    """ActivityNet's JSON: ``database`` by video id, with ``subset`` and ``annotations`` that each have a ``label``."""
    try:
        videos = json.loads(text)["database"]
        for name, video in videos.items():
            labels = sorted({str(annotation["label"]) for annotation in video["annotations"]})[:MAX_LABELS]
            if labels and video["subset"] in ("training", "validation"):
                yield Line((f"v_{name}", name), tuple(labels), SUBSETS[video["subset"]], f"{path}, video {name}")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not ActivityNet's annotation JSON ({type(error).__name__}: {error})") from None


def _kinetics(path: Path, text: str, default: str) -> Iterator[Line]:
    """Kinetics' CSV: ``label,youtube_id,time_start,time_end,split``; files as its downloaders name them."""
    rows = csv.DictReader(text.splitlines())
    try:
        if not {"label", "youtube_id"} <= set(rows.fieldnames or ()):
            raise DataError(f"{path}: needs the columns `label` and `youtube_id`, as Kinetics' CSV has them")
        for row in rows:
            label, name = row["label"] or "", row["youtube_id"] or ""
            names = [name]
            with suppress(KeyError, TypeError, ValueError, OverflowError):
                start, end = int(float(row["time_start"])), int(float(row["time_end"]))
                names = [f"{name}_{start:06d}_{end:06d}", f"{name}_{start}_{end}", name]
            subset = SUBSETS.get((row.get("split") or "").lower(), default)
            yield Line(tuple(names), (label.strip().strip('"'),), subset, f"{path}, line {rows.line_num}")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV ({error})") from None


def _plain(path: Path, text: str, default: str) -> Iterator[Line]:
    """A video's name and its classes per line, separated by tabs, commas, or else spaces."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        mark = next((mark for mark in ("\t", ",") if mark in line), None)
        name, *labels = (part.strip() for part in line.split(mark))
        if not name or not labels or not all(labels):
            raise DataError(f"{path}, line {number}: {line.strip()!r} is not a video and its classes")
        yield Line((name,), tuple(sorted(set(labels)))[:MAX_LABELS], default, f"{path}, line {number}")


def _classes(options: PrepareOptions, labels: set[str]) -> tuple[str, ...]:
    """Return the class names: those of an existing class file, so that ids can be given, or else sorted."""
    path = options.output / LAYOUTS[options.dataset].classes
    found = sorted(labels)
    if not path.exists():
        if options.annotations and all(label.isdecimal() for label in found):
            raise DataError(
                f"{options.annotations[0]}: has class ids, so {path} must contain their names, one per line"
            )
        return tuple(found)
    names = read_classes(path)
    for label in found:
        if label not in names and not (is_number(label) and int(label) < len(names)):
            raise DataError(f"{path}: exists and does not contain {label!r}: correct it, or remove it")
    return names


# -- frames -----------------------------------------------------------------------------------------------------------


def _check_settings(options: PrepareOptions) -> None:
    """Refuse to add frames with other settings. Raises ``UsageError``."""
    path = options.output / SETTINGS
    settings = {"size": options.size, "quality": options.quality, "fps": options.fps, "frames": options.frames}
    before = None
    with suppress(FileNotFoundError, json.JSONDecodeError, UnicodeError):
        before = json.loads(read_text(path))
    if before is not None and before != settings:
        changed = ", ".join(f"{name} {before.get(name)}" for name in settings if before.get(name) != settings[name])
        raise UsageError(f"{options.output}: was prepared with {changed}: use the same options, or another folder")
    write_text(path, json.dumps(settings) + "\n")


def frame_folder(name: str) -> str:
    """Return the folder of a video's frames: its path without suffix, and without commas, which separate fields."""
    return str(Path(name).with_suffix("")).replace(",", "_")


def _extract_all(
    options: PrepareOptions, items: Sequence[Item], done: Prepared, progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Extract the missing frames, in parallel; return the number of frames per item."""
    if not options.frames:
        _link_videos(options)
    places = _places(options, items)
    counts: dict[str, int] = {}
    with ThreadPoolExecutor(options.workers or usable_cores(), thread_name_prefix="prepare") as pool:
        work = {pool.submit(_extract, options, item, places[item.name]): item for item in items}
        try:
            for number, future in enumerate(as_completed(work), start=1):
                item = work[future]
                try:
                    counts[item.name] = future.result()
                except SourceError as error:
                    done.broken.append(shown_failure(item.name, error))
                progress(number, len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    done.broken.sort()
    done.frames = sum(counts.values())
    return counts


def _places(options: PrepareOptions, items: Sequence[Item]) -> dict[str, str]:
    """Return the folder of each video's frames: its path without suffix, or with it if two would share a folder.

    Raises ``UsageError`` if the file system does not distinguish two of these folders.
    """
    plain = {item.name: frame_folder(item.name) for item in items}
    counts = Counter(plain.values())
    above = {str(parent) for place in counts for parent in Path(place).parents}
    places = dict(plain)
    for name, place in plain.items():
        if counts[place] > 1 or place in above:
            places[name] = name.replace(",", "_")
    before: dict[str, str] = {}
    if not options.frames:
        return places
    same = folded if (options.output / SETTINGS.upper()).exists() else str  # the file system ignores case
    for name, place in places.items():
        if (other := before.setdefault(same(place), name)) != name:
            raise UsageError(f"{options.source}: the frames of {other} and {name} would go into one folder: rename one")
    return places


def _extract(options: PrepareOptions, item: Item, place: str) -> int:
    """Write one video's frames, and return their number."""
    if not options.frames:
        return VideoFile(str(item.video)).frame_count
    target = options.output / "frames" / place
    stamp = stamp_of(item.video)
    if target.is_dir() and are_current(target, item.name, stamp):
        return sum(1 for _ in target.glob("image_*.jpg"))
    video = VideoFile(str(item.video))
    target.parent.mkdir(parents=True, exist_ok=True)
    # One name per video, so that a killed run's draft is found and removed.
    draft = target.with_name(f".{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        count = 0
        for pixels in _at_rate(video, options.fps):
            count += 1
            image = _short_side(Image.fromarray(pixels), options.size)
            # Pillow does not notice that a full disk took only a part of a file.
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=options.quality)
            (draft / FRAME_NAME.format(count)).write_bytes(encoded.getvalue())
        if fps := options.fps or video.fps:
            (draft / FPS_FILE).write_text(f"{fps:g}\n")
        if options.fps is None and not video.is_constant_rate:
            times = "".join(f"{video.time_s(min(number, video.frame_count - 1)):.6f}\n" for number in range(count))
            (draft / TIMES_FILE).write_text(times)
        write_origin(draft, item.name, stamp)
        if target.is_dir():
            shutil.rmtree(target)
        draft.rename(target)
        return count
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _at_rate(video: VideoFile, fps: float | None) -> Iterator[Any]:
    """Yield all frames, or those at a steady rate."""
    due_s = 0.0
    for index, pixels in video.frames():
        if fps is None:
            yield pixels
            continue
        time_s = video.time_s(index)
        while time_s >= due_s - 1e-6:
            yield pixels
            due_s += 1 / fps


def _short_side(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    if short == size:
        return image
    width, height = (max(1, round(side * size / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _link_videos(options: PrepareOptions) -> None:
    """Link ``videos`` in the output to the source folder, so that training finds the videos of the lists."""
    link, source = options.output / "videos", options.source.resolve()
    if link.is_symlink() and link.resolve() == source:
        return
    if link.exists() or link.is_symlink():
        raise UsageError(f"{link}: exists and is another folder: remove it, or give another --output")
    link.symlink_to(source, target_is_directory=True)


def _write_lists(
    options: PrepareOptions, items: Sequence[Item], classes: tuple[str, ...], counts: dict[str, int], done: Prepared
) -> None:
    layout = LAYOUTS[options.dataset]
    separator, places = layout.separator, _places(options, items)
    if not (options.output / layout.classes).exists():
        write_text(options.output / layout.classes, "\n".join(classes) + "\n")
    for subset, file in ((TRAIN, layout.train_list), (VAL, layout.val_list)):
        lines = []
        for item in items:
            if item.subset == subset and item.name in counts:
                ids = sorted({classes.index(label) if label in classes else int(label) for label in item.labels})
                name = places[item.name] if options.frames else item.name
                if not options.frames and "," in name and separator == ",":
                    raise UsageError(f"{item.video}: a comma in its name would end a list's field: rename it")
                lines.append(
                    separator.join([name, str(counts[item.name]), *map(str, ids[: 1 if separator == " " else 3])])
                )
                done.short += counts[item.name] < MIN_FRAMES
        write_text(options.output / file, "".join(f"{line}\n" for line in lines))
        done.lists[file] = len(lines)

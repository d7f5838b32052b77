"""Videos to frames and split lists, as the official extraction lays them out; parallel, and going on after a break."""

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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adafocus_edge.addresses import shown_failure
from adafocus_edge.bundle import read_classes
from adafocus_edge.cpus import usable_cores
from adafocus_edge.data import FEWEST_FRAMES, MOST_LABELS, csv_rows, is_number, read_data
from adafocus_edge.errors import AdaFocusError, DataError, SourceError, UsageError
from adafocus_edge.files import read_whole, write_text
from adafocus_edge.sources import FPS_FILE, FRAME_NAME, VIDEO_SUFFIXES, natural_path
from adafocus_edge.video import VideoFile
from training.layouts import LAYOUTS

SETTINGS = "prepare.json"
"""What the frames in a folder were made with, so that a second run does not mix two kinds."""
TRAIN, VAL = "train", "val"
SUBSETS = {"training": TRAIN, "train": TRAIN, "validation": VAL, "validate": VAL, "val": VAL, "test": VAL}


@dataclass(frozen=True)
class PrepareOptions:
    """What ``adafocus-edge prepare`` is asked for; see its help.

    Attributes:
        source: folder of videos.
        output: folder to write.
        dataset: one of :data:`LAYOUTS`.
        annotations: files that name the videos' classes; none for a folder per class.
        groups: CSV ``video,source``.
        val_share: of own videos, 0..1.
        seed: of the split.
        size: short side in pixels.
        quality: of the JPEGs, 1..100.
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
    seed: int = 1007
    size: int = 256
    quality: int = 95
    fps: float | None = None
    frames: bool = True
    workers: int | None = None


@dataclass(frozen=True)
class Item:
    """One video to prepare: its name in the list, its file, its class names, and its side of the split."""

    name: str
    video: Path
    labels: tuple[str, ...]
    subset: str


@dataclass
class Prepared:
    """What was done.

    Attributes:
        output: the folder.
        lists: clips per list.
        frames: written or found, in all.
        broken: name and error of each video that is left out.
        missing: annotated videos that are not in the folder.
        short: videos of too few frames, which training leaves out.
        classes: how many there are.
        labels: all class names that annotations mention, those of missing videos too.
    """

    output: Path
    lists: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    missing: int = 0
    short: int = 0
    classes: int = 0
    labels: set[str] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        """Return it as an object for ``--json``."""
        broken = [{"video": name, "error": error} for name, error in self.broken]
        entry = {name: value for name, value in asdict(self).items() if name != "labels"}
        return {**entry, "output": str(self.output), "broken": broken}

    def summary(self) -> str:
        """Return it in words."""
        parts = [f"{name}: {count} clips" for name, count in self.lists.items()]
        parts.append(f"{self.classes} classes, {self.frames} frames")
        for count, what in (
            (len(self.broken), "broken videos left out"),
            (self.missing, "annotated videos are not there"),
            (self.short, f"videos of fewer than {FEWEST_FRAMES} frames, which training leaves out"),
        ):
            if count:
                parts.append(f"{count} {what}")
        return f"{self.output}: " + "; ".join(parts)


def prepare(options: PrepareOptions, progress: Callable[[int, int], None] = lambda *_: None) -> Prepared:
    """Write frames, split lists and the class file.

    A video's frames appear whole or not at all, so a run that was broken off goes on with those that are missing. The
    lists come last.

    Raises ``UsageError``, ``DataError``, or ``AdaFocusError`` if the disk refuses (a full one, say).
    """
    done = Prepared(options.output)
    if not options.source.is_dir():
        raise UsageError(f"{options.source}: no such folder of videos")
    items = _annotated(options, done) if options.annotations else _own(options)
    classes = _classes(options, {*done.labels, *(label for item in items for label in item.labels)})
    done.classes = len(classes)
    _check_names(options, items, classes)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        _check_settings(options)
        counts = _extract_all(options, items, done, progress)
        _write_lists(options, items, classes, counts, done)
    except OSError as error:
        told = "the disk is full" if error.errno == errno.ENOSPC else f"cannot be written ({error.strerror})"
        raise AdaFocusError(f"{error.filename or options.output}: {told}; run again to go on") from None
    return done


# -- what there is ----------------------------------------------------------------------------------------------------


def _own(options: PrepareOptions) -> list[Item]:
    """A folder per class, split so that each class gives its share and no group lies on both sides."""
    if options.dataset != "custom":
        raise UsageError(f"--dataset {options.dataset} needs --annotations: the file(s) that name the videos' classes")
    examples = sorted(read_data(options.source).examples, key=lambda example: natural_path(example.path))
    videos = [example for example in examples if example.path.is_file()]
    if not videos:
        raise DataError(f"{options.source}: no videos in its sub-folders")
    group_of = dict(values for _, values in csv_rows(options.groups, "video", "source")) if options.groups else {}
    labels = [example.path.relative_to(options.source).parts[0] for example in videos]
    groups: dict[str, list[int]] = {}
    ungrouped = []
    for number, example in enumerate(videos):
        name = str(example.path.relative_to(options.source))
        group = group_of.get(name) or group_of.get(example.path.name)
        if group is None and options.groups:
            ungrouped.append(name)
        groups.setdefault(group or name, []).append(number)
    if ungrouped:
        raise DataError(f"{options.groups}: no row for {len(ungrouped)} of the videos, such as {ungrouped[0]!r}")
    validation = split_groups(list(groups.values()), labels, options.val_share, options.seed)
    if not validation:
        raise DataError(f"{options.source}: too few clips or sources to keep some of each class apart for validation")
    items = []
    for number, example in enumerate(videos):
        name = str(example.path.relative_to(options.source))
        items.append(Item(name, example.path, (labels[number],), VAL if number in validation else TRAIN))
    return items


def split_groups(groups: Sequence[Sequence[int]], labels: Sequence[str], share: float, seed: int) -> set[int]:
    """Choose whole groups of clips to validate on, so that no class gives more than its share, rounded up.

    Args:
        groups: the clips' numbers, by group.
        labels: class of each clip.
        share: to validate on, 0..1.
        seed: the same one gives the same split.

    Returns:
        the numbers of the chosen clips.
    """
    # Something of each class stays to train on.
    most = {label: min(int(np.ceil(count * share)), count - 1) for label, count in Counter(labels).items()}
    taken: Counter[str] = Counter()
    chosen: set[int] = set()
    for number in np.random.default_rng(seed).permutation(len(groups)):
        adds = Counter(labels[clip] for clip in groups[number])
        if all(taken[label] + count <= most[label] for label, count in adds.items()):
            taken += adds
            chosen.update(groups[number])
    return chosen


def _check_names(options: PrepareOptions, items: Sequence[Item], classes: tuple[str, ...]) -> None:
    """Lists and the class file hold a name per line, in UTF-8. Raises ``DataError``."""
    for name in (*(item.name for item in items), *classes):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{options.source}: {name!r} is no UTF-8, or this locale's encoding is not: rename it, or "
                            "set LC_ALL=C.UTF-8") from None  # fmt: skip
        if name.splitlines() != [name]:
            raise DataError(f"{options.source}: {name!r}: a line break would end a list's line: rename it")


def _annotated(options: PrepareOptions, done: Prepared) -> list[Item]:
    """Videos that annotation files name, found anywhere in the folder by their names without suffix."""
    found = {
        path.stem: path for path in sorted(options.source.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES
    }  # fmt: skip
    named: dict[Path, Item] = {}
    for names, labels, subset in _annotations(options):
        done.labels.update(labels)
        video = next((found[name] for name in names if name in found), None)
        if video is None:
            done.missing += 1
            continue
        before = named.get(video)  # there may be one line per label, or per part of a video
        both = tuple(sorted({*(before.labels if before else ()), *labels}))[:MOST_LABELS]
        side = before.subset if before else subset
        named[video] = Item(str(video.relative_to(options.source)), video, both, side)
    items = list(named.values())
    if not items:
        raise DataError(
            f"{options.source}: none of the {done.missing} annotated videos is in it (looked for names such as "
            f"{next(_annotations(options))[0][0]!r})"
        )
    return items


def _annotations(options: PrepareOptions) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Yield a video's possible names, its classes, and its side of the split."""
    for number, path in enumerate(options.annotations):
        # Two files without a word on the split are the training and the validation part.
        default = VAL if number == 1 else TRAIN
        try:
            text = read_whole(path).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
        if path.suffix.lower() == ".json":
            yield from _activitynet(path, text)
        elif options.dataset == "minik":
            yield from _kinetics(path, text, default)
        else:
            yield from _plain(path, text, default)


def _activitynet(path: Path, text: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """ActivityNet's JSON: ``database`` by video id, with ``subset`` and ``annotations`` that each have a ``label``."""
    try:
        videos = json.loads(text)["database"]
        for name, video in videos.items():
            labels = sorted({str(annotation["label"]) for annotation in video["annotations"]})[:MOST_LABELS]
            if labels and video["subset"] in ("training", "validation"):
                yield (f"v_{name}", name), tuple(labels), SUBSETS[video["subset"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not ActivityNet's annotation JSON ({type(error).__name__}: {error})") from None


def _kinetics(path: Path, text: str, default: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
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
            yield tuple(names), (label.strip().strip('"'),), subset
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV ({error})") from None


def _plain(path: Path, text: str, default: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """A video's name and its classes per line, separated by tabs, commas, or else spaces."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        mark = next((mark for mark in ("\t", ",") if mark in line), None)
        name, *labels = (part.strip() for part in line.split(mark))
        if not labels or not all(labels):
            raise DataError(f"{path}, line {number}: {line.strip()!r} is not a video and its classes")
        stem = Path(name)
        plain = stem.stem if stem.suffix.lower() in VIDEO_SUFFIXES else stem.name
        yield (plain,), tuple(sorted(set(labels)))[:MOST_LABELS], default


def _classes(options: PrepareOptions, labels: set[str]) -> tuple[str, ...]:
    """Return the class names: those of a class file that is there already, so that ids can be given, or sorted."""
    path = options.output / LAYOUTS[options.dataset].classes
    found = sorted(labels)
    if not path.exists():
        if options.annotations and all(label.isdecimal() for label in found):
            raise DataError(
                f"{options.annotations[0]}: gives class ids, so their names must be in {path}, one per line"
            )
        return tuple(found)
    names = read_classes(path)
    for label in found:
        if label not in names and not (is_number(label) and int(label) < len(names)):
            raise DataError(f"{path}: is there already, and does not name {label!r}: correct it, or remove it")
    return names


# -- frames -----------------------------------------------------------------------------------------------------------


def _check_settings(options: PrepareOptions) -> None:
    """Frames of two kinds must not mix."""
    path = options.output / SETTINGS
    settings = {"size": options.size, "quality": options.quality, "fps": options.fps, "frames": options.frames}
    before = None
    with suppress(FileNotFoundError, json.JSONDecodeError):
        before = json.loads(path.read_text())
    if before is not None and before != settings:
        changed = ", ".join(f"{name} {before.get(name)}" for name in settings if before.get(name) != settings[name])
        raise UsageError(f"{options.output}: was prepared with {changed}: use the same, or another folder")
    write_text(path, json.dumps(settings) + "\n")


def frame_folder(name: str) -> str:
    """Return where a video's frames go: its path without suffix; a comma would end a list's field."""
    return str(Path(name).with_suffix("")).replace(",", "_")


def _extract_all(
    options: PrepareOptions, items: Sequence[Item], done: Prepared, progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Return frames per item; in parallel, and only what is missing."""
    if not options.frames:
        _link_videos(options)
    places = Counter(frame_folder(item.name) for item in items)
    if twice := next((place for place, count in places.items() if count > 1), None):
        raise UsageError(f"{options.source}: two videos are called {twice}: rename one")
    parents = {str(parent) for place in places for parent in Path(place).parents}
    if within := next((place for place in places if place in parents), None):
        raise UsageError(f"{options.source}: {within} is a video and a folder of videos: rename one")
    counts: dict[str, int] = {}
    with ThreadPoolExecutor(options.workers or usable_cores(), thread_name_prefix="prepare") as pool:
        work = {pool.submit(_extract, options, item): item for item in items}
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


def _extract(options: PrepareOptions, item: Item) -> int:
    """Write one video's frames, and return how many there are."""
    if not options.frames:
        return VideoFile(str(item.video)).frame_count
    target = options.output / "frames" / frame_folder(item.name)
    if target.is_dir():
        return sum(1 for _ in target.glob("image_*.jpg"))
    video = VideoFile(str(item.video))
    target.parent.mkdir(parents=True, exist_ok=True)
    # One name per video, so that what a killed run left is found and removed.
    draft = target.with_name(f".{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        count = 0
        for pixels in _at_rate(video, options.fps):
            count += 1
            image = _short_side(Image.fromarray(pixels), options.size)
            # Pillow, writing to a file, does not notice that a full disk took only a part.
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=options.quality)
            (draft / FRAME_NAME.format(count)).write_bytes(encoded.getvalue())
        if fps := options.fps or video.fps:
            (draft / FPS_FILE).write_text(f"{fps:g}\n")
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
    """Let ``videos`` in the output stand for the source folder, so that training finds what the lists name."""
    link, source = options.output / "videos", options.source.resolve()
    if link.is_symlink() and link.resolve() == source:
        return
    if link.exists() or link.is_symlink():
        raise UsageError(f"{link}: is there already and is another folder: remove it, or give another --output")
    link.symlink_to(source, target_is_directory=True)


def _write_lists(
    options: PrepareOptions, items: Sequence[Item], classes: tuple[str, ...], counts: dict[str, int], done: Prepared
) -> None:
    layout = LAYOUTS[options.dataset]
    separator = layout.separator
    if not (options.output / layout.classes).exists():
        write_text(options.output / layout.classes, "\n".join(classes) + "\n")
    for subset, file in ((TRAIN, layout.train_list), (VAL, layout.val_list)):
        lines = []
        for item in items:
            if item.subset == subset and item.name in counts:
                ids = sorted({classes.index(label) if label in classes else int(label) for label in item.labels})
                name = frame_folder(item.name) if options.frames else item.name
                if not options.frames and "," in name and separator == ",":
                    raise UsageError(f"{item.video}: a comma in its name would end a list's field: rename it")
                lines.append(
                    separator.join([name, str(counts[item.name]), *map(str, ids[: 1 if separator == " " else 3])])
                )
                done.short += counts[item.name] < FEWEST_FRAMES
        write_text(options.output / file, "".join(f"{line}\n" for line in lines))
        done.lists[file] = len(lines)

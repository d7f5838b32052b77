"""Sources to classify: video files, folders of frames, folders and globs of videos, cameras and stream addresses."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adafocus_edge.errors import SourceError, UsageError
from adafocus_edge.media.clip import Clip
from adafocus_edge.media.decode_modes import DecodeMode
from adafocus_edge.media.frame_folder import FrameFolder, images_in, is_service, natural_order
from adafocus_edge.media.zones import Zones
from adafocus_edge.system.addresses import shown_argument, without_password
from adafocus_edge.system.files import read_text, reason

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .divx .mkv .webm .mpg .mpeg .mpe .vob .ts .m2ts .mts .wmv .asf .flv .mxf .ivf .3gp .ogv "
    ".mjpeg .mjpg .h264 .h265 .hevc .y4m .gif".split()
)
STREAM_LIST = ".streams"
"""Suffix of a file that lists sources."""


@dataclass(frozen=True)
class Source:
    """A source to classify, not yet opened.

    Attributes:
        name: name for display, without any password.
        address: path, URL or camera index as given; excluded from the repr.
        live: whether it has no end: a camera, or the address of a stream.
        video_track: the video track to read, from 0; None for the one with the main picture.
        zones: regions and masks, which live runs apply.
        decode: how a video file is decoded; live runs decode everything exactly.

    Example::

        clip = Source("clip", "clip.mp4").open_clip()
        print(clip.frame_count, clip.duration_s)
    """

    name: str
    address: str = field(repr=False)
    live: bool = False
    video_track: int | None = None
    zones: Zones = field(default_factory=Zones)
    decode: DecodeMode = "exact"

    def missing(self) -> SourceError | None:
        """Return the error for a path that does not exist, without opening it; None for any other source."""
        if self.live or "://" in self.address:
            return None
        try:
            Path(self.address).stat()
        except (FileNotFoundError, NotADirectoryError):
            return SourceError(f"{shown_argument(self.address)}: no such file")
        except OSError:  # opening it raises a more precise error
            return None
        return None

    def open_clip(self) -> Clip:
        """Open a source that has an end: a video file, the address of one, or a folder of frames.

        Raises:
            SourceError: it does not exist, is not a video or a folder of frames, or is damaged.
            ShortageError: this machine is short of memory, threads or open files.
        """
        if os.path.isdir(self.address):
            if self.video_track is not None:
                raise SourceError(f"{self.name}: a folder of frames has no video tracks: remove --video-track")
            return FrameFolder(self.address)
        if is_remote(self.address) and not self.address.lower().startswith("file:"):  # that, FFmpeg reads, too
            raise SourceError(f"{self.name}: is in an object store: give --engine local or --engine ray to `classify`")
        from adafocus_edge.media.video_file import VideoFile

        return VideoFile(self.address, self.video_track, self.name if "://" in self.address else None, self.decode)


def find_sources(arguments: Sequence[str], skipped: list[str] | None = None) -> list[Source]:
    """Return the sources that arguments name; folders and globs are expanded in natural order.

    A number is a camera index unless a file has that name. ``NAME=ADDRESS`` names one source; a ``*.streams`` file
    lists such lines. A path that does not exist also becomes a source, and raises an error when it is opened, so that
    one wrong name does not stop the others.

    Args:
        arguments: paths, patterns, addresses and camera indices.
        skipped: receives the existing files and folders that are skipped, for :func:`skipped_note`.

    Raises:
        UsageError: an argument is empty, a list cannot be read, or a name is given to several sources.
    """
    found: list[Source] = []
    skipped = [] if skipped is None else skipped
    for given in _listed(arguments):
        name, address = _named(given)
        if name is not None:
            inner = find_sources([address], skipped)
            if len(inner) != 1:
                raise UsageError(f"{given}: a name must belong to one source, but {address} holds {len(inner)}")
            found.append(replace(inner[0], name=name))
            continue
        argument = str(_expanded(given)) if given.startswith("~") else given
        if not argument.strip():
            raise UsageError("an empty source: give a file, a folder, a camera index or an address")
        path = Path(argument)
        if "://" in argument:
            found.append(Source(without_password(argument), argument, live=is_stream(argument)))
        elif os.path.isdir(path):
            found += _folder(path, skipped)
        elif not os.path.exists(path) and glob.has_magic(argument):
            matches = sorted(_globbed(argument, skipped), key=natural_path)
            if not matches:
                found.append(Source(shown_argument(argument), argument))
            for match in matches:
                found += _folder(match, skipped) if os.path.isdir(match) else [Source(str(match), str(match))]
        elif argument.isdigit() and not os.path.exists(path):
            found.append(Source(f"camera {argument}", argument, live=True))
        else:
            name = argument if os.path.exists(path) else shown_argument(argument)
            found.append(Source(name, argument, live=argument.startswith("/dev/video")))
    return _distinct(found)


def _listed(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with lists replaced by their lines. Raises ``UsageError``."""
    for argument in arguments:
        if Path(argument).suffix.lower() != STREAM_LIST or "://" in argument:
            yield argument
            continue
        path = _expanded(argument)
        try:
            lines = read_text(path).splitlines()
        except (OSError, UnicodeError) as error:
            raise UsageError(f"{path}: cannot be read ({reason(error)})") from None
        listed = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not listed:
            raise UsageError(f"{path}: the list holds no sources: write one per line, as ADDRESS or NAME = ADDRESS")
        if nested := next((line for line in listed if line.lower().endswith(STREAM_LIST)), None):
            raise UsageError(f"{path}: {shown_argument(nested)}: a list of sources cannot contain another list")
        yield from listed


def _expanded(argument: str) -> Path:
    """Return a path with the home folder instead of ``~``. Raises ``UsageError`` if there is none."""
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{shown_argument(argument)}: ~ stands for a home folder, but there is none of this user: write ./~... "
            "for a file of this name"
        ) from None


def _named(argument: str) -> tuple[str | None, str]:
    """Split ``NAME=ADDRESS``; an existing file, or an address that contains ``=``, has no name."""
    name, equals, address = argument.partition("=")
    if not equals or "://" in name or "/" in name or os.path.exists(argument):
        return None, argument
    if not name.strip() or not address.strip():
        raise UsageError(f"{shown_argument(argument)}: NAME=ADDRESS needs both a name and an address")
    return name.strip(), address.strip()


def natural_path(path: Path) -> list[list[tuple[int, str]]]:
    """Return a sort key for whole paths: each part in :func:`natural_order`."""
    return [natural_order(Path(part)) for part in path.parts]


MIN_NUMBERED, MIN_PICTURES = 2, 3
"""Images beside sub-folders with clips count as frames if this many have numbers in their names, or if there are this
many; otherwise they are covers.
"""


def entries_in(folder: Path, skipped: list[str]) -> list[Path]:
    """Return a folder's entries in natural order, without hidden and service ones. Raises ``OSError``."""
    found = sorted(folder.iterdir(), key=natural_order)
    skipped += [f"{p} (system folder)" for p in found if is_service(p.name) and not p.name.startswith(".")]
    return [p for p in found if not is_service(p.name)]


def videos_in(folder: Path, skipped: list[str]) -> list[Path]:
    """Return the videos in a folder, at any depth; a folder that a link leads to again is not searched twice."""
    return list(_videos_in(folder, set(), skipped))


def _videos_in(folder: Path, seen: set[str], skipped: list[str]) -> Iterator[Path]:
    seen.add(os.path.realpath(folder))
    try:
        entries = entries_in(folder, skipped)
    except OSError as error:
        skipped.append(f"{folder} ({error.strerror})")
        return
    for entry in entries:
        if os.path.isdir(entry):
            if os.path.realpath(entry) not in seen:
                yield from _videos_in(entry, seen, skipped)
        elif entry.suffix.lower() in VIDEO_SUFFIXES:
            yield entry


def skipped_note(skipped: Sequence[str]) -> str:
    """Return a note of one line on skipped files and folders."""
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"skipped: {', '.join(skipped[:3])}{more}"


def clips_in(folder: Path, skipped: list[str]) -> list[Source]:
    """Return the clips in a folder that is not a clip itself, such as the folder of a class."""
    return [source for source in _in_folder(folder, set(), skipped, is_clip=False) if source.address != str(folder)]


def _in_folder(folder: Path, seen: set[str], skipped: list[str], *, is_clip: bool = True) -> list[Source]:
    """Return a folder's videos; a folder of frames as one clip; for any other folder, the clips in its sub-folders.

    A folder that a link leads to a second time is not listed again. An empty folder has no clips.
    """
    seen.add(os.path.realpath(folder))
    try:
        visible = entries_in(folder, skipped)
        images = images_in(folder)
    except OSError:  # opening it raises the error
        return [Source(str(folder), str(folder))]
    sources = [Source(str(p), str(p)) for p in visible if p.suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(p)]
    folders = [p for p in visible if os.path.isdir(p)]
    if is_clip and not sources and _are_frames(images):
        skipped += [f"{inner} (in a folder of frames)" for inner in folders]
        return [Source(str(folder), str(folder))]
    for inner in folders:
        if os.path.realpath(inner) not in seen:
            sources += _in_folder(inner, seen, skipped)
    if images and is_clip and not sources:
        return [Source(str(folder), str(folder))]
    if images:
        skipped.append(f"{images[0]} (1 of {len(images)} images that are not frames of a clip)")
    return sources


def _are_frames(images: Sequence[Path]) -> bool:
    """Return whether images beside sub-folders with clips are frames instead of covers."""
    numbered = sum(re.search(r"\d", image.stem) is not None for image in images)
    return numbered >= MIN_NUMBERED or len(images) >= MIN_PICTURES


def _folder(folder: Path, skipped: list[str]) -> list[Source]:
    """Return the sources of a folder; an empty folder remains one, so that opening it raises a precise error."""
    return _in_folder(folder, set(), skipped) or [Source(str(folder), str(folder))]


def _globbed(pattern: str, skipped: list[str]) -> Iterator[Path]:
    """Yield the paths that match a pattern; a service folder matches only if the pattern names it, not by ``*``."""
    named = set(Path(pattern).parts)
    for match in map(Path, glob.glob(pattern, recursive=True)):
        if service := next((part for part in match.parts if is_service(part) and part not in named), None):
            skipped.append(f"{match} (in {service})")
        else:
            yield match


REMOTE_SCHEMES = frozenset("s3 s3a gs gcs abfs abfss az adl hdfs webhdfs file".split())
"""Schemes of addresses that archives read by fsspec; FFmpeg reads http and https itself, by parts."""


def is_remote(address: str) -> bool:
    """Whether an address is read by fsspec (:mod:`adafocus_edge.media.remote`)."""
    scheme, separator, _ = address.partition("://")
    return bool(separator) and scheme.lower() in REMOTE_SCHEMES


LIVE_SCHEMES = frozenset("rtsp rtsps rtmp rtmps udp rtp srt tcp".split())
STREAM_SUFFIXES = frozenset(".ts .m2ts .mts .flv .mjpeg .mjpg".split())
"""Suffixes of HTTP addresses that are usually endless streams."""


def is_stream(address: str) -> bool:
    """Return whether an address is a stream without end: by its scheme, or for HTTP by the suffix of its path."""
    scheme, _, rest = address.partition("://")
    if scheme.lower() in LIVE_SCHEMES:
        return True
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return scheme.lower() in ("http", "https") and Path(path).suffix.lower() not in VIDEO_SUFFIXES - STREAM_SUFFIXES


def _distinct(found: Sequence[Source]) -> list[Source]:
    """Number the addresses that differ only in their hidden parts, because names must identify sources."""
    distinct: list[Source] = []
    addresses: dict[str, list[str]] = {}
    for source in found:
        if "://" in source.address and source.name == without_password(source.address):
            same = addresses.setdefault(source.name, [])
            if source.address not in same:
                same.append(source.address)
            if (number := same.index(source.address) + 1) > 1:
                distinct.append(replace(source, name=f"{source.name} ({number})"))
                continue
        distinct.append(source)
    return distinct

"""What can be classified: video files, folders of frames, folders and globs of videos, cameras and stream addresses."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adafocus_edge.errors import SourceError, UsageError
from adafocus_edge.media.clip import Clip
from adafocus_edge.media.frame_folder import FrameFolder, images_in, is_service, natural_order
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
    """One thing to classify, not opened yet.

    Attributes:
        name: how it is shown, without any password.
        address: path, URL or camera index as given; no repr shows it.
        live: whether it has no end: a camera, or a stream address.
        video_track: which of its video tracks is read, from 0; None for the main picture.
    """

    name: str
    address: str = field(repr=False)
    live: bool = False
    video_track: int | None = None

    def missing(self) -> SourceError | None:
        """Return the error of a path that leads nowhere, without opening anything; None for any other source."""
        if self.live or "://" in self.address:
            return None
        try:
            Path(self.address).stat()
        except (FileNotFoundError, NotADirectoryError):
            return SourceError(f"{shown_argument(self.address)}: no such file")
        except OSError:  # opening it tells more
            return None
        return None

    def open_clip(self) -> Clip:
        """Open a source that ends. Raises ``SourceError``."""
        if os.path.isdir(self.address):
            if self.video_track is not None:
                raise SourceError(f"{self.name}: a folder of frames has no video tracks: leave out --video-track")
            return FrameFolder(self.address)
        from adafocus_edge.media.video_file import VideoFile

        return VideoFile(self.address, self.video_track, self.name if "://" in self.address else None)


def find_sources(arguments: Sequence[str], left_out: list[str] | None = None) -> list[Source]:
    """Turn what the user named into sources: folders and globs are expanded in natural order.

    Args:
        arguments: what the user named.
        left_out: gets what is there and was not taken, for :func:`left_out_note`.

    A digit is a camera index unless a file has that name. ``NAME=ADDRESS`` names one source; a ``*.streams`` file lists
    such lines. What does not exist becomes a source all the same: opening it tells, so that one wrong name does not
    stop the others. Raises ``UsageError`` for an empty name or a list that cannot be read.
    """
    found: list[Source] = []
    left_out = [] if left_out is None else left_out
    for given in _listed(arguments):
        name, address = _named(given)
        if name is not None:
            inner = find_sources([address], left_out)
            if len(inner) != 1:
                raise UsageError(f"{given}: a name is for one source, and {address} holds {len(inner)}")
            found.append(replace(inner[0], name=name))
            continue
        argument = str(Path(given).expanduser()) if given.startswith("~") else given
        if not argument.strip():
            raise UsageError("an empty source: give a file, a folder, a camera index or an address")
        path = Path(argument)
        if "://" in argument:
            found.append(Source(without_password(argument), argument, live=is_stream(argument)))
        elif os.path.isdir(path):
            found += _folder(path, left_out)
        elif not os.path.exists(path) and glob.has_magic(argument):
            matches = sorted(_globbed(argument, left_out), key=natural_path)
            if not matches:
                found.append(Source(shown_argument(argument), argument))
            for match in matches:
                found += _folder(match, left_out) if os.path.isdir(match) else [Source(str(match), str(match))]
        elif argument.isdigit() and not os.path.exists(path):
            found.append(Source(f"camera {argument}", argument, live=True))
        else:
            name = argument if os.path.exists(path) else shown_argument(argument)
            found.append(Source(name, argument, live=argument.startswith("/dev/video")))
    return _distinct(found)


def _listed(arguments: Sequence[str]) -> Iterator[str]:
    """Put the lines of lists in their places. Raises ``UsageError``."""
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.suffix.lower() != STREAM_LIST or "://" in argument:
            yield argument
            continue
        try:
            lines = read_text(path).splitlines()
        except (OSError, UnicodeError) as error:
            raise UsageError(f"{path}: cannot be read ({reason(error)})") from None
        listed = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not listed:
            raise UsageError(f"{path}: lists no sources: one a line, as ADDRESS or NAME = ADDRESS")
        if nested := next((line for line in listed if line.lower().endswith(STREAM_LIST)), None):
            raise UsageError(f"{path}: {shown_argument(nested)}: a list of sources holds no other lists")
        yield from listed


def _named(argument: str) -> tuple[str | None, str]:
    """Split ``NAME=ADDRESS``; what is a file or an address of itself has no name."""
    name, equals, address = argument.partition("=")
    if not equals or "://" in name or "/" in name or os.path.exists(argument):
        return None, argument
    if not name.strip() or not address.strip():
        raise UsageError(f"{shown_argument(argument)}: NAME=ADDRESS needs both")
    return name.strip(), address.strip()


def natural_path(path: Path) -> list[list[tuple[int, str]]]:
    """Sort key for whole paths: each part in :func:`natural_order`."""
    return [natural_order(Path(part)) for part in path.parts]


MIN_NUMBERED, MIN_PICTURES = 2, 3
"""Pictures beside sub-folders with clips are frames if so many have numbers in their names, or are so many; else they
are a cover."""


def entries_in(folder: Path, left_out: list[str]) -> list[Path]:
    """Return a folder's entries in natural order, but for hidden and service ones. Raises ``OSError``."""
    found = sorted(folder.iterdir(), key=natural_order)
    left_out += [f"{p} (a system's own)" for p in found if is_service(p.name) and not p.name.startswith(".")]
    return [p for p in found if not is_service(p.name)]


def videos_in(folder: Path, left_out: list[str]) -> list[Path]:
    """Return the videos in a folder, at any depth; a folder that is reached again by a link is not searched again."""
    return list(_videos_in(folder, set(), left_out))


def _videos_in(folder: Path, seen: set[str], left_out: list[str]) -> Iterator[Path]:
    seen.add(os.path.realpath(folder))
    try:
        entries = entries_in(folder, left_out)
    except OSError as error:
        left_out.append(f"{folder} ({error.strerror})")
        return
    for entry in entries:
        if os.path.isdir(entry):
            if os.path.realpath(entry) not in seen:
                yield from _videos_in(entry, seen, left_out)
        elif entry.suffix.lower() in VIDEO_SUFFIXES:
            yield entry


def left_out_note(left_out: Sequence[str]) -> str:
    """Return what was left out in one line."""
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"left out: {', '.join(left_out[:3])}{more}"


def clips_in(folder: Path, left_out: list[str]) -> list[Source]:
    """Return the clips that lie in a folder, which is none itself: that of a class, say."""
    return [source for source in _in_folder(folder, set(), left_out, is_clip=False) if source.address != str(folder)]


def _in_folder(folder: Path, seen: set[str], left_out: list[str], *, is_clip: bool = True) -> list[Source]:
    """A folder with videos is those videos; one with frames is one clip; any other is what its sub-folders hold.

    A folder that is reached again by a link is not listed again. An empty folder gives nothing.
    """
    seen.add(os.path.realpath(folder))
    try:
        visible = entries_in(folder, left_out)
        images = images_in(folder)
    except OSError:  # opening it tells
        return [Source(str(folder), str(folder))]
    sources = [Source(str(p), str(p)) for p in visible if p.suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(p)]
    folders = [p for p in visible if os.path.isdir(p)]
    if is_clip and not sources and _are_frames(images):
        left_out += [f"{inner} (in a folder of frames)" for inner in folders]
        return [Source(str(folder), str(folder))]
    for inner in folders:
        if os.path.realpath(inner) not in seen:
            sources += _in_folder(inner, seen, left_out)
    if images and is_clip and not sources:
        return [Source(str(folder), str(folder))]
    if images:
        left_out.append(f"{images[0]} (1 of {len(images)} images that are no clip's frames)")
    return sources


def _are_frames(images: Sequence[Path]) -> bool:
    """Whether pictures are frames even where sub-folders hold clips, rather than a cover."""
    numbered = sum(re.search(r"\d", image.stem) is not None for image in images)
    return numbered >= MIN_NUMBERED or len(images) >= MIN_PICTURES


def _folder(folder: Path, left_out: list[str]) -> list[Source]:
    """The sources of a folder; one with nothing in it stays a source, so that opening it says what is wrong."""
    return _in_folder(folder, set(), left_out) or [Source(str(folder), str(folder))]


def _globbed(pattern: str, left_out: list[str]) -> Iterator[Path]:
    """Yield what a pattern matches; of service folders what it names itself, for ``*`` does not mean those."""
    named = set(Path(pattern).parts)
    for match in map(Path, glob.glob(pattern, recursive=True)):
        if service := next((part for part in match.parts if is_service(part) and part not in named), None):
            left_out.append(f"{match} (in {service})")
        else:
            yield match


LIVE_SCHEMES = frozenset("rtsp rtsps rtmp rtmps udp rtp srt tcp".split())
STREAM_SUFFIXES = frozenset(".ts .m2ts .mts .flv .mjpeg .mjpg".split())
"""What HTTP serves under these names has an end only by chance."""


def is_stream(address: str) -> bool:
    """Whether an address has no end: by its scheme, or for HTTP when its path is not that of a video file."""
    scheme, _, rest = address.partition("://")
    if scheme.lower() in LIVE_SCHEMES:
        return True
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return scheme.lower() in ("http", "https") and Path(path).suffix.lower() not in VIDEO_SUFFIXES - STREAM_SUFFIXES


def _distinct(found: Sequence[Source]) -> list[Source]:
    """Number addresses that differ in nothing but what is not shown: names tell sources apart everywhere."""
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

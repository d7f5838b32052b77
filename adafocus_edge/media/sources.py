"""What can be classified: video files, folders of frames, folders and globs of videos, cameras and stream addresses."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adafocus_edge.errors import ShortageError, SourceError, UsageError
from adafocus_edge.system.addresses import shown_argument, without_password
from adafocus_edge.system.cpu import usable_cores
from adafocus_edge.system.files import decode_text, read_own, read_text, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

# Told by us, in one line, and from a smaller size on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
LARGEST_IMAGE = 80_000_000
"""Pixels of the largest image that is taken for a frame (8K video has 33 million)."""
MOST_SCANS = 100
"""A JPEG's passes over its whole picture: progressive ones have about ten. Each costs time, and hardly any bytes."""
VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .divx .mkv .webm .mpg .mpeg .mpe .vob .ts .m2ts .mts .wmv .asf .flv .mxf .ivf .3gp .ogv "
    ".mjpeg .mjpg .h264 .h265 .hevc .y4m .gif".split()
)
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .tif .tiff .ppm".split())
STREAM_LIST = ".streams"
"""Suffix of a file that lists sources."""
SQUARE = Fraction(1)
"""The aspect of most pixels."""
FOLDER_FPS = 25.0
"""A folder of frames says nothing of time; a video made of it is shown at this rate."""


class Clip(Protocol):
    """Something with numbered frames, all of which can be reached.

    Attributes:
        name: what the user called it.
        frame_count: how many frames it has, at least 1.
        fps: frame rate to show it at.
        duration_s: its length in seconds, or None where frames have no times.
        is_constant_rate: whether all frames are shown equally long, as far as is known.
        sample_aspect: a pixel's width over its height; 1 for square ones.
        track_note: which of several video tracks this is; empty where there is one.
    """

    name: str
    frame_count: int
    fps: float
    duration_s: float | None
    is_constant_rate: bool
    track_note: str

    @property
    def sample_aspect(self) -> Fraction:
        """See above."""

    def time_s(self, index: int) -> float | None:
        """Return when a frame is shown, in seconds from the start, or None where frames have no times."""

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Read the frames with these rising numbers, apply ``convert`` to each RGB uint8 [H, W, 3], yield in order."""

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read all frames in order; yield number and RGB uint8 [H, W, 3]."""


def has_too_many_scans(jpeg: bytes) -> bool:
    """Whether a JPEG is made to take time. Its compressed data holds no such mark by chance."""
    return jpeg.count(b"\xff\xda") > MOST_SCANS


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read one image as RGB, uint8 [H, W, 3]. Raises ``SourceError`` that names the file."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise SourceError(f"{path}: {image.width} x {image.height} pixels are too many for a frame")
            if image.format in ("JPEG", "MPO") and has_too_many_scans(path.read_bytes()):
                raise SourceError(f"{path}: a JPEG of more than {MOST_SCANS} scans")
            if image.mode.startswith("I;16"):  # Pillow would clip it at 255
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.stack([grey] * 3, axis=2)
            if image.mode in ("I", "F"):
                raise SourceError(f"{path}: an image of 32 bits per pixel and channel: save it with 8")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SourceError(f"{path}: not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        ShortageError.check(str(path), error)
        raise SourceError(f"{path}: the image is damaged or cut short ({error})") from None


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts ``frame_10`` behind ``frame_9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


ONE_DECIMAL = re.compile(r"((?:.*[^\d.,])?)(\d+(?:[.,]\d+)?)")
"""A frame's name of a time stamp, such as ``1614863201.05`` or ``cam1_1614863201.05``: what is before it, and it."""


def frame_order(frames: Sequence[Path]) -> list[Path]:
    """Return frames in the order of time: by value if the names are one decimal number each, else natural."""
    matches = [ONE_DECIMAL.fullmatch(path.stem) for path in frames]
    found = [match.groups() for match in matches if match is not None]
    values = [Decimal(number.replace(",", ".")) for _, number in found]
    # Of 1.1 and 1.10, one is no decimal: these are two numbers, as of a shot and of a frame.
    if len(set(values)) == len(frames) and len({before for before, _ in found}) == 1:
        return [path for _, path in sorted(zip(values, frames, strict=True))]
    return sorted(frames, key=natural_order)


FRAME_NAME = "image_{:05d}.jpg"
"""What the official extraction calls frames, counted from 1."""
FPS_FILE = "fps.txt"
"""Beside frames that `adafocus-edge prepare` wrote: their rate, for models that see motion."""
TIMES_FILE = "times.txt"
"""Beside frames of a video whose rate varies: when each is shown, in seconds, one a line."""


def _folder_fps(path: Path) -> float:
    """Return the frame rate that a folder's file says, if there is one. Raises ``SourceError`` if it says none."""
    try:
        text = decode_text(read_own(path)).strip()
        fps = float(text)
    except OSError:
        return FOLDER_FPS
    except UnicodeError as error:
        raise SourceError(f"{path}: {error}") from None
    except ValueError:
        raise SourceError(f"{path}: {text[:40]!r} is no frame rate: write frames per second, such as 29.97") from None
    return fps if 0 < fps < 1000 else FOLDER_FPS


def _folder_times(path: Path, count: int) -> list[float] | None:
    """Return when each frame of a folder is shown, if a file says so. Raises ``SourceError`` if it says nonsense."""
    try:
        times = [float(line) for line in decode_text(read_own(path)).split()]
    except OSError:
        return None
    except UnicodeError as error:
        raise SourceError(f"{path}: {error}") from None
    except ValueError as error:
        raise SourceError(f"{path}: {error}: write the time of each frame in seconds, one a line") from None
    if len(times) < count or not all(math.isfinite(time) for time in times):
        raise SourceError(f"{path}: {len(times)} times for {count} frames: write one a line, in seconds, or remove it")
    if any(after < before for before, after in itertools.pairwise(times)):
        raise SourceError(f"{path}: times must rise from frame to frame")
    return [time - times[0] for time in times[:count]]


class FrameFolder:
    """A folder of images as a clip.

    Args:
        path: of the folder.
        count: how many frames are promised, under their official names (a missing one is told when it is read); None
            to take all images that are there, in the order of :func:`frame_order`.
    """

    sample_aspect = SQUARE
    track_note = ""

    def __init__(self, path: str, count: int | None = None) -> None:
        self.name = path
        try:
            if count is None:
                self._files = frame_order(images_in(Path(path)))
            else:
                self._files = [Path(path) / FRAME_NAME.format(number + 1) for number in range(count)]
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
        self.frame_count = len(self._files)
        self.fps = _folder_fps(Path(path) / FPS_FILE)
        if not self._files:
            raise SourceError(f"{path}: no videos and no frames ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder")
        self._times = _folder_times(Path(path) / TIMES_FILE, self.frame_count)
        self.is_constant_rate = self._times is None
        self.duration_s: float | None = self._times[-1] + 1 / self.fps if self._times else None

    def time_s(self, index: int) -> float | None:
        """Return when a frame is shown if a file beside it says so; see :class:`Clip`."""
        return self._times[index] if self._times else None

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Read the frames with these numbers, over the cores and only a little ahead; see :class:`Clip`."""
        waiting = iter(sorted(set(indices)))
        pending: deque[tuple[int, Future[T]]] = deque()
        workers = usable_cores()

        def read(index: int) -> T:
            return convert(read_image(self._files[index]))

        if workers == 1:
            last: tuple[int, T] | None = None
            for index in indices:
                if last is None or last[0] != index:
                    last = index, read(index)
                yield last
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:

            def refill() -> None:
                for index in itertools.islice(waiting, workers + 1 - len(pending)):
                    pending.append((index, pool.submit(read, index)))

            made: tuple[int, T] | None = None
            try:
                for index in indices:
                    if made is None or made[0] != index:
                        refill()
                        number, future = pending.popleft()
                        made = number, future.result()
                    yield made
            finally:
                for _, future in pending:
                    future.cancel()

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read all frames in order; see :class:`Clip`."""
        for index, path in enumerate(self._files):
            yield index, read_image(path)


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


SERVICE_FOLDERS = frozenset(
    (
        "@eadir", "#recycle", "#snapshot", "@sharebin", "@tmp", "@recycle", "@recently-snapshot",  # Synology, QNAP
        "$recycle.bin", "system volume information",  # Windows
        "__macosx", "network trash folder", "temporary items",  # macOS
        "lost+found",
    )
)  # fmt: skip
"""Folders that a NAS or a system puts among people's own: they hold thumbnails, and what was deleted."""
FEWEST_NUMBERED, FEWEST_PICTURES = 2, 3
"""Pictures beside sub-folders with clips are frames if so many have numbers in their names, or are so many; else they
are a cover."""


def is_service(name: str) -> bool:
    """Whether a file or folder of that name is left out of searches: hidden, or a NAS's or a system's own."""
    return name.startswith(".") or name.casefold() in SERVICE_FOLDERS


def images_in(folder: Path) -> list[Path]:
    """Return the images that lie directly in a folder; hidden files do not count."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not is_service(p.name))
    return [p for p in found if os.path.isfile(p)]


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
    return numbered >= FEWEST_NUMBERED or len(images) >= FEWEST_PICTURES


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

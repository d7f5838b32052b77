"""What can be classified: video files, folders of frames, folders and globs of videos, cameras and stream addresses."""

from __future__ import annotations

import glob
import itertools
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adafocus_edge.addresses import shown_argument, without_password
from adafocus_edge.cpus import usable_cores
from adafocus_edge.errors import ShortageError, SourceError, UsageError
from adafocus_edge.files import read_own, read_whole

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


FRAME_NAME = "image_{:05d}.jpg"
"""What the official extraction calls frames, counted from 1."""
FPS_FILE = "fps.txt"
"""Beside frames that `adafocus-edge prepare` wrote: their rate, for models that see motion."""


class FrameFolder:
    """A folder of images as a clip.

    Args:
        path: of the folder.
        count: how many frames are promised, under their official names (a missing one is told when it is read); None
            to take all images that are there, in the natural order of their names.
    """

    is_constant_rate = True
    sample_aspect = SQUARE
    track_note = ""

    def __init__(self, path: str, count: int | None = None) -> None:
        self.name = path
        try:
            if count is None:
                self._files = sorted(images_in(Path(path)), key=natural_order)
            else:
                self._files = [Path(path) / FRAME_NAME.format(number + 1) for number in range(count)]
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
        self.frame_count = len(self._files)
        self.fps = FOLDER_FPS
        with suppress(OSError, ValueError):
            told = float(read_own(Path(path) / FPS_FILE))
            self.fps = told if 0 < told < 1000 else FOLDER_FPS
        self.duration_s: float | None = None
        if not self._files:
            raise SourceError(f"{path}: no videos and no frames ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder")

    def time_s(self, index: int) -> float | None:
        """Frames in a folder have no times."""
        del index
        return None

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Read the frames with these numbers, over the cores and only a little ahead; see :class:`Clip`."""
        waiting = iter(sorted(set(indices)))
        pending: deque[tuple[int, Future[T]]] = deque()
        workers = usable_cores()

        def read(index: int) -> T:
            return convert(read_image(self._files[index]))

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

    def open_clip(self) -> Clip:
        """Open a source that ends. Raises ``SourceError``."""
        if os.path.isdir(self.address):
            return FrameFolder(self.address)
        from adafocus_edge.video import VideoFile

        return VideoFile(self.address, self.video_track, self.name)


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Turn what the user named into sources: folders and globs are expanded in natural order.

    A digit is a camera index unless a file has that name. ``NAME=ADDRESS`` names one source; a ``*.streams`` file lists
    such lines. What does not exist becomes a source all the same: opening it tells, so that one wrong name does not
    stop the others. Raises ``UsageError`` for an empty name or a list that cannot be read.
    """
    found: list[Source] = []
    for given in _listed(arguments):
        name, address = _named(given)
        if name is not None:
            inner = find_sources([address])
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
            found += _folder(path)
        elif not os.path.exists(path) and glob.has_magic(argument):
            matches = sorted((Path(match) for match in glob.glob(argument, recursive=True)), key=natural_path)
            if not matches:
                found.append(Source(argument, argument))
            for match in matches:
                found += _folder(match) if os.path.isdir(match) else [Source(str(match), str(match))]
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
            lines = read_whole(path).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
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


def images_in(folder: Path) -> list[Path]:
    """Return the images that lie directly in a folder; hidden files do not count."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return [p for p in found if os.path.isfile(p)]


def _in_folder(folder: Path, seen: set[str]) -> list[Source]:
    """A folder with videos, at any depth, is those videos; one with nothing but images is one clip.

    A folder that is reached again by a link is not listed again. An empty folder gives nothing.
    """
    seen.add(os.path.realpath(folder))
    try:
        visible = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=natural_order)
        images = images_in(folder)
    except OSError:  # opening it tells
        return [Source(str(folder), str(folder))]
    sources = [Source(str(p), str(p)) for p in visible if p.suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(p)]
    for inner in visible:
        if os.path.isdir(inner) and os.path.realpath(inner) not in seen:
            sources += _in_folder(inner, seen)
    if not sources and images:
        return [Source(str(folder), str(folder))]
    return sources


def _folder(folder: Path) -> list[Source]:
    """The sources of a folder; one with nothing in it stays a source, so that opening it says what is wrong."""
    return _in_folder(folder, set()) or [Source(str(folder), str(folder))]


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

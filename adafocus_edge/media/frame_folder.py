"""A folder of images as a clip."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adafocus_edge.errors import SourceError
from adafocus_edge.media.clip import DEFAULT_FPS, SQUARE, T
from adafocus_edge.media.images import IMAGE_SUFFIXES, read_image
from adafocus_edge.system.cpu import usable_cores
from adafocus_edge.system.files import decode_text, read_own

if TYPE_CHECKING:
    from numpy.typing import NDArray


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts ``frame_10`` after ``frame_9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


ONE_DECIMAL = re.compile(r"((?:.*[^\d.,])?)(\d+(?:[.,]\d+)?)")
"""A frame name with a time stamp, such as ``1614863201.05`` or ``cam1_1614863201.05``: its prefix and the number."""


def frame_order(frames: Sequence[Path]) -> list[Path]:
    """Return frames in order of time: by value if each name holds one decimal number, otherwise in natural order."""
    matches = [ONE_DECIMAL.fullmatch(path.stem) for path in frames]
    found = [match.groups() for match in matches if match is not None]
    values = [Decimal(number.replace(",", ".")) for _, number in found]
    # If both 1.1 and 1.10 occur, these are not decimals but two numbers, such as those of a shot and of a frame.
    if len(set(values)) == len(frames) and len({before for before, _ in found}) == 1:
        return [path for _, path in sorted(zip(values, frames, strict=True))]
    return sorted(frames, key=natural_order)


UNIX_TIME = re.compile(r".*?(\d{9,}[.,]\d+)")
"""A frame name that ends in a time in seconds since 1970, such as ``cam1_1614863201.05``: the time. A smaller number
may be one of a shot and a frame.
"""


def times_in_names(frames: Sequence[Path]) -> list[float] | None:
    """Return when each frame is shown, in seconds from the first, if all are named by different times in that order."""
    matches = [UNIX_TIME.fullmatch(path.stem) for path in frames]
    stamps = [Decimal(match[1].replace(",", ".")) for match in matches if match is not None]
    if len(frames) < 2 or len(stamps) < len(frames):
        return None
    if any(after <= before for before, after in itertools.pairwise(stamps)):
        return None
    return [float(stamp - stamps[0]) for stamp in stamps]


FRAME_NAME = "image_{:05d}.jpg"
"""Name of a frame in the official extraction, counted from 1."""
FPS_FILE = "fps.txt"
"""File beside frames written by `adafocus-edge prepare`: their rate, for models that see motion."""
TIMES_FILE = "times.txt"
"""File beside frames of a video with a variable rate: when each is shown, in seconds, one per line."""


def _folder_fps(path: Path) -> float | None:
    """Return the frame rate in a folder's file, or None without one, or if it is none that a video has.

    Raises ``SourceError`` if it is not a number.
    """
    try:
        text = decode_text(read_own(path)).strip()
        fps = float(text)
    except OSError:
        return None
    except UnicodeError as error:
        raise SourceError(f"{path}: {error}") from None
    except ValueError:
        raise SourceError(
            f"{path}: {text[:40]!r} is not a frame rate: write frames per second, such as 29.97"
        ) from None
    return fps if 0 < fps < 1000 else None


def _folder_times(path: Path, count: int) -> list[float] | None:
    """Return when each frame of a folder is shown, in seconds from the first, or None without a file of times.

    Raises ``SourceError`` if the file is invalid.
    """
    try:
        times = [float(line) for line in decode_text(read_own(path)).split()]
    except OSError:
        return None
    except UnicodeError as error:
        raise SourceError(f"{path}: {error}") from None
    except ValueError as error:
        raise SourceError(f"{path}: {error}: write the time of each frame in seconds, one per line") from None
    if len(times) < count or not all(math.isfinite(time) for time in times):
        raise SourceError(
            f"{path}: {len(times)} times for {count} frames: write one per line, in seconds, or remove the file"
        )
    if any(after < before for before, after in itertools.pairwise(times)):
        raise SourceError(f"{path}: times must not decrease from one frame to the next")
    return [time - times[0] for time in times[:count]]


class FrameFolder:
    """A folder of images as a clip.

    Frames are shown at the times in its file of times or, without files of times and rates, in their names
    (:func:`times_in_names`); otherwise at a constant rate, :data:`DEFAULT_FPS` unless its file has another.

    Args:
        path: the folder.
        count: number of frames, under their official names; a missing one raises an error when it is read. None to
            take all images of the folder, in the order of :func:`frame_order`.

    Raises:
        SourceError: the folder cannot be read or holds no images, or its file of rates or times is invalid.
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
        fps = _folder_fps(Path(path) / FPS_FILE)
        if not self._files:
            raise SourceError(f"{path}: no videos and no frames ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder")
        self._times = _folder_times(Path(path) / TIMES_FILE, self.frame_count)
        if self._times is None and fps is None:
            self._times = times_in_names(self._files)
            fps = None if self._times is None else (self.frame_count - 1) / self._times[-1]
        self.fps = fps or DEFAULT_FPS
        self.is_constant_rate = self._times is None
        self.duration_s: float | None = self._times[-1] + 1 / self.fps if self._times else None

    def time_s(self, index: int) -> float | None:
        """Return when a frame is shown, or None if no times are known; see :class:`Clip`."""
        return self._times[index] if self._times else None

    def select(self, indices: Sequence[int], convert: Callable[[NDArray[np.uint8]], T]) -> Iterator[tuple[int, T]]:
        """Read the frames with these numbers on all cores, only a little ahead of the caller; see :class:`Clip`."""
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


def unknown_rate_notes(paths: Iterable[str | Path], motion_gap_s: float) -> list[str]:
    """Return a note if the rate of some folders of frames is not known and a model needs it.

    Args:
        paths: of clips; only folders count, and of them those that can be read.
        motion_gap_s: see :class:`ModelSpec`.
    """
    if not motion_gap_s:
        return []
    unknown = [path for path in paths if os.path.isdir(path) and _lacks_rate(Path(path))]
    if not unknown:
        return []
    others = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
    return [
        f"{unknown[0]}{others}: no {FPS_FILE} with the frame rate: {DEFAULT_FPS:g} frames per second assumed, and this "
        "model sees motion"
    ]


def _lacks_rate(folder: Path) -> bool:
    with suppress(SourceError, OSError):
        if _folder_fps(folder / FPS_FILE) is None and not (folder / TIMES_FILE).is_file():
            return times_in_names(frame_order(images_in(folder))) is None
    return False


SERVICE_FOLDERS = frozenset(
    (
        "@eadir", "#recycle", "#snapshot", "@sharebin", "@tmp", "@recycle", "@recently-snapshot",  # Synology, QNAP
        "$recycle.bin", "system volume information",  # Windows
        "__macosx", "network trash folder", "temporary items",  # macOS
        "lost+found",
    )
)  # fmt: skip
"""Folders that a NAS or an operating system creates among the user's: they hold thumbnails and deleted files."""


def is_service(name: str) -> bool:
    """Return whether searches skip files and folders of this name: hidden ones, and those of a NAS or a system."""
    return name.startswith(".") or name.casefold() in SERVICE_FOLDERS


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, without hidden files. Raises ``OSError``."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not is_service(p.name))
    return [p for p in found if os.path.isfile(p)]

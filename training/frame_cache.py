"""Decoded frames of clips, kept in memory or on disk for later epochs; all processes of a machine share them.

Each clip is one file: in memory, in a folder of ``/dev/shm`` that is removed at the end of the run, or on disk, in a
folder that later runs use again. It is written whole or not at all, and its name is a digest of all that decides its
frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adafocus_edge.errors import AdaFocusError
from adafocus_edge.evaluation.dataset import Example
from adafocus_edge.media.frame_folder import images_in
from adafocus_edge.system.files import DRAFT, draft_file, draft_folder, remove_left, take_place

VERSION = 1
"""Version of the file format and of the frames in it; it is part of the files' names."""
MAGIC = b"adafocus frames\n"
SHARED_MEMORY = Path("/dev/shm")
"""Folder whose files are in memory, on Linux; other systems use the folder of temporary files."""
SUFFIX = ".frames"
MEMORY_SHARE = 0.7
"""Share of the free memory that kept frames may take; training and its workers need the rest."""
DISK_SHARE = 0.9
"""Share of the free space on disk, or in the file system of shared memory, that kept frames may take."""
FLOOR_SHARE = 0.1
"""Share of the space free at a process's start that always stays free, even if the estimate was too low."""
MAX_PROBED = 1000
"""Max clips that are probed to estimate the size of all."""


@dataclass(frozen=True)
class ClipFrames:
    """The frames of a clip that may be glimpsed, at the size of kept frames.

    Attributes:
        frame_count: number of frames in the clip.
        numbers: indices of the frames that may be glimpsed, ascending.
        rows: indices into ``pixels`` of the parts of each glimpse, [len(numbers)][1 or 3].
        pixels: uint8 [rows][H, W, 3], or the luminances of motion frames, [rows][H, W].
    """

    frame_count: int
    numbers: Sequence[int]
    rows: Sequence[Sequence[int]]
    pixels: Sequence[NDArray[np.uint8]]

    def glimpses(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return the glimpses at some of ``numbers``: uint8 [T, H, W, 3]."""
        return join_rows(self.numbers, self.rows, indices, self.pixels.__getitem__)


def join_rows(
    numbers: Sequence[int], rows: Sequence[Sequence[int]], indices: Sequence[int], read: Callable[[int], Any]
) -> NDArray[np.uint8]:
    """Return glimpses, uint8 [T, H, W, 3], of the rows that ``read`` returns; each row is read once.

    If a video changes its size, all its frames get the size of the first.
    """
    places = np.searchsorted(numbers, indices)
    wanted = [tuple(rows[place]) for place in places]
    held: dict[int, NDArray[np.uint8]] = {}
    size: tuple[int, int] | None = None
    for row in sorted({row for parts in wanted for row in parts}):
        pixels = read(row)
        size = size or (pixels.shape[1], pixels.shape[0])
        if (pixels.shape[1], pixels.shape[0]) != size:
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        held[row] = pixels
    return np.stack([held[parts[0]] if len(parts) == 1 else np.stack([held[p] for p in parts], -1) for parts in wanted])


class DamagedError(Exception):
    """A file of kept frames differs from what was written."""


class KeptClip:
    """The kept frames of a clip, open for reading; see :class:`ClipFrames`. Raises ``DamagedError``, ``OSError``."""

    def __init__(self, path: Path, *, checked: bool) -> None:
        self._file: IO[bytes] = path.open("rb", buffering=0)
        try:
            head = self._file.read(len(MAGIC) + 8)
            length, checksum = struct.unpack("<II", head[len(MAGIC) :])
            text = self._file.read(length)
            if head[: len(MAGIC)] != MAGIC or zlib.crc32(text) != checksum:
                raise DamagedError(path)
            header = json.loads(text)
        except (struct.error, ValueError):
            self._file.close()
            raise DamagedError(path) from None
        except BaseException:
            self._file.close()
            raise
        self.frame_count: int = header["frame_count"]
        self._numbers, self._rows, self._shape = header["numbers"], header["rows"], tuple(header["shape"])
        self._checksums: list[int] | None = header["checksums"] if checked else None
        self._begin = len(head) + length
        self._path = path

    def __enter__(self) -> KeptClip:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def glimpses(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Read the glimpses at some frames: uint8 [T, H, W, 3]; see :meth:`ClipFrames.glimpses`."""
        return join_rows(self._numbers, self._rows, indices, self._row)

    def _row(self, row: int) -> NDArray[np.uint8]:
        pixels = np.empty(self._shape, np.uint8)
        self._file.seek(self._begin + row * pixels.nbytes)
        whole = self._file.readinto(pixels.data.cast("B")) == pixels.nbytes  # type: ignore[attr-defined]
        if not whole or (self._checksums is not None and zlib.crc32(pixels.data) != self._checksums[row]):
            raise DamagedError(self._path)
        return pixels


@dataclass
class FrameStore:
    """A folder of kept clips. Each process has its own object; all processes share the files.

    Attributes:
        folder: folder of the files.
        in_memory: whether the folder is in memory and removed at the end of the run. On disk, each row is compared with
            its checksum when it is read, because a disk may lose data that was not yet written.
        shortage: reason why this process writes no more files; empty while it does.
    """

    folder: Path
    in_memory: bool
    shortage: str = ""
    _names: dict[tuple[str, str], str] = field(default_factory=dict)
    _floor: float = field(init=False)

    def __post_init__(self) -> None:
        self._floor = FLOOR_SHARE * self._free()

    def _free(self) -> int:
        """Return the free bytes where the files are."""
        free = shutil.disk_usage(self.folder).free
        return min(free, available_memory()) if self.in_memory else free

    def name_of(self, example: Example, settings: str) -> str | None:
        """Return the name of a clip's file, a digest of the clip and the settings; None if the clip is unreadable.

        A process examines each clip once.
        """
        key = (str(example.path), f"{example.frames} {settings}")
        if key not in self._names:
            try:
                identity = _identity(example.path)
            except OSError:
                return None
            text = json.dumps([VERSION, os.path.abspath(example.path), example.frames, identity, settings])
            self._names[key] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest() + SUFFIX
        return self._names[key]

    def open(self, name: str) -> KeptClip | None:
        """Open a clip's file; return None if it does not exist, or is damaged, in which case it is removed."""
        path = self.folder / name
        try:
            return KeptClip(path, checked=not self.in_memory)
        except DamagedError:
            self.remove(name)
        except OSError:
            pass
        return None

    def remove(self, name: str) -> None:
        """Remove a damaged file."""
        (self.folder / name).unlink(missing_ok=True)

    def keep(self, name: str, clip: ClipFrames) -> None:
        """Write a clip's file, unless space is short: then this process's later epochs are slower.

        A video that changes its size is not kept, either.
        """
        if self.shortage or len({row.shape for row in clip.pixels}) > 1:
            return
        checksums = None if self.in_memory else [zlib.crc32(np.ascontiguousarray(row).data) for row in clip.pixels]
        header = {
            "frame_count": clip.frame_count,
            "numbers": [int(number) for number in clip.numbers],
            "rows": [[int(row) for row in parts] for parts in clip.rows],
            "shape": clip.pixels[0].shape,
            "checksums": checksums,
        }
        text = json.dumps(header).encode()
        try:
            # The size logged at the start is an estimate: space that the trainer needs is never taken.
            if self._free() - sum(row.nbytes for row in clip.pixels) < self._floor:
                self.shortage = f"{self.folder}: no room is left for more frames"
                return
            with draft_file(self.folder / name, tidy=False) as draft:
                with draft.open("wb") as file:
                    file.write(MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text)
                    for row in clip.pixels:
                        file.write(np.ascontiguousarray(row).data)
                take_place(draft, self.folder / name)
        except OSError as error:
            self.shortage = f"{self.folder}: cannot be written ({error.strerror})"


def _identity(path: Path) -> list[Any]:
    """Return sizes and times of a clip's file, or of the files in its folder. Raises ``OSError``."""
    found = path.stat()
    if not os.path.isdir(path):
        return [found.st_size, found.st_mtime_ns]
    with os.scandir(path) as entries:
        files = [(entry.name, entry.stat()) for entry in entries]
    return [[name, file.st_size, file.st_mtime_ns] for name, file in sorted(files)]


@contextmanager
def memory_store() -> Iterator[FrameStore]:
    """Give a store in memory, removed at the end; what a killed run left is removed at the next start.

    Raises ``OSError`` if it cannot be created.
    """
    with draft_folder(memory_folder(), f"adafocus-edge-{getattr(os, 'getuid', int)()}-", SUFFIX) as folder:
        try:
            yield FrameStore(folder, in_memory=True)
        finally:
            # Workers may still write: they do not find the folder under its new name, so it can be emptied.
            gone = folder.with_name(folder.name.removesuffix(SUFFIX) + ".gone" + SUFFIX)
            with suppress(OSError):
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def disk_store(folder: Path) -> Iterator[FrameStore]:
    """Give a store on disk, which is not removed. Raises ``AdaFocusError`` if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        remove_left(folder, ".", DRAFT)
    except OSError as error:
        raise AdaFocusError(f"cache=disk: {folder}: cannot be written ({error.strerror}): give cache_dir=") from None
    yield FrameStore(folder, in_memory=False)


def memory_folder() -> Path:
    """Return the folder whose files are in memory."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def memory_room() -> int:
    """Return the bytes of memory that kept frames may take."""
    return int(min(available_memory() * MEMORY_SHARE, shutil.disk_usage(memory_folder()).free * DISK_SHARE))


def disk_room(folder: Path) -> int:
    """Return the bytes on disk that kept frames may take."""
    return int(shutil.disk_usage(folder).free * DISK_SHARE)


def available_memory() -> int:
    """Return the bytes of memory that this process may still take, of the machine and of its cgroups (1 and 2)."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]  # where the system reports no more
    info = Path("/proc/meminfo")
    if info.is_file():
        values = dict(line.split(":", 1) for line in info.read_text().splitlines())
        found.append(int(values["MemAvailable"].split()[0]) * 1024)
    return max(0, min([*found, *_cgroup_room()]))


def _cgroup_room(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the memory left under each limit of this process's cgroups, in bytes."""
    lines = own.read_text().splitlines() if own.is_file() else []
    room = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):  # in a container, its own group may be the root
            if folder == base.parent or not folder.is_relative_to(base):
                break
            room += _left_of_limit(folder, *names)
    return room


def _left_of_limit(folder: Path, limit: str, usage: str) -> list[int]:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    # Cached pages of files count as used, and are freed on demand.
    freed = int(kinds.get("total_inactive_file", kinds.get("inactive_file", 0)))
    return [] if most == "max" else [int(most) - used + freed]


def probe_size(example: Example) -> tuple[int, int, int]:
    """Return the estimated number of a clip's frames, their width and height; zeros for an unreadable clip."""
    try:
        if os.path.isdir(example.path):
            count = example.frames or len(images_in(example.path))
            with Image.open(next(iter(images_in(example.path)))) as image:
                return count, *image.size
        from adafocus_edge.media.containers import rough_shape

        return rough_shape(str(example.path))
    except (OSError, StopIteration, AdaFocusError):
        return 0, 0, 0


def estimate(examples: Sequence[Example], size_of: Callable[[Example], int]) -> int:
    """Return the estimated bytes of all clips, from a sample if there are many."""
    step = max(1, len(examples) // MAX_PROBED)
    known = [size for size in map(size_of, examples[::step]) if size]  # a live recording has no known length
    return int(sum(known) * len(examples) / len(known)) if known else 0

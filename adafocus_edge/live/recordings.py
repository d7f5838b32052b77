"""The folder of recordings: new files with the names of their sources, of which the newest are kept."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from adafocus_edge.errors import UsageError
from adafocus_edge.system.retention import RetentionPolicy, SafeNames, check_folder
from adafocus_edge.system.timestamps import stamp

if TYPE_CHECKING:
    from pathlib import Path


def check_limits(**limits: float | None) -> None:
    """Check the limits of a recording, by their names; None is no limit. Raises ``UsageError`` if one is 0 or less."""
    for name, value in limits.items():
        if value is not None and not value > 0:
            raise UsageError(f"{name} of a recording must be more than 0, not {value:g}")


class Output:
    """A new file that PyAV writes to. One that PyAV opens itself stays open if the disk is full when it is closed.

    Args:
        path: of the file.

    Raises:
        OSError: the file cannot be created; ``FileExistsError`` if it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes) -> int:
        """Write all data, unbuffered. Raises ``OSError``."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self.size_bytes += len(data)
        return len(data)

    def is_deleted(self) -> bool:
        """Return whether the file has been deleted, so that data written to it is lost."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        """Close the file; may be called again."""
        self._file.close()

    def take_back(self, size: int) -> None:
        """Cut the file to a size that it had before. Raises ``OSError``."""
        os.ftruncate(self._file.fileno(), size)
        self._file.seek(size)
        self.size_bytes = size

    def sync(self) -> None:
        """Wait until the file is on the disk, so that a power cut does not take it. Raises ``OSError``."""
        os.fsync(self._file.fileno())


class RecordingFolder:
    """Creates recordings, a series per source: ``SOURCE-YYYYmmdd-HHMMSS.mp4``, UTC.

    Args:
        folder: to write into; created if necessary.
        keep: number of files per source that are kept, the newest, including the one being written; None for all.
        beside: endings of the files beside each recording, which are deleted with it.

    Raises:
        UsageError: ``keep`` is out of range, or ``folder`` is a file.
        AdaFocusError: ``folder`` cannot be written.
    """

    def __init__(self, folder: Path, keep: int | None, beside: tuple[str, ...] = ()) -> None:
        if keep is not None and keep < 1:
            raise UsageError(f"keep must be at least 1 recording, the one being written, not {keep}")
        check_folder(folder, "recordings")
        self._folder, self._keep, self._beside = folder, keep, beside
        self._names = SafeNames()
        self._retention: dict[str, RetentionPolicy] = {}

    def create(self, source: str, wall_s: float) -> Output:
        """Create a file, and delete those that are too many.

        Args:
            source: name of its source.
            wall_s: when it begins, in seconds since 1970.

        Raises ``OSError``.
        """
        name = self._names.of(source)
        output = self._new_output(f"{name}-{stamp(wall_s)}")
        if self._keep is not None:
            try:
                retention = self._retention.setdefault(name, RetentionPolicy(self._keep, self._beside))
                retention.wrote(output.path)
                retention.delete_older(self._files(name))
            except BaseException:
                self.abandon(output)
                raise
        return output

    def abandon(self, output: Output) -> None:
        """Close and delete a file, or each retry would leave an empty one."""
        output.close()
        for path in (output.path, *(output.path.with_suffix(ending) for ending in self._beside)):
            with suppress(OSError):
                path.unlink()

    def _new_output(self, base: str) -> Output:
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            with suppress(FileExistsError):
                return Output(self._folder / (f"{base}.mp4" if number == 1 else f"{base}-{number}.mp4"))
        raise AssertionError("unreachable: there is always another number")

    def _files(self, name: str) -> list[Path]:
        """Return a source's recordings in the folder, oldest first."""
        pattern = re.compile(re.escape(name) + r"-(\d{8}-\d{6})(?:-(\d+))?\.mp4")
        found = []
        for path in self._folder.iterdir():
            if match := pattern.fullmatch(path.name):
                found.append((match[1], int(match[2] or 1), path))
        return [path for _, _, path in sorted(found)]

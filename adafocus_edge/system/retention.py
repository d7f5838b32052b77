"""What outputs that run for months share: safe file names, keeping only the newest, and telling trouble once."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.system.addresses import BLANK, without_password
from adafocus_edge.system.files import folded, is_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LONGEST_NAME_BYTES = 80
"""Of a source or a label in a file's name; file systems allow 255 for the whole name, with a draft's additions."""
SETTLED_S = 60.0
"""Trouble counts as over once all has gone well for so long: what comes and goes is told once, not every time."""


def safe_name(name: str) -> str:
    """Return a source's or a label's name as a part of file names and of MQTT topics.

    Letters, digits, dots, dashes and underscores stay. Of an address, the user and what follows ``?`` go, for these may
    be secret; where something went, or the name is very long, six digits of a hash keep such names apart.
    """
    kept = without_password(name).replace(f"{BLANK}@", "")
    if "://" in kept:
        kept = re.split(r"[?#]", kept, maxsplit=1)[0]
        lossy = re.search(r"://.*[?#]", name) is not None
    else:
        lossy = False
    safe = re.sub(r"[^\w.-]+", "_", kept.replace("://", "_")).strip("._-") or "unnamed"
    if len(safe.encode(errors="replace")) > LONGEST_NAME_BYTES:
        safe = safe.encode(errors="replace")[:LONGEST_NAME_BYTES].decode(errors="ignore")
        lossy = True
    return f"{safe}-{_hash(name)}" if lossy else safe


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:6]


class SafeNames:
    """Safe names that differ wherever the sources do, for one run."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def of(self, source: str) -> str:
        """Return the safe name of a source, the same each time."""
        if source not in self._names:
            safe = safe_name(source)
            taken = {folded(name) for name in self._names.values()}
            self._names[source] = f"{safe}-{_hash(source)}" if folded(safe) in taken else safe
        return self._names[source]


def stamp(wall_s: float) -> str:
    """Return a time, in seconds since 1970, as file names have it: ``YYYYmmdd-HHMMSS`` in UTC, as all output is."""
    return datetime.fromtimestamp(wall_s, timezone.utc).strftime("%Y%m%d-%H%M%S")


def check_folder(folder: Path, what: str) -> None:
    """Make a folder and try to write there. Raises ``UsageError`` for a file, ``AdaFocusError`` where it cannot be."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file: {what} go into a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AdaFocusError(f"{folder}: cannot be written ({error.strerror})") from None


def check_parent(path: Path) -> None:
    """Check that a file or a folder can be made somewhere, without making any. Raises ``AdaFocusError``."""
    absolute = Path(os.path.abspath(path))
    parent = next(folder for folder in absolute.parents if os.path.lexists(folder))
    reason = None
    if not parent.is_dir():
        reason = errno.ENOTDIR
    elif not os.access(parent, os.W_OK | os.X_OK):
        only_read = hasattr(os, "statvfs") and os.statvfs(parent).f_flag & os.ST_RDONLY
        reason = errno.EROFS if only_read else errno.EACCES
    if reason is not None:
        raise AdaFocusError(f"{path}: cannot be written ({os.strerror(reason)})")


def check_file(path: Path) -> None:
    """Check that a file can be written, without touching it. Raises ``UsageError`` for a folder, ``AdaFocusError``."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, not a file to write")
    try:
        own = not is_stream(path)
    except OSError as error:  # links in a circle, a folder that may not be entered
        raise AdaFocusError(f"{path}: cannot be written ({error.strerror})") from None
    if own:
        check_parent(path)


class RetentionPolicy:
    """Keeps only the newest of the files that a run writes and finds.

    What this run has written is newer than what was there before, in the order in which it was written: the system's
    clock may have been set back, and then names and times say otherwise.

    Args:
        keep: how many stay.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._written: dict[Path, None] = {}

    def wrote(self, path: Path) -> None:
        """Note a file of this run."""
        self._written.pop(path, None)
        self._written[path] = None

    def delete_older(self, found: Sequence[Path]) -> None:
        """Delete all but the newest of the files found, given oldest first as their names or times have it.

        One that is gone or will not go is passed over.
        """
        here = set(found)
        self._written = {path: None for path in self._written if path in here}
        files = [*(path for path in found if path not in self._written), *self._written]
        for path in files[: max(0, len(files) - self._keep)]:
            with suppress(OSError):
                path.unlink()


class FailureReporter:
    """Tells when something stops working and when it works again, and nothing in between.

    Args:
        name: of what it is about; begins each line.
        tell: takes one line.
        settled_s: how long all must go well until it counts as working again, in seconds.
    """

    def __init__(self, name: str, tell: Callable[[str], None], settled_s: float = SETTLED_S) -> None:
        self._name = name
        self._tell = tell
        self._settled_s = settled_s
        self._reported: set[str] = set()
        self._failed_at_s = 0.0

    @property
    def lasts(self) -> bool:
        """Whether something failed and it has not worked for long enough since."""
        return bool(self._reported)

    def failed(self, why: str) -> None:
        """Note a failure; it is told unless it was told since the trouble began."""
        self._failed_at_s = time.monotonic()
        if why not in self._reported and len(self._reported) < 5:
            self._reported.add(why)
            self._tell(f"{self._name}: {why}")

    def worked(self) -> None:
        """Note that it works; this is told once it has done so for a while after trouble."""
        if self._reported and time.monotonic() - self._failed_at_s >= self._settled_s:
            self._reported.clear()
            self._tell(f"{self._name}: works again")

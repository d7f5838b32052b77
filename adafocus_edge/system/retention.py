"""Shared parts of outputs that run for months: safe file names, retention of the newest files, failure reports."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.errors import UsageError
from adafocus_edge.system.addresses import BLANK, without_password
from adafocus_edge.system.files import folded, is_stream, writable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LONGEST_NAME_BYTES = 80
"""Maximum length of a source or a label in a file name; file systems allow 255 for the whole name of a draft."""
SETTLED_S = 60.0
"""A failure counts as over after this time without another: an intermittent failure is then reported once."""


def safe_name(name: str) -> str:
    """Return the name of a source or a label in a form that is safe in file names and MQTT topics.

    Letters, digits, dots, dashes and underscores stay. The user and the query of an address are removed, because they
    may be secret. If something was removed, or the name is very long, six digits of a hash keep names distinct.
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
    return f"{safe}-{short_hash(name)}" if lossy else safe


def short_hash(name: str) -> str:
    """Return six digits of a hash, which keep names apart that look alike."""
    return hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:6]


class SafeNames:
    """Safe names for the sources of one run: different sources have different names."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def of(self, source: str) -> str:
        """Return the safe name of a source, always the same one."""
        if source not in self._names:
            safe = safe_name(source)
            taken = {folded(name) for name in self._names.values()}
            self._names[source] = f"{safe}-{short_hash(source)}" if folded(safe) in taken else safe
        return self._names[source]


def check_folder(folder: Path, what: str) -> None:
    """Create a folder and check that files can be written into it.

    Args:
        folder: the folder.
        what: what will be written there, as the error names it, in the plural.

    Raises:
        UsageError: it is a file.
        AdaFocusError: it cannot be created or written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, but {what} are written into a folder")
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_parent(path: Path) -> None:
    """Raise ``AdaFocusError`` if a file or a folder cannot be created at a path; create nothing."""
    absolute = Path(os.path.abspath(path))
    parent = next(folder for folder in absolute.parents if os.path.lexists(folder))
    refused = None
    if not parent.is_dir():
        refused = errno.ENOTDIR
    elif not os.access(parent, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(parent).f_flag & os.ST_RDONLY
        refused = errno.EROFS if read_only else errno.EACCES
    if refused is not None:
        with writable(path):
            raise OSError(refused, os.strerror(refused))


def check_file(path: Path) -> None:
    """Check that a file can be written, without touching it.

    Raises ``UsageError`` for a folder, and ``AdaFocusError`` if it cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, not a file to write")
    with writable(path):  # fails for circular links and for folders without permission
        is_regular = not is_stream(path)
    if is_regular:
        check_parent(path)


class RetentionPolicy:
    """Keeps only the newest files of an output.

    Files of this run count as newer than existing ones, in the order in which they were written. Their names and times
    may suggest another order if the system's clock was set back.

    Args:
        keep: number of files to keep.
        beside: endings of the files beside each one, such as ``.vtt``, which are deleted with it.
    """

    def __init__(self, keep: int, beside: tuple[str, ...] = ()) -> None:
        self._keep = keep
        self._beside = beside
        self._written: dict[Path, None] = {}

    def wrote(self, path: Path) -> None:
        """Record a file that this run has written."""
        self._written.pop(path, None)
        self._written[path] = None

    def delete_older(self, found: Sequence[Path]) -> None:
        """Delete all but the newest files; skip those that no longer exist or cannot be deleted.

        Args:
            found: all files of the output, oldest first by name or time.
        """
        here = set(found)
        self._written = {path: None for path in self._written if path in here}
        files = [*(path for path in found if path not in self._written), *self._written]
        for path in files[: max(0, len(files) - self._keep)]:
            for each in (path, *(path.with_suffix(ending) for ending in self._beside)):
                with suppress(OSError):
                    each.unlink()


class FailureReporter:
    """Reports when something starts to fail and when it works again, and nothing in between.

    Args:
        name: what fails; each line begins with it.
        report: receives each line.
        settled_s: time without failures after which it counts as working again, in seconds.
    """

    def __init__(self, name: str, report: Callable[[str], None], settled_s: float = SETTLED_S) -> None:
        self._name = name
        self._report = report
        self._settled_s = settled_s
        self._reported: set[str] = set()
        self._failed_at_s = 0.0

    @property
    def lasts(self) -> bool:
        """Whether there was a failure, and not enough time without one since."""
        return bool(self._reported)

    def failed(self, why: str) -> None:
        """Record a failure, and report it unless the same reason was already reported during this failure."""
        self._failed_at_s = time.monotonic()
        if why not in self._reported and len(self._reported) < 5:
            self._reported.add(why)
            self._report(f"{self._name}: {why}")

    def worked(self) -> None:
        """Record a success, and report it once there was no failure for ``settled_s``."""
        if self._reported and time.monotonic() - self._failed_at_s >= self._settled_s:
            self._reported.clear()
            self._report(f"{self._name}: works again")

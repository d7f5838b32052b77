"""Reading text as people's editors write it; writing whole or not at all, one process at a time, and tidily."""

from __future__ import annotations

import codecs
import errno
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from adafocus_edge.errors import AdaFocusError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 1 << 28
"""Of what is read into memory whole: lists, configurations, reports. A device has no end."""
DRAFT = ".draft"
"""Ends the name of a file that is being written."""


def read_whole(path: Path) -> bytes:
    """Return what is in a file (or comes from a pipe). Raises ``OSError``, also where that is far too much."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"More than {MAX_BYTES >> 20} MB", str(path))
    return content


def read_own(path: Path) -> bytes:
    """Return what is in a file of a folder that others may have made: no pipe, which may never give anything.

    Raises ``OSError``.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return read_whole(path)


def read_text(path: Path) -> str:
    """Return the text of a file that a person wrote. Raises ``OSError``, and ``UnicodeError`` for what is no UTF-8."""
    return decode_text(read_whole(path))


def decode_text(content: bytes) -> str:
    """Decode UTF-8 as editors write it: byte order marks are dropped, those of files that were joined, too.

    Raises ``UnicodeError`` whose message says what to do, for UTF-16 (Windows' "Unicode") and other encodings.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnicodeError("this is UTF-16: save it as UTF-8")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UnicodeError(f"byte {error.start} is not UTF-8: save it as UTF-8") from None
    if "\0" in text:
        raise UnicodeError("it holds NUL characters, as UTF-16 does: save it as UTF-8")
    return re.sub(r"(?m)^\ufeff+", "", text)


def folded(name: str) -> str:
    """Return what is the same for two names that some disks take for one: they differ in case or Unicode form only."""
    return unicodedata.normalize("NFC", name).casefold()


def reason(error: OSError | UnicodeError) -> str:
    """Return in a few words why a file could not be read or written; of several files, the first."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][2]).partition("] ")[2].partition(": '")[0]
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def writable(path: str | Path, kind: type[AdaFocusError] = AdaFocusError) -> Iterator[None]:
    """Raise ``PATH: cannot be written (REASON)`` instead of an ``OSError``.

    Args:
        path: the file or folder that the error names.
        kind: type of the error.

    Example::

        with writable(path, BundleError), atomic_write(path) as file:
            file.write(content)
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be written ({reason(error)})") from error


@contextmanager
def locked(lock: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, which is made and removed again; whatever became of its holder, a lock never outlives it.

    Args:
        lock: the file.
        wait: for another holder to end, rather than to raise.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be made.
    """
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _hold(handle, wait=wait)
            if _is_at(handle, lock):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has removed it
    try:
        yield
    finally:
        if _is_at(handle, lock):
            with suppress(OSError):
                lock.unlink()
        os.close(handle)


def _hold(handle: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed; say whether the system and the disk know such a thing.

    Raises ``BlockingIOError`` if another has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two writers would do the work twice, each file still whole
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


@contextmanager
def draft_file(path: Path, ending: str = DRAFT, *, tidy: bool = True) -> Iterator[Path]:
    """Give a new file beside ``path``, called ``.NAME.*``; unless it was renamed, it is removed at the end.

    It is locked, so that those of killed runs are told from those in use: they are removed here, unless ``tidy`` is
    false: a folder of many files is searched for them once (:func:`remove_left`). Raises ``OSError``.
    """
    prefix = f".{path.name}."
    if tidy:
        remove_left(path.parent, prefix, ending)
    while True:
        handle, name = tempfile.mkstemp(ending, prefix, path.parent)
        draft = Path(name)
        held: int | None = handle
        if not _hold(handle, wait=True):
            os.close(handle)  # Windows renames no open file
            held = None
            break
        if _is_at(handle, draft):
            break
        os.close(handle)  # another process took it for one of a killed run
    try:
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink()
        if held is not None:
            os.close(held)


@contextmanager
def draft_folder(parent: Path, prefix: str, ending: str) -> Iterator[Path]:
    """Give a new folder, which is removed at the end if it is still there; see :func:`draft_file`."""
    remove_left(parent, prefix, ending)
    while True:
        draft = Path(tempfile.mkdtemp(ending, prefix, parent))
        handle = _opened(draft)
        if handle is None:
            if draft.is_dir():  # a system on which folders cannot be locked
                break
            continue  # another process took it for one that was left, before it could be locked
        if not _hold(handle, wait=True) or _is_at(handle, draft):
            break
        os.close(handle)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _opened(path: str | Path) -> int | None:
    """Open a file or a folder, but nothing else; None where that cannot be."""
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    return None


def remove_left(folder: Path, prefix: str, ending: str) -> None:
    """Remove drafts that nobody holds any more."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(prefix) and entry.name.endswith(ending)):
                continue
            handle = _opened(entry.path)
            if handle is None:
                continue
            try:
                if _hold(handle, wait=False):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    elif entry.is_file(follow_symlinks=False):
                        Path(entry.path).unlink()
            except OSError:
                pass
            finally:
                os.close(handle)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write into, which takes its name, flushed to the disk, only if nothing is raised.

    Whatever was at ``path`` before is lost only then, and nothing else is left. Raises ``OSError``.
    """
    with draft_file(path) as draft:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        take_place(draft, path)


def take_place(draft: Path, path: Path) -> None:
    """Give a draft its name, in place of what has it. Raises ``OSError``."""
    draft.chmod(0o644)
    os.replace(draft, path)


def append_whole(file: IO[bytes], line: bytes, size: int) -> None:
    """Write a line at the end, at ``size`` bytes; half a line on a full disk is taken back. Raises ``OSError``."""
    try:
        write_all(file, line)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


def write_all(file: IO[bytes], content: bytes) -> None:
    """Write all of it to an unbuffered file. Raises ``OSError``."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def is_stream(path: Path) -> bool:
    """Whether a file is written to as it is: a device, a pipe, or what stdout or stderr go to. Raises ``OSError``."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stat.S_ISREG(found.st_mode) or _standard_stream(found) is not None


def open_stream(path: Path) -> IO[bytes]:
    """Open such a file, unbuffered; for a pipe this waits for its reader. Raises ``OSError``."""
    number = _standard_stream(path.stat())
    # Opened anew, a file would be written from its beginning, over what goes to stdout.
    return path.open("wb", buffering=0) if number is None else os.fdopen(os.dup(number), "wb", buffering=0)


def _standard_stream(found: os.stat_result) -> int | None:
    """Return the number of stdout or of stderr if a file is theirs."""
    for number in (1, 2):
        with suppress(OSError):  # it is closed
            if os.path.samestat(found, os.fstat(number)):
                return number
    return None


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and the folders above it. Raises ``AdaFocusError``.

    A link stays, and what it leads to is written; see :func:`is_stream` for what is no file of its own.
    """
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_stream(path):
            with open_stream(path) as stream:
                write_all(stream, content)
            return
        with atomic_write(path.resolve()) as file:
            file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all, and the folders above it. Raises ``AdaFocusError``."""
    write_file(path, text.encode())

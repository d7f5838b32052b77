"""Reading text from any editor; writing files whole or not at all, one process at a time, without leftovers."""

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

from adafocus_edge.errors import AdaFocusError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_BYTES = 1 << 28
"""Maximum size of a file that is read into memory whole: a list, a configuration, a report. A device has no end."""
MODE = 0o644
"""Permissions of a file that is written."""
DRAFT = ".draft"
"""Suffix of a file that is being written."""


def read_whole(path: Path) -> bytes:
    """Return the content of a file or a pipe. Raises ``OSError``, also for more than :data:`MAX_BYTES`."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"More than {MAX_BYTES >> 20} MB", str(path))
    return content


def read_own(path: Path) -> bytes:
    """Return the content of a regular file in a folder that may come from elsewhere.

    Raises ``OSError``, also for a pipe, which may never deliver anything.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return read_whole(path)


def read_text(path: Path) -> str:
    """Return the text of a file that a person wrote. Raises ``OSError``, or ``UnicodeError`` if it is not UTF-8."""
    return decode_text(read_whole(path))


def decode_text(content: bytes) -> str:
    """Decode UTF-8 and drop byte order marks, which some editors write, also in the middle of joined files.

    Raises ``UnicodeError`` with the fix for UTF-16 (Windows' "Unicode") and other encodings.
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
    """Return a key that is equal for names that some file systems treat as one: without case and Unicode form."""
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
    """Hold a lock file, which is created and removed again. A lock never outlives its process, however that ends.

    Args:
        lock: the file.
        wait: whether to wait until another holder releases it, instead of raising.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be created.
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
        os.close(handle)  # its last holder has removed the file
    try:
        yield
    finally:
        if _is_at(handle, lock):
            with suppress(OSError):
                lock.unlink()
        os.close(handle)


def _hold(handle: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed; return whether the system and the disk support locks.

    Raises ``BlockingIOError`` if another process holds the lock and ``wait`` is false.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two writers would do the work twice, but each file would still be whole
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


@contextmanager
def draft_file(path: Path, ending: str = DRAFT, *, tidy: bool = True) -> Iterator[Path]:
    """Create a file beside ``path``, called ``.NAME.*``, and remove it at the end unless it was renamed.

    The file is locked, which distinguishes it from the leftovers of killed runs.

    Args:
        path: the file that the draft will replace.
        ending: suffix of the draft's name.
        tidy: whether to remove leftovers first. In a folder of many files, call :func:`remove_left` once instead.

    Raises:
        OSError: the file cannot be created.
    """
    prefix = f".{path.name}."
    if tidy:
        remove_left(path.parent, prefix, ending)
    while True:
        handle, name = tempfile.mkstemp(ending, prefix, path.parent)
        draft = Path(name)
        held: int | None = handle
        if not _hold(handle, wait=True):
            os.close(handle)  # Windows cannot rename an open file
            held = None
            break
        if _is_at(handle, draft):
            break
        os.close(handle)  # another process has removed it as the leftover of a killed run
    try:
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink()
        if held is not None:
            os.close(held)


@contextmanager
def draft_folder(parent: Path, prefix: str, ending: str) -> Iterator[Path]:
    """Create a folder, and remove it at the end if it still exists; see :func:`draft_file`."""
    remove_left(parent, prefix, ending)
    while True:
        draft = Path(tempfile.mkdtemp(ending, prefix, parent))
        handle = _opened(draft)
        if handle is None:
            if draft.is_dir():  # a system on which folders cannot be locked
                break
            continue  # another process has removed it as a leftover before it was locked
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
    """Open a file or a folder, but no link and no pipe; return None if that fails."""
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    return None


def remove_left(folder: Path, prefix: str, ending: str) -> None:
    """Remove the drafts of killed runs: those that no process has locked."""
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
def atomic_write(path: Path, mode: int = MODE) -> Iterator[IO[bytes]]:
    """Provide a file to write into, which replaces ``path`` at the end, flushed to disk, unless an error is raised.

    After an error, the previous file at ``path`` is unchanged and no draft remains. Raises ``OSError``.

    Args:
        path: of the file.
        mode: its permissions.
    """
    with draft_file(path) as draft:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        take_place(draft, path, mode)


def take_place(draft: Path, path: Path, mode: int = MODE) -> None:
    """Rename a draft to its final name and replace an existing file. Raises ``OSError``."""
    draft.chmod(mode)
    os.replace(draft, path)


def append_whole(file: IO[bytes], line: bytes, size: int) -> None:
    """Append a line to a file of ``size`` bytes; on a full disk, remove the part that was written.

    Raises ``OSError``.
    """
    try:
        write_all(file, line)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


def write_all(file: IO[bytes], content: bytes) -> None:
    """Write all of ``content`` to an unbuffered file. Raises ``OSError``."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def is_stream(path: Path) -> bool:
    """Return whether a path must be written in place: a device, a pipe, or the target of stdout or stderr.

    Raises ``OSError``.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stat.S_ISREG(found.st_mode) or _standard_stream(found) is not None


def check_overwrites(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None]) -> None:
    """Check that no output is an input by any name, or lies in a folder that is one; streams are written in place.

    Args:
        outputs: by the options that name them, such as ``--output``.
        inputs: files, and folders into which nothing is written.

    Raises ``UsageError``.
    """
    places = [(option, path, _places(path)) for option, path in outputs.items() if path is not None]
    if not any(own for _, _, own in places):
        return
    for source in inputs:
        found = None if source is None else _identity(source)
        for option, path, own in places:
            if found is not None and found in own:
                raise UsageError(f"{option} {path}: is an input or lies in one ({source}): give another file")


def check_different(outputs: Iterable[tuple[str, Path | None]]) -> None:
    """Check that outputs, given with the options that name them, are different files; streams may be named twice.

    Raises ``UsageError``.
    """
    options: dict[str, str] = {}
    for option, path in outputs:
        if path is None or not _places(path):
            continue
        real = os.path.realpath(path)
        if real in options:
            raise UsageError(f"{option} {path}: {options[real]} names it, too: give another file")
        options[real] = option


def _places(path: Path) -> set[tuple[int, int]]:
    """Return the identities of a file to be written and of its folders, as far as they exist; none for a stream."""
    try:
        if is_stream(path):
            return set()
    except OSError:  # writing the file reports it
        return set()
    real = Path(os.path.realpath(path))
    return {found for place in (real, *real.parents) if (found := _identity(place)) is not None}


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what a file or folder has under all of its names, or None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def open_stream(path: Path) -> IO[bytes]:
    """Open a file that :func:`is_stream`, unbuffered; a pipe waits for its reader. Raises ``OSError``."""
    number = _standard_stream(path.stat())
    # Opened a second time, the file would be written from its start, over the output of stdout.
    return path.open("wb", buffering=0) if number is None else os.fdopen(os.dup(number), "wb", buffering=0)


def _standard_stream(found: os.stat_result) -> int | None:
    """Return 1 or 2 if a file is the target of stdout or of stderr, otherwise None."""
    for number in (1, 2):
        with suppress(OSError):  # the stream is closed
            if os.path.samestat(found, os.fstat(number)):
                return number
    return None


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and create the folders above it. Raises ``AdaFocusError``.

    A symbolic link stays and its target is written; devices and pipes are written in place (:func:`is_stream`).
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
    """Write a file in UTF-8, whole or not at all, and create the folders above it. Raises ``AdaFocusError``."""
    write_file(path, text.encode())

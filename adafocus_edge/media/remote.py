"""Files in object stores and elsewhere, by fsspec: listed by the driver of a run, fetched by the process that reads."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from adafocus_edge.errors import AdaFocusError, BackendError, MissingExtraError, ShortageError, SourceError, UsageError
from adafocus_edge.media.sources import VIDEO_SUFFIXES, Source, is_remote, natural_path
from adafocus_edge.system.addresses import without_password

USER = re.compile(r"(?<=://)[^/]*@")
"""User and password before a host; an ``@`` in a path is part of a file's name."""


def list_remote(source: Source) -> list[Source]:
    """Return the videos that an address of a file, a folder or a pattern means, in natural order.

    Each is named by its whole address without a user, because names identify rows: what looks like a secret in the
    path, as in ``session=0/``, may be all that distinguishes two files. ``NAME=ADDRESS`` of one file keeps its name.

    Raises:
        UsageError: several have one given name.
        SourceError: there are none, or they cannot be listed.
        MissingExtraError: fsspec is not installed.
        BackendError: its part for the scheme is not installed.
    """
    files, root = _open(source)
    try:
        if any(sign in root for sign in "*?["):
            found = [path for path in files.glob(root) if not files.isdir(path)]
        elif files.isdir(root):
            found = [path for path in files.find(root) if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES]
        else:
            found = [root] if files.exists(root) else []
    except Exception as error:  # each store has its own
        raise _failed(source, error) from None
    if not found:
        raise SourceError(f"{source.name}: no such file, folder or pattern with videos")
    paths = sorted(map(str, found), key=lambda path: natural_path(Path(path)))
    addresses = [files.unstrip_protocol(path) for path in paths]
    named = not source.name.startswith(without_password(source.address))  # otherwise also by a number behind it
    if named and len(addresses) > 1:
        raise UsageError(
            f"{source.name}={without_password(source.address)}: a name must belong to one source, but this address "
            f"holds {len(addresses)}"
        )
    return [
        replace(source, name=source.name if named else USER.sub("", address), address=address, live=False)
        for address in addresses
    ]


@contextmanager
def fetched(source: Source) -> Iterator[Source]:
    """Provide a source whose address can be opened: of a remote file, a copy that is removed afterwards.

    Raises ``SourceError``, ``MissingExtraError``, ``BackendError``; ``ShortageError`` if there is no room for the copy.
    """
    if not is_remote(source.address):
        yield source
        return
    files, path = _open(source)
    with tempfile.NamedTemporaryFile(prefix="adafocus-", suffix=PurePosixPath(path).suffix) as copy:
        try:
            files.get_file(path, copy.name)
        except Exception as error:
            raise _failed(source, error) from None
        yield replace(source, address=copy.name)


def _open(source: Source) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(f"{source.name}: reading it", "ray", error.name or "fsspec") from None
    try:
        files, path = url_to_fs(source.address)
    except ImportError as error:
        raise BackendError(f"{source.name}: {' '.join(str(error).split())}") from None
    except Exception as error:
        raise _failed(source, error) from None
    return files, str(path)


def _failed(source: Source, error: Exception) -> AdaFocusError:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return ShortageError(f"{source.name}: cannot be copied: no space left in {tempfile.gettempdir()}")
    ShortageError.check(source.name, error)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return SourceError(f"{source.name}: cannot be read ({first})")

"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from adafocus_edge.errors import AdaFocusError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write into, which takes its name, flushed to the disk, only if nothing is raised.

    Whatever was at ``path`` before is lost only then, and nothing else is left. Raises ``OSError``.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and the folders above it. Raises ``AdaFocusError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise AdaFocusError(f"{path}: cannot be written ({error.strerror})") from None


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all, and the folders above it. Raises ``AdaFocusError``."""
    write_file(path, text.encode())

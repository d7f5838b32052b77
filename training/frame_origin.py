"""Which video the frames in a folder were extracted from, so that those of another one are not taken for them."""

from __future__ import annotations

import re
from pathlib import Path

from adafocus_edge.errors import SourceError, UsageError
from adafocus_edge.system.files import decode_text, read_own

ORIGIN_FILE = "source.txt"
"""File beside a video's frames with its path in the folder of videos, and on the next line its stamp."""
STAMP = re.compile(r"\d+ \d+")
"""A video's size in bytes and the time of its last change in nanoseconds."""


def stamp_of(video: Path) -> str:
    """Return a video's :data:`STAMP`. Raises ``SourceError``."""
    try:
        found = video.stat()
    except OSError as error:
        raise SourceError(f"{video}: cannot be read ({error.strerror})") from None
    return f"{found.st_size} {found.st_mtime_ns}"


def write_origin(frames: Path, name: str, stamp: str) -> None:
    """Write the file of origin into a folder of frames. Raises ``OSError``."""
    (frames / ORIGIN_FILE).write_text(f"{name}\n{stamp}\n", encoding="utf-8")


def are_current(frames: Path, name: str, stamp: str) -> bool:
    """Return whether existing frames are of a video as it is now: it may have been replaced under its name.

    Frames whose file of origin has no stamp, as earlier versions wrote it, count as current.

    Args:
        frames: their folder.
        name: of the video, by its path in the folder of videos.
        stamp: of the video now.

    Raises ``UsageError`` if they are another video's, whose name may differ by its suffix only.
    """
    try:
        text = decode_text(read_own(frames / ORIGIN_FILE)).strip()
    except (FileNotFoundError, UnicodeError):  # of an earlier version
        return True
    origin, _, before = text.rpartition("\n")
    if not STAMP.fullmatch(before):
        origin, before = text, stamp
    if origin.strip() != name.strip():
        raise UsageError(f"{frames}: holds the frames of {origin}, not of {name}: remove it, then run again")
    return before == stamp

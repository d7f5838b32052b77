"""The declared end of a Matroska or WebM file, which alone shows reliably whether the file was cut short."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

EBML_HEAD = 0x1A45DFA3
SEGMENT = 0x18538067


def matroska_end(path: Path) -> int | None:
    """Return the size of a file in bytes that its header declares; None if unknown, as for a live recording.

    Source: RFC 8794 (EBML), sections 5 and 6; RFC 9559 (Matroska), section 5.1.
    """
    with path.open("rb") as file:
        while True:
            kind, size = _read_number(file, keep_marker=True), _read_number(file, keep_marker=False)
            if kind is None or size is None:
                return None
            if kind == SEGMENT:
                return file.tell() + size
            if kind != EBML_HEAD and file.tell() > 1 << 20:
                return None
            file.seek(size, 1)


def _read_number(file: BufferedReader, *, keep_marker: bool) -> int | None:
    """Read a number of variable length; return None at the end of the file, and for an unknown size (all ones)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    if len(rest) < length - 1:
        return None
    number = int.from_bytes(first + rest, "big")
    if keep_marker:
        return number
    bits = 7 * length
    value = number & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value

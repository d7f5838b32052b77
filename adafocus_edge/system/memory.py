"""The heap of a process that runs for months, where the C library is glibc; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
from contextlib import suppress

MAX_ARENAS = 2
M_ARENA_MAX = -8
"""Of glibc's ``mallopt``."""


def limit_malloc_arenas() -> None:
    """Let all threads share few heaps: one for each of a hundred threads would fragment over months of frames."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, MAX_ARENAS)


def trim() -> None:
    """Return free memory to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

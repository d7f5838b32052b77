"""The heap of a process that runs for months, with glibc; with other C libraries these functions do nothing."""

from __future__ import annotations

import ctypes
from contextlib import suppress

MAX_ARENAS = 2
M_ARENA_MAX = -8
"""Parameter of glibc's ``mallopt``."""


def limit_malloc_arenas() -> None:
    """Make all threads share :data:`MAX_ARENAS` heaps: one per thread would fragment over months of frames."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, MAX_ARENAS)


def trim() -> None:
    """Return free memory to the operating system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

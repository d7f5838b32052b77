"""Obstacles: why something cannot run on this machine. Asks the driver for a GPU."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot run on this machine.

    Attributes:
        why: in words.
        fix: the command or step that removes the obstacle; empty if this machine lacks the hardware.
    """

    why: str
    fix: str = ""


def gpu_obstacle() -> Obstacle | None:
    """Ask the driver for a GPU; return why there is no usable one, or None."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return Obstacle(f"no NVIDIA driver was found ({name})")
    if status := driver.cuInit(0):
        return Obstacle(f"the NVIDIA driver finds no usable GPU (cuInit returned {status})")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return Obstacle("the NVIDIA driver finds no GPU")
    return None

"""Real video files of many kinds, encoded for a test from the frames of a real clip."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from adafocus_edge.video import OPEN_OPTIONS
from tests.conftest import CLIPS

CLIP = CLIPS / "R6llTwEh07w.mp4"


def encode(path: Path, frames: int = 120, codec: str = "libx264", options: Any = None, **more: Any) -> Path:
    """Encode frames of a real clip: ``more`` sets ``pix_fmt``, ``pts`` (a list), ``rate`` and ``size``."""
    with av.open(str(CLIP)) as source, av.open(f"file:{path}", "w") as target:
        rate = more.get("rate", 30)
        stream = target.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = more.get("size", (320, 240))
        stream.pix_fmt = more.get("pix_fmt", "yuv420p")
        for number, frame in enumerate(source.decode(video=0)):
            if number == frames:
                break
            image = frame.reformat(stream.width, stream.height, stream.pix_fmt)
            image.pts = more["pts"][number] if "pts" in more else number
            image.time_base = Fraction(1, rate)
            target.mux(stream.encode(image))
        target.mux(stream.encode(None))
    return path


def all_frames(path: Path) -> list[np.ndarray]:
    """Decode a whole file from its start, with a plain loop of PyAV's own."""
    with av.open(f"file:{path}", **OPEN_OPTIONS) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rotate_clockwise(path: Path) -> None:
    """Set an MP4's display matrix as a phone held upright does: 90 degrees clockwise."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    assert content[at] == 0, "version 0 of the box"
    matrix = at + 40
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 240 * one, 0, 1 << 30)
    path.write_bytes(content)

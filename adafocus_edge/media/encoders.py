"""The encoder that videos are written with."""

from __future__ import annotations

import av

TICKS = 60_000
"""Clock of written videos, in ticks per second. MPEG-4 Part 2, the codec without x264, allows at most 65,535."""


def video_encoder() -> str:
    """Return the best encoder of this machine's FFmpeg: x264, or else its own MPEG-4 Part 2."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"

"""The encoder that videos are written with."""

from __future__ import annotations

import av

TICKS = 60_000
"""Clock of written videos, in ticks per second. MPEG-4 Part 2, the codec without x264, allows at most 65,535."""

ENCODER_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "tune": "zerolatency", "sc_threshold": "0"},
    "mpeg4": {"flags": "+qscale", "global_quality": "472"},  # 4 times 118, the unit of its quantiser: visually good
}
"""Of each encoder, for live video."""
FRAGMENTED = {"movflags": "empty_moov+frag_keyframe+default_base_moof", "flush_packets": "1"}
"""Of an MP4 that can be played while it grows, and after a crash."""
VIDEO_CONTAINERS = (".mp4", ".mov", ".mkv")
"""Suffixes of annotated videos."""


def video_encoder() -> str:
    """Return the best encoder of this machine's FFmpeg: x264, or else its own MPEG-4 Part 2."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"

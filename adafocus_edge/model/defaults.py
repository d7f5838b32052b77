"""Defaults that the packages share."""

from __future__ import annotations

SEED = 1007
"""The random seed where none is given: the official code's."""
DEFAULT_GLIMPSE_FPS = 2.0
"""Glimpses per second of live sources."""

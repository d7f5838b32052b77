"""Defaults that the packages share."""

from __future__ import annotations

SEED = 1007
"""The random seed where none is given: the official code's."""

"""Measurements against peers; not part of the wheel."""

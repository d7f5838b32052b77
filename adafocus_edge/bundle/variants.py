"""The variants of a bundle: which of them are chosen, where they run, and what they need."""

from __future__ import annotations

EXACT_INT8 = frozenset({"int8-trt"})
"""Variants for devices that add 8-bit products exactly: a CPU that may not do so runs them in floats, slower."""
VARIANT_PREFERENCE = ("fp32",)
"""What ``--variant auto`` takes, best first. Variants that a calibration adds are chosen by name."""
ON_CPU = ("fp32", "int8-cpu")
"""Variants that are made for a CPU; a calibration times all of them on one."""

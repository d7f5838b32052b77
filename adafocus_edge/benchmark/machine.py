"""Describe the machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adafocus_edge import __version__
from adafocus_edge.doctor import VECTOR_FLAGS, examine
from adafocus_edge.system.cpu import physical_cores, processor, usable_cores

LIBRARIES = (
    "numpy", "onnxruntime-gpu", "onnxruntime", "av", "pillow", "torch", "torchvision", "openvino", "tensorrt",
    "tensorrt-rtx-cu13-libs", "cuda-bindings",
)  # fmt: skip
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, GPU and driver, system, and the versions of the libraries."""
    name, flags = processor()
    findings = {finding.part: finding.detail for finding in examine()}
    versions = {"adafocus-edge": __version__}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    governor = None
    with suppress(OSError):
        governor = GOVERNOR.read_text().strip()
    return {
        "processor": findings["processor"],
        "cpu": name,
        "cpu_flags": [flag for flag in VECTOR_FLAGS if flag in flags],
        "cores": physical_cores(),
        "usable_cores": usable_cores(),
        "governor": governor,
        "virtual": "hypervisor" in flags,
        "memory": findings["memory"],
        "gpu": findings["NVIDIA GPU"],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def same_machine(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Return whether two reports' machines are similar enough to compare milliseconds."""
    return all(ours.get(part) == theirs.get(part) for part in ("cpu", "usable_cores", "gpu"))

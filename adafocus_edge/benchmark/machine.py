"""Describe the machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adafocus_edge import __version__
from adafocus_edge.doctor import VECTOR_FLAGS, examine
from adafocus_edge.system.cpu import physical_cores, processor, usable_cores

LIBRARIES = (
    "numpy", "onnxruntime-gpu", "onnxruntime", "av", "pillow", "torch", "torchvision", "openvino", "tensorrt",
    "tensorrt-rtx-cu13-libs", "cuda-bindings",
)  # fmt: skip
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement.

    Attributes:
        processor: name, cores and vector instructions, in words.
        cpu: the processor's name.
        cpu_flags: its vector instructions.
        cores: physical cores.
        usable_cores: cores that this process may use.
        governor: scaling governor of the first core, or None if unknown.
        virtual: whether it is a virtual machine.
        memory: main memory, in words.
        gpu: GPU and driver, in words.
        system: operating system.
        python: version of Python.
        versions: versions of the libraries, by name.
        load_average: load of the last minute, or None if unknown.
    """

    processor: str
    cpu: str
    cpu_flags: list[str]
    cores: int
    usable_cores: int
    governor: str | None
    virtual: bool
    memory: str
    gpu: str
    system: str
    python: str
    versions: dict[str, str]
    load_average: float | None


def describe() -> Machine:
    """Describe this machine."""
    name, flags = processor()
    findings = {finding.part: finding.detail for finding in examine()}
    versions = {"adafocus-edge": __version__}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    governor = None
    with suppress(OSError):
        governor = GOVERNOR.read_text().strip()
    return Machine(
        processor=findings["processor"],
        cpu=name,
        cpu_flags=[flag for flag in VECTOR_FLAGS if flag in flags],
        cores=physical_cores(),
        usable_cores=usable_cores(),
        governor=governor,
        virtual="hypervisor" in flags,
        memory=findings["memory"],
        gpu=findings["NVIDIA GPU"],
        system=platform.platform(),
        python=platform.python_version(),
        versions=versions,
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def same_machine(ours: Machine, theirs: Machine) -> bool:
    """Return whether two reports' machines are similar enough to compare milliseconds."""
    return (ours.cpu, ours.usable_cores, ours.gpu) == (theirs.cpu, theirs.usable_cores, theirs.gpu)

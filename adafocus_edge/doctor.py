"""`adafocus-edge doctor`: reports what this machine can run, what is missing, and the command that adds it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from adafocus_edge import __version__
from adafocus_edge.backends.base import CPU_BACKEND, ORT_TENSORRT_BACKEND
from adafocus_edge.backends.registry import BACKEND_TABLE, Backend
from adafocus_edge.errors import BackendError
from adafocus_edge.system.console import STYLE
from adafocus_edge.system.cpu import physical_cores, processor, usable_cores

VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
"""CPU features that decide the speed of FP32 and INT8."""

OTHERWISE_REPORTED = (CPU_BACKEND, ORT_TENSORRT_BACKEND, "tensorrt")
"""Backends whose packages and libraries have their own lines; every other backend has a line by its name."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        part: the examined part.
        status: ``ok``, ``missing`` (can be added) or ``none`` (this machine does not have it).
        detail: its version, or the finding.
        fix: the command or step that adds it; empty if there is nothing to do.
    """

    part: str
    status: str
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Examine all parts and return the findings."""
    return [
        Finding("adafocus-edge", "ok", f"{__version__} in {Path(__file__).parent}"),
        Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        _cpu(),
        _memory(),
        _nvidia(),
        _package("onnxruntime", CPU_BACKEND, ("onnxruntime-gpu", "onnxruntime"), ""),
        *(_backend(backend) for backend in BACKEND_TABLE if backend.name not in OTHERWISE_REPORTED),
        _decoder(),
        _package("cv2", "cameras (OpenCV)", ("opencv-python-headless", "opencv-python"), ""),
        _cameras(),
        _package("starlette", "serve: Starlette", ("starlette",), "serve"),
        _package("uvicorn", "serve: uvicorn", ("uvicorn",), "serve"),
        _package("multipart", "serve: multipart", ("multipart",), "serve"),
        _package("prometheus_client", "serve: prometheus-client", ("prometheus-client",), "serve"),
        _package("tomlkit", "serve: tomlkit", ("tomlkit",), "serve"),
        _package("paho.mqtt", "--mqtt: paho-mqtt", ("paho-mqtt",), "mqtt"),
        _package("pygame", "--show: pygame-ce", ("pygame-ce", "pygame"), "show"),
        _package("pyarrow", "classify -o *.parquet, archives: pyarrow", ("pyarrow",), "parquet"),
        _package("ray", "--engine ray: Ray", ("ray",), "ray"),
        _package("fsspec", "--engine ray: fsspec", ("fsspec",), "ray"),
        _package("tritonclient.grpc", "--engine triton://: tritonclient", ("tritonclient",), "triton"),
        _package("torch", "train, export: PyTorch", ("torch",), "export"),
        _package("torchvision", "train, export: torchvision", ("torchvision",), "export"),
        _package("hydra", "train: Hydra", ("hydra-core",), "train"),
        _package("tensorboard", "train: TensorBoard", ("tensorboard",), "train"),
        _package("matplotlib", "evaluate --plot: matplotlib", ("matplotlib",), "plot"),
        _package("onnx", "export: ONNX", ("onnx",), "export"),
        _package("onnxscript", "export: ONNX exporter", ("onnxscript",), "export"),
        _package("ml_dtypes", "calibrate: ml_dtypes", ("ml_dtypes",), "calibrate"),
        _package("cuda.bindings", "CUDA from Python (cuda-bindings)", ("cuda-bindings",), "gpu"),
        *(_tensorrt(name) for name in ("tensorrt", "tensorrt-rtx")),
        _package("PyNvVideoCodec", "--decoder gpu (PyNvVideoCodec)", ("PyNvVideoCodec",), "nvdec"),
    ]


def findings_table(findings: list[Finding]) -> Table:
    """Return the findings as a table."""
    table = Table("part", "status", "found", "to add it", **STYLE)
    colours = {"ok": "green", "missing": "yellow", "none": "dim"}
    for finding in findings:
        colour = colours[finding.status]
        table.add_row(finding.part, f"[{colour}]{finding.status}[/]", escape(finding.detail), escape(finding.fix))
    return table


def findings_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON objects."""
    return [asdict(finding) for finding in findings]


def _cpu() -> Finding:
    name, found = processor()
    flags = " ".join(flag for flag in VECTOR_FLAGS if flag in found)
    cores, usable = physical_cores(), usable_cores()
    limit = f", {usable} allowed by the container" if usable < cores else ""
    return Finding("processor", "ok", f"{name}: {cores} cores{limit}{'; ' + flags if flags else ''}")


def _memory() -> Finding:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Finding("memory", "ok", "unknown")
    return Finding("memory", "ok", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB")


def _nvidia() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        try:
            found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("NVIDIA GPU", "none", f"nvidia-smi does not answer ({type(error).__name__})")
        if found.returncode == 0 and found.stdout.strip():
            return Finding("NVIDIA GPU", "ok", "; ".join(found.stdout.strip().splitlines()))
    if Path("/etc/nv_tegra_release").is_file():
        return Finding("NVIDIA GPU", "ok", "Jetson: " + Path("/etc/nv_tegra_release").read_text().splitlines()[0])
    return Finding("NVIDIA GPU", "none", "no GPU, or no driver (nvidia-smi finds none)")


def _cameras() -> Finding:
    """List the local cameras by the names that their drivers report."""
    found = []
    for device in sorted(Path("/sys/class/video4linux").glob("video*")):
        with suppress(OSError):
            found.append(f"/dev/{device.name} ({(device / 'name').read_text().strip()})")
    return Finding("cameras", "ok" if found else "none", ", ".join(found) or "no local camera")


def _installed(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def _package(module: str, part: str, distributions: tuple[str, ...], extra: str) -> Finding:
    fix = f"pip install 'adafocus-edge[{extra}]'" if extra else f"pip install {distributions[0]}"
    found = _installed(distributions)
    if found and extra:  # PyTorch and similar packages take seconds to load, so they count if they are installed
        return Finding(part, "ok", found)
    try:
        loaded = import_module(module)
    except Exception as error:  # a package may fail in any way while it is imported
        return Finding(part, "missing", f"{found} cannot be loaded: {error}" if found else "", fix)
    # A system package (for example JetPack's OpenCV) is unknown to pip.
    return Finding(part, "ok", found or f"{module} {getattr(loaded, '__version__', '')}")


def _guarded(part: str, inspect: Callable[[], Finding]) -> Finding:
    try:
        return inspect()
    except Exception as error:
        return Finding(part, "missing", str(error), "pip install --force-reinstall adafocus-edge")


def _backend(backend: Backend) -> Finding:
    def inspect() -> Finding:
        if (obstacle := backend.obstacle()) is not None:
            return Finding(backend.name, "missing" if obstacle.fix else "none", obstacle.why, obstacle.fix)
        found = "driver, GPU and CUDA libraries are there" if backend.on_gpu else "can run here"
        if (hint := backend.hint()) is not None:
            return Finding(backend.name, "ok", f"{found}; {hint.why}", hint.fix)
        return Finding(backend.name, "ok", found)

    return _guarded(backend.name, inspect)


def _decoder() -> Finding:
    part = "video decoding (PyAV)"

    def inspect() -> Finding:
        import av

        from adafocus_edge.media.encoders import video_encoder

        known = [name for name in ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg") if name in av.codecs_available]
        return Finding(part, "ok", f"av {av.__version__}: {' '.join(known)}; writes {video_encoder()}")

    return _guarded(part, inspect)


def _tensorrt(name: str) -> Finding:
    from adafocus_edge.backends.device.cuda import find_gpu
    from adafocus_edge.backends.tensorrt.library import INSTALL, NAMES, find_library

    part = f"build, backend tensorrt: {NAMES[name]}"
    try:
        library = find_library(name)
    except BackendError:
        return Finding(part, "missing" if sys.platform == "linux" else "none", "not installed", INSTALL[name])
    with suppress(BackendError):  # cuda-bindings are missing, which their own line reports
        gpu = find_gpu()
        if gpu is not None and (obstacle := library.gpu_obstacle(gpu)) is not None:
            return Finding(part, "none", obstacle)
    return Finding(part, "ok", library.title)

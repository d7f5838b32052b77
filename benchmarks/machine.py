"""What machine a measurement was made on, so that its numbers can be read later."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adafocus_edge.doctor import examine

RESULTS = Path(__file__).with_name("results")


def describe() -> dict[str, Any]:
    """Return processor, memory, GPU and the versions of what was measured."""
    findings = {finding.part: finding.detail for finding in examine()}
    versions = {}
    for name in ("torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "numpy", "av", "pillow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        **{part: findings[part] for part in ("processor", "memory", "NVIDIA GPU")},
        "python": platform.python_version(),
        "versions": versions,
    }


def save(name: str, report: dict[str, Any]) -> Path:
    """Write a report to ``benchmarks/results/NAME.json``, with the machine it was made on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **report}, indent=2) + "\n")
    return path

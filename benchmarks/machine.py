"""Write the benchmarks' reports, each with the machine that it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adafocus_edge.benchmark.machine import describe
from adafocus_edge.benchmark.schema import to_json

RESULTS = Path(__file__).with_name("results")


def save(name: str, report: dict[str, Any]) -> Path:
    """Write a report to ``benchmarks/results/NAME.json``, with this machine; return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": to_json(describe()), **report}, indent=2) + "\n")
    return path

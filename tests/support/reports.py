"""Small reports of a benchmark, made by hand."""

from __future__ import annotations

from typing import Any

from adafocus_edge.benchmark.machine import Machine
from adafocus_edge.benchmark.schema import SCHEMA, Data, Report, RowReport
from adafocus_edge.benchmark.stats import Summary

MACHINE = Machine(
    processor="a processor", cpu="a processor", cpu_flags=[], cores=2, usable_cores=2, governor=None, virtual=False,
    memory="8 GB", gpu="none", system="Linux", python="3.12", versions={}, load_average=None,
)  # fmt: skip


def times(median: float, p95: float | None = None, p99: float | None = None) -> Summary:
    """Return times of 30 rounds; the percentiles are the median unless given."""
    return Summary(median, p95 or median, p99 or median, median, 0.0, median, median, 30)


def report_row(number: int, model_ms: Summary, **more: Any) -> RowReport:
    """Return a row of the clip schedule."""
    fields: dict[str, Any] = {
        "id": number, "key": f"row {number}", "bundle": "b", "patch_size": 128, "backend": "onnxruntime-cpu",
        "variant": "fp32", "schedule": "clip", "exit": None, "segments": 8, "streams": 1, "threads": 2, "peer": False,
        "model_ms": model_ms, "whole_ms": model_ms, "step_ms": None, "clips_per_s": 1.0, "size_mb": 1.0,
        "cold_start_ms": 1.0, "host_mb": 1.0, "device_mb": None, "joules_per_clip": None, "mean_steps": 8.0,
        "parts_ms": None, "parts_over_whole": None, "gflops_per_clip": 1.0, "same_time_as": (), "on_front": False,
        "on_whole_front": False, "on_gflops_front": False,
    }  # fmt: skip
    return RowReport(**{**fields, **more})


def report_with(*rows: RowReport, data: Data | None = None) -> Report:
    """Return a report of rows."""
    return Report(
        schema=SCHEMA, machine=MACHINE, data=data, rounds=30, yardstick_ms=None, energy_of=None, rows=rows,
        skipped=(), findings=(),
    )  # fmt: skip

"""Format the parts' results as a table in Markdown, and check which goals are reached."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.official import ROOT

GOALS = {"step_ms": 1.0, "host_share": 0.10, "clips_per_s": 2000.0, "times_eager": 3.0}
"""Goals for an H200-class GPU with the official model at 128 x 128 in FP16."""
PAGE_TABLE = re.compile(r"(<!-- gpu-check -->\n).*?(<!-- /gpu-check -->)", re.DOTALL)


def rows_of(report: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """Return the rows of a part, even if it was cut short."""
    found: list[dict[str, Any]] = report["parts"].get(part, {}).get("result", {}).get("rows", [])
    return found


def reached(report: dict[str, Any]) -> dict[str, Any]:
    """Return the goals that the fastest backend in FP16 reached, and that backend; None for goals not measured."""
    steps = [row for row in rows_of(report, "latency") if row["variant"] == "fp16"]
    speeds = [row for row in rows_of(report, "throughput") if row["variant"] == "fp16" and "best_clips_per_s" in row]
    eager = {
        p["precision"][:4]: float(p["step_ms"]["p50"])
        for p in rows_of(report, "peers")
        if p["peer"].startswith("eager") and "step_ms" in p
    }
    found: dict[str, Any] = dict.fromkeys(GOALS)
    if steps:
        best = min(steps, key=lambda row: float(row["step_ms"]["p50"]))
        step_ms = best["step_ms"]["p50"]
        found |= {"backend_of_steps": best["backend"], "step_ms": step_ms <= GOALS["step_ms"]}
        if best["host_share"] is not None:
            found["host_share"] = best["host_share"] <= GOALS["host_share"]
        if "fp16" in eager:  # a comparison with FP32 would not be fair
            found["times_eager"] = min(eager.values()) / step_ms >= GOALS["times_eager"]
    if speeds:
        best = max(speeds, key=lambda row: float(row["best_clips_per_s"]))
        found |= {
            "backend_of_clips": best["backend"],
            "clips_per_s": best["best_clips_per_s"] >= GOALS["clips_per_s"],
        }
    return found


def table(report: dict[str, Any]) -> list[str]:
    """Return the report as a table in Markdown."""
    lines = [
        "| on " + report["device"] + " | precision | step ms p50 / p95 / p99 | clip ms p50 | clips/s, streams | "
        "logits off by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for part in ("latency", "throughput", "parity"):
        for row in rows_of(report, part):
            found.setdefault((row["backend"], row["variant"]), {})[part] = row
    for (backend, variant), by_part in found.items():
        cells = [backend, variant]
        step = by_part.get("latency")
        cells += [_times(step), f"{step['clip_ms']['p50']:.2f}"] if step else ["", ""]
        rows = [one for where in by_part.get("throughput", {}).get("frames_in", {}).values() for one in where]
        best = max(rows, key=lambda one: float(one["clips_per_s"]), default=None)
        cells.append(f"{best['clips_per_s']:.0f}, {best['streams']}" if best else "")
        agreement = by_part.get("parity")
        cells.append(f"{agreement['largest_logit_error']:.1e}" if agreement else "")
        lines.append(f"| {' | '.join(cells)} |")
    for peer in rows_of(report, "peers"):
        times = _times(peer) if "step_ms" in peer else "failed"
        lines.append(f"| {peer['peer']} | {peer['precision']} | {times} | | | |")
    floor = report["parts"].get("floor", {}).get("result", {})
    for precision in ("fp32", "fp16"):
        if precision in floor:
            lines.append(f"| floor | {precision} | {floor[precision]['step_ms']:.3f} | | | |")
    for run in rows_of(report, "live"):
        lines.append(
            f"| live, {run['sources']} sources at {run['glimpse_fps']:g}/s | {run['variant']} | "
            f"glimpse p99 {run['p99_ms']} | | {run['glimpses_per_s']:.0f} glimpses/s, {run['dropped']} dropped | |"
        )
    return lines


def _times(row: dict[str, Any]) -> str:
    return " / ".join(f"{value:.2f}" for value in row["step_ms"].values())


def write_page(report: dict[str, Any]) -> None:
    """Replace the table in docs/results/gpu.md."""
    path = ROOT / "docs" / "results" / "gpu.md"
    text = path.read_text()
    made = "\n".join(table(report)) + "\n"
    path.write_text(PAGE_TABLE.sub(lambda found: found[1] + made + found[2], text))

"""Print a benchmark's report for people: tables on a terminal, Markdown, CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from adafocus_edge.benchmark.schema import to_json
from adafocus_edge.benchmark.settings import PEERS
from adafocus_edge.benchmark.stats import MIN_ROUNDS
from adafocus_edge.system.console import STYLE
from adafocus_edge.system.csv_lines import csv_header, csv_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from adafocus_edge.benchmark.schema import Report, RowReport
    from adafocus_edge.benchmark.stats import Summary

IDENTITY = ("bundle", "backend", "variant", "schedule", "exit", "segments", "streams", "threads")
"""Fields that identify a row; those that are equal in all rows are printed once, below the table."""
SETTING = "setting"
MAX_TIES = 4
"""Max rows listed in the column ``as fast as``."""
CSV_TIMES = ("model_ms", "whole_ms", "step_ms")
CSV_COLUMNS = (
    "id", *IDENTITY, "peer", "top1", "top1_low", "top1_high", "mAP", "mean_steps", "gflops_per_clip",
    *(f"{time}_{what}" for time in CSV_TIMES for what in ("median", "p95", "p99", "min", "spread")),
    "clips_per_s", "load_ms", "cold_start_ms", "size_mb", "host_mb", "device_mb", "joules_per_clip",
    *(f"{part}_ms" for part in ("decode", "preprocess", "glance", "policy", "focus", "classify", "model", "host")),
    "parts_over_whole", "on_front", "on_whole_front", "on_gflops_front", "same_time_as", "timed_steps",
)  # fmt: skip


def _time(entry: Summary | None) -> str:
    if entry is None:
        return ""
    digits = 2 if entry.median < 10 else 1
    return f"{entry.median:.{digits}f} ± {entry.spread:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def setting(row: RowReport, varying: Collection[str]) -> str:
    """Return a row's name, made of the fields in which rows differ."""
    words = [row.bundle] if "bundle" in varying else []
    if row.peer:
        return " ".join([*words, row.backend])
    words += [getattr(row, name) for name in ("backend", "variant") if name in varying]
    words += [f"exit {row.exit}" if row.exit else row.schedule]
    words += [f"{row.segments} frames"] if "segments" in varying else []
    words += [f"x {row.streams}"] if "streams" in varying else []
    words += [f"{row.threads} threads"] if "threads" in varying else []
    return " ".join(words)


def _accuracy(row: RowReport) -> str:
    if row.top1 is None:
        return ""
    low, high = row.interval
    return f"{row.top1:.1f} % ({low:.0f} to {high:.0f})"


def _steps(row: RowReport) -> str:
    timed = "" if row.timed_steps is None else f" (timed {row.timed_steps:.1f})"
    return f"{row.mean_steps:.1f}{timed}"


def _ties(row: RowReport) -> str:
    ties = [str(number) for number in row.same_time_as]
    return ", ".join(ties[:MAX_TIES]) + (", ..." if len(ties) > MAX_TIES else "")


def varying_fields(rows: Iterable[RowReport]) -> set[str]:
    """Return the identifying fields in which rows differ."""
    rows = list(rows)
    return {name for name in IDENTITY if len({getattr(row, name) for row in rows}) > 1}


def columns(report: Report) -> dict[str, Callable[[RowReport], str]]:
    """Return the main table's columns: the headings, each with the function that formats a row's cell."""
    rows = report.rows
    varying = varying_fields(rows)
    shown: dict[str, Callable[[RowReport], str]] = {
        "": lambda row: "*" if row.on_front else "",
        "row": lambda row: str(row.id),
        SETTING: lambda row: setting(row, varying),
    }
    if any(row.top1 is not None for row in rows):
        shown["top-1 (95 %)"] = _accuracy
    shown |= {
        "steps": _steps,
        "GFLOPs": lambda row: f"{row.gflops_per_clip:.2f}",
        "model ms": lambda row: _time(row.model_ms),
        "p95": lambda row: f"{row.model_ms.p95:.1f}",
        "whole ms": lambda row: _time(row.whole_ms),
        "ms/step": lambda row: _time(row.step_ms),
        "clips/s": lambda row: f"{row.clips_per_s:.1f}",
        "MB": lambda row: _number(row.size_mb, 1),
        "memory MB": lambda row: f"{row.host_mb:.0f}",
    }
    if any(row.device_mb is not None for row in rows):
        shown["GPU MB"] = lambda row: _number(row.device_mb, 0)
    if any(row.joules_per_clip is not None for row in rows):
        shown["J/clip"] = lambda row: _number(row.joules_per_clip, 2)
    shown["cold ms"] = lambda row: f"{row.cold_start_ms:.0f}"
    shown["as fast as"] = _ties
    return shown


def part_names(rows: Iterable[RowReport]) -> list[str]:
    """Return the names of all parts of the rows' times, in order, ``host`` last."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row.parts_ms or ())
    return sorted(names, key=lambda name: name == "host")


def same_in_all(report: Report) -> str:
    """Return the fields that are equal in all rows, with their values."""
    values = {name: {getattr(row, name) for row in report.rows} for name in IDENTITY}
    return ", ".join(f"{name} {found.pop()}" for name, found in values.items() if len(found) == 1 and None not in found)


def about(report: Report) -> list[str]:
    """Return the clips, rounds, machine and noise of the measurement, a line each."""
    machine, data = report.machine, report.data
    clips = f"{data.clips} clips of {data.origin}" if data else "synthetic frames without clips: latency only"
    lines = [
        f"{clips}; {report.rounds} rounds; {same_in_all(report)}",
        f"{machine.processor}; {machine.memory}; GPU: {machine.gpu}",
    ]
    if machine.virtual:
        lines.append("a virtual machine: others may use the same processor")
    if (yardstick := report.yardstick_ms) and yardstick.median:
        share = yardstick.spread / yardstick.median
        lines.append(
            f"the same work took {_time(yardstick)} ms over the rounds: the machine's own noise is {share:.0%}"
        )
    if report.rounds < MIN_ROUNDS:
        lines.append(f"fewer than {MIN_ROUNDS} rounds are too few to decide which rows are as fast as others")
    lines.append("energy: " + (report.energy_of or "not reported by this system"))
    return lines


LEGEND = (
    "* no other row is both as fast and more accurate, or as accurate and faster; ms: median ± half the span of the "
    "middle 90 %; model: the glimpse loop, whole: from opening the file; as fast as: rows whose times do not differ "
    "significantly"
)


def tables(report: Report) -> Iterable[Table | str]:
    """Yield the report as tables and lines for a terminal, to be printed without markup."""
    main = Table(title="accuracy against latency", caption=LEGEND, caption_justify="left", **STYLE)
    shown = columns(report)
    for name in shown:
        main.add_column(name, justify="left" if name in ("", SETTING) else "right", no_wrap=name != SETTING)
    for row in report.rows:
        main.add_row(*(of_row(row) for of_row in shown.values()))
    yield main
    if (parts := _parts_table(report)) is not None:
        yield parts
    if report.skipped:
        left = Table("setting", "why", title="skipped", **STYLE)
        for entry in report.skipped:
            left.add_row(entry.what, entry.why)
        yield left
    yield from (f"- {sentence}" for sentence in report.findings)
    yield from about(report)


def _parts_table(report: Report) -> Table | None:
    rows = [row for row in report.rows if row.parts_ms]
    if not rows:
        return None
    names = part_names(rows)
    table = Table(title="time per clip, by part, in ms (medians)", **STYLE)
    table.add_column("row")
    for name in (*names, "sum of parts", "whole", "sum/whole"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_parts_cells(row, names))
    return table


def _parts_cells(row: RowReport, names: list[str]) -> list[str]:
    parts = row.parts_ms or {}
    found = [f"{parts[name].median:.2f}" if name in parts else "" for name in names]
    together = sum(entry.median for entry in parts.values())
    whole = None if row.whole_ms is None else row.whole_ms.median
    return [str(row.id), *found, f"{together:.2f}", _number(whole, 2), _number(row.parts_over_whole, 3)]


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    shown = columns(report)
    lines = [*_markdown_table(list(shown), [[cell(row) for cell in shown.values()] for row in report.rows]), LEGEND]
    rows = [row for row in report.rows if row.parts_ms]
    if rows:
        names = part_names(rows)
        heads = ["row", *names, "sum of parts", "whole", "sum/whole"]
        lines += ["", "Time per clip, by part, in ms (medians):", ""]
        lines += _markdown_table(heads, [_parts_cells(row, names) for row in rows])
    lines += ["", *(f"- {sentence}" for sentence in report.findings), "", *about(report)]
    lines += ["", "Skipped:", ""] if report.skipped else []
    lines += [f"- {entry.what}: {entry.why}" for entry in report.skipped]
    used = [row.backend for row in report.rows if row.backend in PEERS]
    lines += ["", *(f"- `{peer}`: {PEERS[peer]}" for peer in dict.fromkeys(used))]
    return "\n".join(lines) + "\n"


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows), ""]


def csv_text(report: Report) -> str:
    """Return the rows as CSV, with a header line."""
    lines = [csv_header(CSV_COLUMNS)]
    for row in report.rows:
        flat = to_json(row)
        for time in CSV_TIMES:
            flat |= {f"{time}_{what}": value for what, value in (flat.pop(time) or {}).items()}
        flat |= {f"{part}_ms": entry.median for part, entry in (row.parts_ms or {}).items()}
        flat["top1_low"], flat["top1_high"] = row.top1_interval_95 or (None, None)
        flat["same_time_as"] = " ".join(map(str, row.same_time_as))
        lines.append(csv_line(CSV_COLUMNS, flat))
    return "".join(lines)

"""A benchmark's report as people read it: tables on a terminal, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from rich.table import Table

from adafocus_edge.benchmark.settings import PEERS
from adafocus_edge.system.console import STYLE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from adafocus_edge.benchmark.report import Report

IDENTITY = ("bundle", "backend", "variant", "schedule", "exit", "segments", "streams", "threads")
"""What tells rows apart; what is the same in all of them is said once."""
SETTING = "setting"
MAX_TIES = 4
"""Rows named in the column of those that take as long."""
CSV_TIMES = ("model_ms", "whole_ms", "step_ms")
CSV_COLUMNS = (
    "id", *IDENTITY, "peer", "top1", "top1_low", "top1_high", "mAP", "mean_steps", "gflops_per_clip",
    *(f"{time}_{what}" for time in CSV_TIMES for what in ("median", "p95", "p99", "min", "spread")),
    "clips_per_s", "load_ms", "cold_start_ms", "size_mb", "host_mb", "device_mb", "joules_per_clip",
    *(f"{part}_ms" for part in ("decode", "preprocess", "glance", "policy", "focus", "classify", "model", "host")),
    "parts_over_whole", "on_front", "on_whole_front", "on_gflops_front", "same_time_as",
)  # fmt: skip


def _time(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    digits = 2 if entry["median"] < 10 else 1
    return f"{entry['median']:.{digits}f} ± {entry['spread']:.{digits}f}"


def _number(form: str) -> Callable[[Any], str]:
    return lambda value: "" if value is None else form.format(value)


def setting(row: Report, varying: Collection[str]) -> str:
    """Call a row by what tells it from the others."""
    words = [row["bundle"]] if "bundle" in varying else []
    if row["peer"]:
        return " ".join([*words, row["backend"]])
    words += [row[name] for name in ("backend", "variant") if name in varying]
    words += [f"exit {row['exit']}" if row["exit"] else row["schedule"]]
    words += [f"{row['segments']} frames"] if "segments" in varying else []
    words += [f"x {row['streams']}"] if "streams" in varying else []
    words += [f"{row['threads']} threads"] if "threads" in varying else []
    return " ".join(words)


def _accuracy(row: Report) -> str:
    if "top1" not in row:
        return ""
    low, high = row["top1_interval_95"]
    return f"{row['top1']:.1f} % ({low:.0f} to {high:.0f})"


def _ties(row: Report) -> str:
    ties = [str(number) for number in row["same_time_as"]]
    return ", ".join(ties[:MAX_TIES]) + (", ..." if len(ties) > MAX_TIES else "")


def columns(report: Report) -> dict[str, Callable[[Report], str]]:
    """Return what the main table shows: headings, and what to put under each for a row."""
    rows = report["rows"]
    varying = {name for name in IDENTITY if len({row[name] for row in rows}) > 1}
    shown: dict[str, Callable[[Report], str]] = {
        "": lambda row: "*" if row["on_front"] else "",
        "row": lambda row: str(row["id"]),
        SETTING: lambda row: setting(row, varying),
    }
    if any("top1" in row for row in rows):
        shown["top-1 (95 %)"] = _accuracy
    shown |= {
        "steps": lambda row: f"{row['mean_steps']:.1f}",
        "GFLOPs": lambda row: f"{row['gflops_per_clip']:.2f}",
        "model ms": lambda row: _time(row["model_ms"]),
        "p95": lambda row: f"{row['model_ms']['p95']:.1f}",
        "whole ms": lambda row: _time(row["whole_ms"]),
        "ms/step": lambda row: _time(row["step_ms"]),
        "clips/s": lambda row: f"{row['clips_per_s']:.1f}",
        "MB": lambda row: _number("{:.1f}")(row["size_mb"]),
        "memory MB": lambda row: f"{row['host_mb']:.0f}",
    }
    if any(row["device_mb"] is not None for row in rows):
        shown["GPU MB"] = lambda row: _number("{:.0f}")(row["device_mb"])
    if any(row["joules_per_clip"] is not None for row in rows):
        shown["J/clip"] = lambda row: _number("{:.2f}")(row["joules_per_clip"])
    shown["cold ms"] = lambda row: f"{row['cold_start_ms']:.0f}"
    shown["as fast as"] = _ties
    return shown


def part_names(rows: Iterable[Report]) -> list[str]:
    """Return the parts that any row's time was taken apart into, in their order."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row["parts_ms"] or ())
    return sorted(names, key=lambda name: name == "host")


def same_in_all(report: Report) -> str:
    """Say what all rows share."""
    rows = report["rows"]
    shared = [name for name in IDENTITY if len({row[name] for row in rows}) == 1 and rows[0][name] is not None]
    return ", ".join(f"{name} {rows[0][name]}" for name in shared)


def about(report: Report) -> list[str]:
    """Say what was measured, on what, and how, a line each."""
    machine, data = report["machine"], report["data"]
    clips = f"{data['clips']} clips of {data['origin']}" if data else "no clips: synthetic frames, so latency alone"
    lines = [
        f"{clips}; {report['rounds']} rounds; {same_in_all(report)}",
        f"{machine['processor']}; {machine['memory']}; GPU: {machine['gpu']}",
    ]
    if machine["virtual"]:
        lines.append("a virtual machine: others may share its processor")
    if (yardstick := report["yardstick_ms"]) and yardstick["median"]:
        share = yardstick["spread"] / yardstick["median"]
        lines.append(
            f"the same work took {_time(yardstick)} ms over the rounds: the machine's own noise is {share:.0%}"
        )
    lines.append("energy: " + (report["energy_of"] or "this system tells none"))
    return lines


LEGEND = (
    "* nothing measured is both as fast and better, or as good and faster; ms: median ± half the span of the middle "
    "90 %; model: the glimpse loop, whole: from opening the file; as fast as: rows whose times cannot be told apart"
)


def tables(report: Report) -> Iterable[Table | str]:
    """Yield the report as tables and lines for a terminal, to be printed without markup."""
    main = Table(title="accuracy against latency", caption=LEGEND, caption_justify="left", **STYLE)
    shown = columns(report)
    for name in shown:
        main.add_column(name, justify="left" if name in ("", SETTING) else "right", no_wrap=name != SETTING)
    for row in report["rows"]:
        main.add_row(*(of_row(row) for of_row in shown.values()))
    yield main
    if (parts := _parts_table(report)) is not None:
        yield parts
    if report["skipped"]:
        left = Table("not measured", "why", title="left out", **STYLE)
        for entry in report["skipped"]:
            left.add_row(entry["what"], entry["why"])
        yield left
    yield from (f"- {sentence}" for sentence in report["findings"])
    yield from about(report)


def _parts_table(report: Report) -> Table | None:
    rows = [row for row in report["rows"] if row["parts_ms"]]
    if not rows:
        return None
    names = part_names(rows)
    table = Table(title="where the time of a clip goes, in ms (medians)", **STYLE)
    table.add_column("row")
    for name in (*names, "sum of parts", "whole", "sum/whole"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_parts_cells(row, names))
    return table


def _parts_cells(row: Report, names: list[str]) -> list[str]:
    parts = row["parts_ms"]
    found = [f"{parts[name]['median']:.2f}" if name in parts else "" for name in names]
    together = sum(entry["median"] for entry in parts.values())
    whole = row["whole_ms"]["median"]
    return [str(row["id"]), *found, f"{together:.2f}", f"{whole:.2f}", f"{row['parts_over_whole']:.3f}"]


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    shown = columns(report)
    lines = [*_markdown_table(list(shown), [[cell(row) for cell in shown.values()] for row in report["rows"]]), LEGEND]
    rows = [row for row in report["rows"] if row["parts_ms"]]
    if rows:
        names = part_names(rows)
        heads = ["row", *names, "sum of parts", "whole", "sum/whole"]
        lines += ["", "Where the time of a clip goes, in ms (medians):", ""]
        lines += _markdown_table(heads, [_parts_cells(row, names) for row in rows])
    lines += ["", *(f"- {sentence}" for sentence in report["findings"]), "", *about(report)]
    lines += ["", "Left out: "] if report["skipped"] else []
    lines += [f"- {entry['what']}: {entry['why']}" for entry in report["skipped"]]
    used = [row["backend"] for row in report["rows"] if row["backend"] in PEERS]
    lines += ["", *(f"- `{peer}`: {PEERS[peer]}" for peer in dict.fromkeys(used))]
    return "\n".join(lines) + "\n"


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows), ""]


def csv_text(report: Report) -> str:
    """Return the rows as CSV, with a header line."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in report["rows"]:
        flat = dict(row)
        for time in CSV_TIMES:
            flat |= {f"{time}_{what}": value for what, value in (row[time] or {}).items()}
        flat |= {f"{part}_ms": entry["median"] for part, entry in (row["parts_ms"] or {}).items()}
        flat["top1_low"], flat["top1_high"] = row.get("top1_interval_95", (None, None))
        flat["same_time_as"] = " ".join(map(str, row["same_time_as"]))
        writer.writerow(flat)
    return file.getvalue()

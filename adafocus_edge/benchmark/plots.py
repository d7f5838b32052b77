"""Draw a benchmark's report as a picture (PNG) and as a self-contained page (HTML with the pictures embedded)."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any

from adafocus_edge.benchmark.stats import Summary
from adafocus_edge.benchmark.tables import LEGEND, about, columns, part_names, setting, varying_fields
from adafocus_edge.evaluation.plot import new_figure, plain, save_png
from adafocus_edge.system.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adafocus_edge.benchmark.grid import Skipped
    from adafocus_edge.benchmark.schema import Report, RowReport

MAX_BARS = 30
MAX_CURVES = 10
STYLE_SHEET = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 100rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th { position: sticky; top: 0; background: Canvas; }
tr.front { font-weight: 600; background: #2a781a22; }
.scroll { overflow-x: auto; }
figure { margin: 1.5rem 0; background: #fff; border-radius: .5rem; padding: .5rem; }
figure svg { max-width: 100%; height: auto; }
"""


def draw(report: Report, path: Path) -> None:
    """Draw accuracy against latency and GFLOPs, accuracy per step, and the time of each part, as one PNG.

    Raises ``MissingExtraError`` without matplotlib, ``AdaFocusError`` if the file cannot be written.
    """
    rows = report.rows
    if not any(row.top1 is not None for row in rows):
        figure = new_figure(11, 5)
        _bars(figure.subplots(1, 1), report)
    else:
        figure = new_figure(16, 11)
        (latency, gflops), (steps, bars) = figure.subplots(2, 2)
        _scatter(latency, rows, "model_ms", "on_front", "ms per clip in the model: median, with minimum and p95")
        _scatter(gflops, rows, "gflops_per_clip", "on_gflops_front", "GFLOPs per clip (counted for the steps taken)")
        _curves(steps, rows)
        _bars(bars, report)
    figure.suptitle(plain("\n".join(about(report)[:2])), fontsize=9)
    save_png(figure, path)


def write_page(report: Report, path: Path) -> None:
    """Write the report as a page that loads nothing from outside; raises as :func:`draw`."""
    rows = report.rows
    figures: list[tuple[str, Any]] = []

    def add(title: str, width: float, height: float) -> Any:
        figure = new_figure(width, height)
        figures.append((title, figure))
        return figure.subplots(1, 1)

    if any(row.top1 is not None for row in rows):
        _scatter(add("Accuracy against latency", 11, 5.5), rows, "model_ms", "on_front", "ms per clip in the model")
        _scatter(
            add("Accuracy against end-to-end latency", 11, 5.5), rows, "whole_ms", "on_whole_front",
            "ms per clip from opening the file",
        )  # fmt: skip
        _scatter(add("Accuracy against GFLOPs", 11, 5.5), rows, "gflops_per_clip", "on_gflops_front", "GFLOPs per clip")
        _curves(add("Accuracy after each glimpse", 11, 5), rows)
    _bars(add("Time per clip, by part", 11, 6), report)
    shown = columns(report)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
    body = "".join(
        f"<tr{' class=front' if row.on_front else ''}>"
        + "".join(f"<td>{html.escape(cell(row))}</td>" for cell in shown.values())
        + "</tr>"
        for row in rows
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>AdaFocus Edge benchmark</title><style>{STYLE_SHEET}</style>",
        "<h1>Accuracy against latency</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in about(report)),
        "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in report.findings) + "</ul>",
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
        f"<p>{html.escape(LEGEND)}</p>",
        *(f"<h2>{html.escape(title)}</h2><figure>{_svg(figure)}</figure>" for title, figure in figures),
        _skipped_list(report.skipped),
        "</html>",
    ]
    write_text(path, "\n".join(parts) + "\n")


def _skipped_list(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return ""
    items = "".join(f"<li>{html.escape(one.what)}: {html.escape(one.why)}</li>" for one in skipped)
    return f"<h2>Skipped</h2><ul>{items}</ul>"


def _svg(figure: Any) -> str:
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return text[text.index("<svg") :]


def _named(row: RowReport, rows: Sequence[RowReport]) -> str:
    return plain(f"{row.id}: {setting(row, varying_fields(rows))}")


def _colours(rows: Iterable[RowReport]) -> dict[tuple[str, str, bool], str]:
    kinds = dict.fromkeys((row.bundle, row.variant, row.peer) for row in rows)
    return {kind: f"C{number % 10}" for number, kind in enumerate(kinds)}


def _scatter(axes: Any, rows: Sequence[RowReport], cost: str, flag: str, title: str) -> None:
    shown = [row for row in rows if row.top1 is not None and row.streams == 1 and getattr(row, cost)]
    colours = _colours(shown)
    drawn = set()
    front = []
    for row in shown:
        value = getattr(row, cost)
        middle, reach = value, [[0.0], [0.0]]
        if isinstance(value, Summary):
            middle = value.median
            reach = [[middle - value.min], [max(0.0, value.p95 - middle)]]
        kind = (row.bundle, row.variant, row.peer)
        label = plain(f"{kind[0]} {'peers' if kind[2] else kind[1]}") if kind not in drawn else None
        drawn.add(kind)
        marker = "x" if row.peer else "*" if row.exit else "o"
        axes.errorbar(middle, row.top1, xerr=reach, fmt=marker, color=colours[kind], label=label, elinewidth=0.7)
        if getattr(row, flag):
            front.append((middle, row.top1))
    front.sort()
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color="grey", linewidth=1, label="front")
    for row in shown:
        value = getattr(row, cost)
        middle = value.median if isinstance(value, Summary) else value
        axes.annotate(
            str(row.id), (middle, row.top1), fontsize=8, fontweight="bold" if getattr(row, flag) else "normal",
            textcoords="offset points", xytext=(4, 4 if row.id % 2 else -11),
        )  # fmt: skip
    if cost.endswith("_ms") and shown:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(title)
    axes.set_ylabel("top-1, percent")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


def _curves(axes: Any, rows: Sequence[RowReport]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        kind = (row.bundle, row.backend, row.variant, row.segments)
        if row.per_step_top1 is None or row.exit or kind in seen or len(seen) >= MAX_CURVES:
            continue
        seen.add(kind)
        curve = row.per_step_top1
        line = "--" if row.peer else "-"
        axes.plot(range(1, len(curve) + 1), curve, line, marker=".", label=_named(row, rows))
    axes.set_xlabel("glimpses seen")
    axes.set_ylabel("top-1, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _bars(axes: Any, report: Report) -> None:
    rows = [row for row in report.rows if row.parts_ms][:MAX_BARS]
    places = list(range(len(rows)))
    left = [0.0] * len(rows)
    for number, part in enumerate(part_names(rows)):
        widths = [max(0.0, (row.parts_ms or {})[part].median) if part in (row.parts_ms or {}) else 0.0 for row in rows]
        axes.barh(places, widths, left=left, color=f"C{number}", label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [_named(row, rows) for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms per clip, from opening the file to the result (medians)")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8)

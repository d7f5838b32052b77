"""Plots as PNG files, with matplotlib, which only this module needs."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from adafocus_edge.bundle.variants import ON_CPU, REFERENCE
from adafocus_edge.errors import AdaFocusError, MissingExtraError
from adafocus_edge.system.files import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.evaluation.evaluate import Evaluation

MAX_NAMED_CLASSES = 20
"""With more classes, a confusion matrix shows no names."""
EXIT_MARKERS = {"clip": "*", "coarse-to-fine": "P", "live": "D"}
"""The marker of each order of frames."""


def plain(text: str) -> str:
    """Return a text that may hold names as matplotlib draws it unchanged: between two dollars it expects a formula."""
    return text.replace("$", r"\$")


def draw_evaluation(found: Evaluation, title: str, path: Path) -> None:
    """Draw accuracy after each step and the confusion matrix.

    Raises ``MissingExtraError`` without matplotlib, ``AdaFocusError`` if the file cannot be written.
    """
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    curve = found.curve()
    steps = [figures.step + 1 for figures in curve]
    left.plot(steps, [figures.top1 for figures in curve], marker="o", markersize=4, label="top-1")
    left.plot(steps, [figures.mAP for figures in curve], marker="o", markersize=4, label="mAP")
    left.set_xlabel("glimpses seen")
    left.set_ylabel("percent")
    left.set_title(plain(title))
    left.grid(alpha=0.3)
    left.legend(loc="best")

    confusion = found.confusion
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    right.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    right.set_xlabel("predicted")
    right.set_ylabel("true")
    right.set_title(f"{len(found.scored)} clips")
    count = len(found.classes)
    if count <= MAX_NAMED_CLASSES:
        names = [plain(name) for name in found.classes]
        right.set_xticks(range(count), names, rotation=45, ha="right")
        right.set_yticks(range(count), names)
        for row in range(count):
            for column in range(count):
                colour = "white" if shares[row, column] > 0.5 else "black"
                right.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour)
    save_png(figure, path)


def draw_patches(found: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Draw top-1 with its 95 % interval against multiply-adds; ``found`` holds an evaluation's JSON by kind of patches.

    Raises the errors of :func:`draw_evaluation`.
    """
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    for number, (name, one) in enumerate(found.items()):
        low, high = one["top1_interval_95"]
        spread = [[max(0.0, one["top1"] - low)], [max(0.0, high - one["top1"])]]
        axes.errorbar(
            one["gflops_per_clip"], one["top1"], yerr=spread, fmt="o", color=f"C{number}", capsize=3, label=name
        )
    axes.set_xscale("log")
    axes.set_xlabel("GFLOPs per clip (multiply-adds)")
    axes.set_ylabel("top-1, percent")
    axes.set_title(plain(title))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    save_png(figure, path)


def draw_calibration(bundle: Bundle, path: Path) -> None:
    """Draw a calibration's report: accuracy against size, against milliseconds, and against steps with early exit.

    Raises the errors of :func:`draw_evaluation`.
    """
    report = bundle.manifest.reports["calibration"]
    rows, measured = report["rows"], report["measured"]
    figure = new_figure(15, 4.6)
    size, time, steps = figure.subplots(1, 3, sharey=True)
    for number, (name, row) in enumerate(rows.items()):
        low, high = row["top1_interval_95"]
        spread = [[row["top1"] - low], [high - row["top1"]]]
        style = {"fmt": "o", "color": f"C{number}", "capsize": 3, "elinewidth": 1}
        size.errorbar(row["size_mb"], row["top1"], yerr=spread, label=f"{name} ({row['purpose']})", **style)
        if name in ON_CPU:
            time.errorbar(row["ms_per_clip"], row["top1"], yerr=spread, label=name, **style)
    size.set_xlabel("megabytes")
    size.set_ylabel("top-1, percent")
    reference = rows[REFERENCE]
    time.set_xlabel(plain(f"ms per clip\n{measured['on']}"))
    curve = reference["per_step_top1"]
    steps.plot(range(1, len(curve) + 1), curve, color="C0", marker="o", markersize=4, label="fp32, fixed steps")
    for number, (name, orders) in enumerate(reference["exits"].items(), start=1):
        for order, found in orders.items():
            text = name if order == "clip" else f"{name}, {order}"
            marker = EXIT_MARKERS[order]
            label = plain(f"exit {text}")
            steps.plot(found["mean_steps"], found["top1"], marker, color=f"C{number}", markersize=9, label=label)
            steps.plot(found["mean_steps"], found["top1_random_exit"], "x", color=f"C{number}")
    steps.plot([], [], "x", color="grey", label="as many exits at random")
    steps.set_xlabel("mean glimpses per clip")
    for axes in (size, time, steps):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    size.set_xlim(left=0)
    time.set_xlim(left=0)
    figure.suptitle(plain(f"{bundle.path.name}: {measured['clips']} clips, bars: 95 % intervals"))
    save_png(figure, path)


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of a size in inches. Raises ``MissingExtraError`` without matplotlib."""
    os.environ["MPLBACKEND"] = "agg"  # the configured one may not be installed, and nothing is shown
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing a plot", "plot", error.name or "matplotlib") from None
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_plot(path: Path) -> None:
    """Check before a long run that a plot can be drawn after it. Raises the errors of :func:`draw_evaluation`."""
    new_figure(1, 1)
    if path.is_dir():
        raise AdaFocusError(f"{path}: is a folder, not a file to write")


def save_png(figure: Any, path: Path) -> None:
    """Write a figure as PNG. Raises ``AdaFocusError``."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    write_file(path, encoded.getvalue())

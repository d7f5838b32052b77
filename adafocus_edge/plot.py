"""Plots as PNG files, by matplotlib, which is needed for nothing else."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from adafocus_edge.errors import AdaFocusError, MissingExtraError
from adafocus_edge.files import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from adafocus_edge.evaluate import Evaluation

MOST_NAMED_CLASSES = 20
"""With more classes, a confusion matrix shows no names."""


def draw_evaluation(found: Evaluation, title: str, path: Path) -> None:
    """Draw accuracy after each step and the confusion matrix.

    Raises ``MissingExtraError`` without matplotlib, ``AdaFocusError`` if the file cannot be written.
    """
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    curve = found.curve()
    steps = [int(entry["step"]) + 1 for entry in curve]
    for name in ("top1", "mAP"):
        left.plot(
            steps, [entry[name] for entry in curve], marker="o", markersize=4, label=name.replace("top1", "top-1")
        )
    left.set_xlabel("glimpses seen")
    left.set_ylabel("percent")
    left.set_title(title)
    left.grid(alpha=0.3)
    left.legend(loc="best")

    confusion = found.confusion
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    right.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    right.set_xlabel("predicted")
    right.set_ylabel("true")
    right.set_title(f"{len(found.scored)} clips")
    count = len(found.classes)
    if count <= MOST_NAMED_CLASSES:
        right.set_xticks(range(count), found.classes, rotation=45, ha="right")
        right.set_yticks(range(count), found.classes)
        for row in range(count):
            for column in range(count):
                colour = "white" if shares[row, column] > 0.5 else "black"
                right.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing a plot", "plot", error.name or "matplotlib") from None
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_plot(path: Path) -> None:
    """Tell before a long run that a plot could not be drawn after it. Raises what :func:`draw_evaluation` would."""
    _figure(1, 1)
    if path.is_dir():
        raise AdaFocusError(f"{path}: is a folder, not a file to write")


def _save(figure: Any, path: Path) -> None:
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    write_file(path, encoded.getvalue())

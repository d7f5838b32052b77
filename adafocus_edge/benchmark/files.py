"""The files that a benchmark's report is written to, each in the format that its name stands for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.system.files import check_different, check_overwrites, is_stream, write_text
from adafocus_edge.system.retention import check_file, check_folder

if TYPE_CHECKING:
    from adafocus_edge.benchmark.schema import Report

FORMATS = {
    ".csv": "csv",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".png": "plot",
}
"""Formats by suffix; a file with any other is JSON."""


@dataclass(frozen=True)
class ReportFiles:
    """Files with the format of each.

    Attributes:
        files: format and path of each.
    """

    files: tuple[tuple[str, Path], ...]

    @classmethod
    def named(cls, outputs: Sequence[Path], plot: Path | None) -> ReportFiles:
        """Return files in the formats that their names stand for, and a plot."""
        named = [(FORMATS.get(path.suffix.lower(), "json"), path) for path in outputs]
        return cls((*named, *([("plot", plot)] if plot is not None else [])))

    def added(self, others: Sequence[tuple[str, Path]]) -> ReportFiles:
        """Return these and other files, each given with its format."""
        return ReportFiles((*self.files, *others))

    @property
    def kept_for(self) -> Path | None:
        """The file beside which measurements are kept until it is written: the first JSON that is not a stream."""
        return next((path for kind, path in self.files if kind == "json" and not is_stream(path)), None)

    def check(self, inputs: Sequence[Path | None] = ()) -> None:
        """Check that all files can be written, and that none is an input or lies in one. Raises ``AdaFocusError``.

        Args:
            inputs: files, and folders into which nothing is written.
        """
        drawn = next((path for kind, path in self.files if kind in ("plot", "html")), None)
        if drawn is not None:
            from adafocus_edge.evaluation.plot import check_plot

            check_plot(drawn)
        check_different((f"--{'plot' if kind == 'plot' else 'output'}", path) for kind, path in self.files)
        for _, path in self.files:
            check_file(path)
        for _, path in self.files:
            if not is_stream(path):
                check_folder(path.parent, "reports")
                check_overwrites({"--output": path}, inputs)

    def write(self, report: Report) -> None:
        """Write a report to all files, drawn ones last, and remove the measurements that were kept for it."""
        from adafocus_edge.benchmark.measure import kept_beside

        order = list(WRITERS)
        for kind, path in sorted(self.files, key=lambda file: order.index(file[0])):
            WRITERS[kind](report, path)
        if self.kept_for is not None:
            shutil.rmtree(kept_beside(self.kept_for), ignore_errors=True)


def _write_json(report: Report, path: Path) -> None:
    from adafocus_edge.benchmark.schema import to_json

    write_text(path, json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n")


def _write_csv(report: Report, path: Path) -> None:
    from adafocus_edge.benchmark.tables import csv_text

    write_text(path, csv_text(report))


def _write_markdown(report: Report, path: Path) -> None:
    from adafocus_edge.benchmark.tables import markdown

    write_text(path, markdown(report))


def _write_page(report: Report, path: Path) -> None:
    from adafocus_edge.benchmark.plots import write_page

    write_page(report, path)


def _draw(report: Report, path: Path) -> None:
    from adafocus_edge.benchmark.plots import draw

    draw(report, path)


# In the order in which files are written: if drawing fails, the figures are there.
WRITERS: dict[str, Callable[[Report, Path], None]] = {
    "json": _write_json,
    "csv": _write_csv,
    "markdown": _write_markdown,
    "html": _write_page,
    "plot": _draw,
}

"""Prints results on a terminal, and writes them to files: JSON lines, CSV, Parquet."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adafocus_edge.errors import UsageError
from adafocus_edge.runtime.parquet import SUFFIX, check_parquet, is_parquet, write_parquet
from adafocus_edge.system.csv_lines import csv_line
from adafocus_edge.system.files import append_whole, is_stream, open_stream, writable, write_all
from adafocus_edge.system.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Self

    from adafocus_edge.runtime.classifier import Result


BAR_WIDTH = 24
CSV_COLUMNS = (
    "source start_s end_s label class_id confidence steps_used exited_early latency_ms model_ms backend variant error"
).split()


def print_result(to: Console, result: Result) -> None:
    """Print a clip's best classes."""
    from rich.markup import escape
    from rich.table import Table

    timed = result.start_s is not None and result.end_s is not None
    span = f"   {result.start_s:.1f} - {result.end_s:.1f} s" if timed else ""
    to.print(f"[bold]{escape(result.source)}[/]{span}", soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2))
    for guess in result.top:
        bar = "█" * max(1, round(guess.confidence * BAR_WIDTH))
        table.add_row(escape(guess.label), f"{guess.confidence:.1%}", bar)
    table.columns[1].justify = "right"
    to.print(table)
    exited = ", exited early" if result.exited_early else ""
    decoded = "" if result.decode == "exact" else f", decoded: {result.decode}"
    to.print(
        f"  [dim]{len(result.steps)} glimpses{exited}, {result.latency_ms:.0f} ms (model {result.model_ms:.0f} ms), "
        f"{result.backend}, {result.variant}{decoded}[/]",
        soft_wrap=True,
    )


class ResultFile:
    """A file of results: CSV or Parquet if its name ends so, else one JSON object per line. A context manager.

    It is named ``.NAME.*.part`` until the run ends, so that only a finished run replaces an earlier file, and two runs
    do not mix. An interrupted run, for example on a full disk, keeps that file if it holds results, and prints its name
    on stderr. A device or a pipe is written to directly. A Parquet file is made of JSON lines when the run ends, so an
    interrupted run leaves JSON lines.

    Raises ``UsageError``, ``AdaFocusError`` if it cannot be written, ``MissingExtraError``.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, not a file to write")
        self._path = path
        self._draft: Path | None = None
        self._is_csv = path.suffix.lower() == ".csv"
        self._is_parquet = is_parquet(path)
        if self._is_parquet:
            check_parquet()
            if is_stream(path):
                raise UsageError(f"{path}: a device or a pipe cannot hold {SUFFIX}: write JSON lines to it")
        with writable(self._path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_stream(path):
                self._file: IO[bytes] = open_stream(path)
            else:
                self._path = path.resolve()  # a link stays, and its target is written
                handle, self._draft = self._new_draft()
                self._file = os.fdopen(handle, "wb", buffering=0)
        self._held = 0  # results
        self._size = 0  # bytes
        if self._is_csv:
            try:
                self._append(dict(zip(CSV_COLUMNS, CSV_COLUMNS, strict=True)))
            except BaseException:
                self._leave()
                raise

    def _new_draft(self) -> tuple[int, Path]:
        """Create an empty file beside the one that it will replace; return its descriptor and its path."""
        handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".part", dir=self._path.parent)
        draft = Path(name)
        draft.chmod(0o644)
        return handle, draft

    def write(self, entry: dict[str, Any]) -> None:
        """Add the JSON object of a result or a failed source, whole or not at all. Raises ``AdaFocusError``."""
        self._append(entry)
        self._held += 1

    def _append(self, entry: dict[str, Any]) -> None:
        line = csv_line(CSV_COLUMNS, entry) if self._is_csv else json.dumps(entry, ensure_ascii=False) + "\n"
        # Bytes of a file's name that UTF-8 cannot encode become an escape that JSON reads back.
        content = line.encode(errors="backslashreplace")
        with writable(self._path):
            if self._draft is None:
                write_all(self._file, content)
            else:
                append_whole(self._file, content, self._size)
        self._size += len(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._leave()
            return
        try:
            with writable(self._path):
                self._file.close()
                if self._is_parquet:
                    self._convert()
                if self._draft is not None:
                    os.replace(self._draft, self._path)
        except BaseException:
            self._leave()
            raise

    def _convert(self) -> None:
        """Make a Parquet file of the draft, which it then replaces."""
        assert self._draft is not None
        handle, made = self._new_draft()
        os.close(handle)
        try:
            write_parquet(self._draft, made)
        except BaseException:
            made.unlink()
            raise
        self._draft.unlink()
        self._draft = made

    def _leave(self) -> None:
        """End an interrupted run: keep the file if it holds results."""
        with suppress(OSError):
            self._file.close()
        if self._draft is not None and self._held:
            print(f"results so far are in {printable(str(self._draft))}", file=sys.stderr)
        elif self._draft is not None:
            with suppress(OSError):
                self._draft.unlink()

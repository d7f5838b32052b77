"""The folder of an archive run: rows as JSON lines in parts, each part as Parquet when it is full, and what is done.

Only the driver writes. A row is appended whole to the newest part; what a killed driver left half written is cut off.
So a run that is started again knows exactly which sources have a row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from adafocus_edge.errors import UsageError
from adafocus_edge.runtime.parquet import SUFFIX, check_parquet, write_parquet
from adafocus_edge.system.files import (
    DRAFT,
    append_whole,
    atomic_write,
    draft_file,
    locked,
    take_place,
    writable,
    write_text,
)

RUN = "run.json"
LOCK = ".lock"
SUMMARY = "summary.json"
LINES = "jsonl"
"""Folder of the parts as JSON lines."""
PARQUET = "parquet"
"""Folder of the parts as Parquet."""
ROWS_PER_PART = 10_000
FOLDER = "folder"
"""Setting: that which names of sources are relative to; None if none is."""


class Journal:
    """The rows of a run, in a folder; use :func:`open_journal`.

    Attributes:
        done: names of the sources that have a row.
        failed: names of those whose row is an error.
    """

    def __init__(self, folder: Path, rows_per_part: int) -> None:
        self._folder = folder
        self._rows_per_part = rows_per_part
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self._file: IO[bytes] | None = None
        self._held = self._size = 0
        with writable(folder):
            for name in (LINES, PARQUET):
                (folder / name).mkdir(parents=True, exist_ok=True)
            for path in self._parts():
                self._held, self._size = self._recover(path)
        parts = self._parts()
        self._number = int(parts[-1].stem.removeprefix("part-")) if parts else 0
        if self._held >= rows_per_part:
            self._number, self._held, self._size = self._number + 1, 0, 0

    def _parts(self) -> list[Path]:
        return sorted((self._folder / LINES).glob("part-*.jsonl"))

    def _recover(self, path: Path) -> tuple[int, int]:
        """Take in the rows of a part, and cut off an unfinished one; return its rows and its bytes."""
        rows = size = 0
        with path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(size)
                    break
                try:
                    self._count(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    raise UsageError(f"{path}, line {rows + 1}: not a row of a run: remove this file") from None
                rows, size = rows + 1, size + len(line)
        return rows, size

    def _count(self, row: dict[str, Any]) -> None:
        self.done.add(row["source"])
        if "error" in row:
            self.failed.add(row["source"])

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; one of a source that has a row is dropped. Raises ``AdaFocusError`` if it cannot be written."""
        if row["source"] in self.done:
            return
        path = self._folder / LINES / f"part-{self._number:05d}.jsonl"
        with writable(path):
            if self._file is None:
                self._file = path.open("ab", buffering=0)
            content = (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
            append_whole(self._file, content, self._size)
        self._size += len(content)
        self._held += 1
        self._count(row)
        if self._held == self._rows_per_part:
            self.close()
            self._convert(path)
            self._number, self._held, self._size = self._number + 1, 0, 0

    def _convert(self, path: Path) -> None:
        target = self._folder / PARQUET / f"{path.stem}{SUFFIX}"
        with writable(target), draft_file(target) as draft:
            write_parquet(path, draft)
            take_place(draft, target)

    def finish(self, summary: dict[str, Any]) -> None:
        """Make the Parquet of every part that has none, or an older one, and write the summary."""
        self.close()
        for path in self._parts():
            made = self._folder / PARQUET / f"{path.stem}{SUFFIX}"
            if not made.is_file() or made.stat().st_mtime_ns <= path.stat().st_mtime_ns:
                self._convert(path)
        write_text(self._folder / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Close the newest part."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


@contextmanager
def open_journal(folder: Path, settings: dict[str, Any], rows_per_part: int = ROWS_PER_PART) -> Iterator[Journal]:
    """Open the folder of a run, new or begun earlier with the same settings.

    Args:
        folder: to hold the rows.
        settings: what decides the rows: model, variant, options.
        rows_per_part: from which a new part is begun.

    Raises:
        UsageError: it holds something else, rows of other settings, or another run is writing to it.
        AdaFocusError: it cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    check_parquet()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: must be a folder: --engine writes many files")
    run = folder / RUN
    with ExitStack() as stack:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(folder / LOCK))
            except BlockingIOError:
                raise UsageError(f"--output {folder}: another run is writing to it") from None
        if not run.is_file() and not all(map(_is_of_start, folder.iterdir())):
            raise UsageError(f"--output {folder}: holds other files: give a new folder, or that of a run to go on with")
        _check_settings(run, settings)
        journal = Journal(folder, rows_per_part)
        stack.callback(journal.close)
        yield journal


def _is_of_start(path: Path) -> bool:
    """Whether a file is what a run leaves that was killed before it wrote its settings."""
    return path.name == LOCK or (path.name.startswith(f".{RUN}.") and path.name.endswith(DRAFT))


def _check_settings(run: Path, settings: dict[str, Any]) -> None:
    """Check that a run goes on with the settings that it began with, and store them if it is new."""
    if not run.is_file():
        _write_settings(run, settings)
        return
    try:
        before = dict(json.loads(run.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        raise UsageError(f"{run}: cannot be read: give another folder") from None
    here, there = settings.get(FOLDER), before.get(FOLDER)
    if here is not None and there is not None and here != there:
        raise UsageError(
            f"--output {run.parent}: holds rows of paths relative to {there}, and those of this run are relative to "
            f"{here}: run it in {there}, or give another folder"
        )
    for name, value in settings.items():
        if name != FOLDER and before.get(name) != value:
            raise UsageError(
                f"--output {run.parent}: holds rows of {name} {before.get(name)!r}, and this run has {value!r}: give "
                "another folder, or the same options"
            )
    if there is None and here is not None:  # until now, all were named by their whole paths
        _write_settings(run, {**before, FOLDER: here})


def _write_settings(run: Path, settings: dict[str, Any]) -> None:
    with writable(run), atomic_write(run) as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())

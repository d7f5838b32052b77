"""The results file sink: appends results of a live run to a file that rotates."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.listener import RETRY_S, Sink
from adafocus_edge.live.messages import Event, Message, Notice, ProvisionalResult, Window
from adafocus_edge.runtime.results import CSV_COLUMNS
from adafocus_edge.system.csv_lines import csv_header, csv_line
from adafocus_edge.system.files import append_whole, is_stream, open_stream, write_all
from adafocus_edge.system.json_lines import to_line
from adafocus_edge.system.retention import FailureReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


LIVE_CSV_COLUMNS = (*CSV_COLUMNS, "at", "event", "cut", "text", "smoothed_label", "smoothed_confidence")
"""Columns of live results. ``event`` is empty for windows, ``start`` or ``end`` for events, ``provisional`` for
provisional results, and the kind of a notice; ``text`` is the text of a notice; the last two are those of the mean of
the newest windows, where windows are smoothed."""
CSV_HEADER = csv_header(LIVE_CSV_COLUMNS).encode()


class ResultsFile(Sink):
    """Appends each result to a file at once: as JSON lines, or as CSV if its name ends in ``.csv``.

    While the disk is full, lines wait for room. A line is written whole or not at all. If the file is moved away or
    deleted meanwhile (logrotate), a new one is created; a device or a pipe is written to as it is.

    Args:
        path: of the file.
        report: is called with one line for each new error.
        provisional: whether provisional results are written too.
        logits: whether JSON lines hold the logits of every step.
        rotate_mb: maximum size in megabytes: then the file becomes ``NAME.1``, ``NAME.1`` becomes ``NAME.2``, and so
            on. None for no limit.
        keep: number of these files that are kept.
        waiting: maximum number of messages in the queue.

    Raises:
        UsageError: a number is out of range, or ``path`` is a folder or a CSV with other columns.
        AdaFocusError: ``path`` cannot be written.
    """

    wants = (Window, Event, Notice, ProvisionalResult)
    local = True

    def __init__(
        self,
        path: Path,
        report: Callable[[str], None],
        *,
        provisional: bool = False,
        logits: bool = False,
        rotate_mb: float | None = None,
        keep: int = 5,
        waiting: int = 1000,
    ) -> None:
        if rotate_mb is not None and not rotate_mb > 0:
            raise UsageError(f"rotate_mb must be more than 0 megabytes, not {rotate_mb:g}")
        if keep < 1:
            raise UsageError(f"keep must be at least 1 older file, not {keep}")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, not a file to write")
        self._is_regular = not is_stream(path)
        self._path = path.resolve() if self._is_regular else path  # a link stays, and its target is rotated
        self._is_csv = path.suffix.lower() == ".csv"
        self._provisional = provisional
        self._logits = logits
        self._rotate_bytes = None if rotate_mb is None else rotate_mb * 1e6
        self._keep = keep
        self._file: IO[bytes] | None = None
        self._outage = FailureReporter(str(path), report)
        try:
            if self._is_regular:  # opening a pipe waits for its reader, so the thread does that
                self._open()
        except OSError as error:
            self._close_file()
            raise AdaFocusError(f"{path}: cannot be written ({error.strerror})") from None
        super().__init__(str(path), waiting, report)

    def enqueue(self, message: Message) -> None:
        """Take a message, or a provisional result if these are written too; see :meth:`Sink.enqueue`."""
        if self._provisional or not isinstance(message, ProvisionalResult):
            super().enqueue(message)

    def process(self, message: Message) -> None:
        """Write one line; if that fails, wait and retry until the run ends."""
        line = self._line(message)
        while True:
            try:
                self._write(line)
            except OSError as error:
                self._outage.failed(f"cannot be written ({error.strerror}): retrying every {RETRY_S:g} s")
                self._close_file()
                if self._stopping.wait(RETRY_S):
                    self.dropped += 1
                    return
            else:
                self._outage.worked()
                return

    def finish(self) -> None:
        """Close the file."""
        self._close_file()

    def _line(self, message: Message) -> bytes:
        if isinstance(message, Window):
            entry = message.to_json(logits=self._logits)
        else:
            assert isinstance(message, (Event, Notice, ProvisionalResult))
            entry = message.to_json()
        text = csv_line(LIVE_CSV_COLUMNS, _csv_row(entry)) if self._is_csv else to_line(entry) + "\n"
        # Characters that UTF-8 cannot encode (odd bytes of a file's name) become escapes that JSON decodes.
        return text.encode(errors="backslashreplace")

    def _write(self, line: bytes) -> None:
        if not self._is_regular:
            write_all(self._file or self._open(), line)
            return
        if self._file is not None and not self._is_same(self._file):
            self._close_file()
        file = self._file or self._open()
        size = _size_bytes(file)
        header_bytes = len(CSV_HEADER) if self._is_csv else 0
        if self._rotate_bytes is not None and size > header_bytes and size + len(line) > self._rotate_bytes:
            try:
                self._rotate()
            except OSError as error:  # a file that is too large is better than none
                self._outage.failed(f"cannot be renamed ({error.strerror}): it keeps growing")
            file = self._open()
            size = _size_bytes(file)
        append_whole(file, line, size)

    def _is_same(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> IO[bytes]:
        if not self._is_regular:
            self._file = open_stream(self._path)
            return self._file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._file = self._path.open("ab", buffering=0)
        size = _size_bytes(file)
        with self._path.open("rb") as before:
            first = before.readline(10_000)
            before.seek(max(0, size - 1))
            torn = before.read(1) not in (b"", b"\n")  # a crash ended it in the middle of a line
        if self._is_csv and first and first != CSV_HEADER:
            self._close_file()
            raise UsageError(f"{self._path}: is a CSV with other columns: choose another name, or move it away")
        if self._is_csv and not size:
            append_whole(file, CSV_HEADER, 0)
        elif torn:
            append_whole(file, b"\n", size)
        return file

    def _rotate(self) -> None:
        self._close_file()

        def older(number: int) -> Path:
            return self._path.with_name(f"{self._path.name}.{number}")

        for number in range(self._keep, 1, -1):
            with suppress(FileNotFoundError):
                older(number - 1).replace(older(number))
        self._path.replace(older(1))

    def _close_file(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def _csv_row(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a message's JSON object with the keys of the CSV's columns."""
    if "notice" in entry:
        return {**entry, "event": entry["notice"]}
    if "event" in entry:
        return {**entry, "confidence": entry["peak"]}
    if "provisional" in entry:
        return {**entry, "event": "provisional", "start_s": entry["time_s"]}
    if smoothed := entry.get("smoothed"):
        return {**entry, "smoothed_label": smoothed[0]["label"], "smoothed_confidence": smoothed[0]["confidence"]}
    return entry


def _size_bytes(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size

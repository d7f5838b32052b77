"""Where a live run's results go: a growing file, pictures of events, a webhook, an MQTT broker."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.messages import Event, Message, Notice, ProvisionalResult, Sink, Window, to_line
from adafocus_edge.runtime.results import CSV_COLUMNS
from adafocus_edge.system.csv_lines import csv_header, csv_line
from adafocus_edge.system.files import append_whole, is_stream, open_stream, write_all
from adafocus_edge.system.retention import FailureReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


LIVE_CSV_COLUMNS = (*CSV_COLUMNS, "at", "event", "cut", "text")
"""Of live results: ``event`` is empty for windows, ``start`` or ``end`` for events, ``provisional`` for looks, and for
notices what happened to the source; ``text`` says it in words."""
RETRY_S = 5.0
"""Pause before a file that could not be written is tried again."""


class ResultsFile(Sink):
    """Appends results to a file as they come: JSON lines, or CSV where its name ends in ``.csv``; each line is flushed.

    Where the disk is full, lines wait until there is room again. A line is written whole or not at all. A file that
    was moved away or deleted meanwhile (logrotate) is begun anew; a device or a pipe is written to as it is.

    Args:
        path: of the file.
        tell: takes one line about something that went wrong.
        provisional: whether looks are written too.
        logits: whether JSON lines hold the logits of every step.
        rotate_mb: size in megabytes before which the file becomes ``NAME.1``, ``NAME.1`` becomes ``NAME.2``, and so on.
        keep: how many of these stay.
        waiting: messages that may wait.

    Raises:
        UsageError: a number makes no sense, or ``path`` is a folder or a CSV with other columns.
        AdaFocusError: ``path`` cannot be written.
    """

    wants = (Window, Event, Notice, ProvisionalResult)
    local = True

    def __init__(
        self,
        path: Path,
        tell: Callable[[str], None],
        *,
        provisional: bool = False,
        logits: bool = False,
        rotate_mb: float | None = None,
        keep: int = 5,
        waiting: int = 1000,
    ) -> None:
        if rotate_mb is not None and not rotate_mb > 0:
            raise UsageError(f"a file of {rotate_mb:g} megabytes cannot be: give more than 0")
        if keep < 1:
            raise UsageError(f"keeping {keep} older files cannot be: give at least 1")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, not a file to write")
        self._is_regular = not is_stream(path)
        self._path = path.resolve() if self._is_regular else path  # a link stays, and what it leads to is rotated
        self._is_csv = path.suffix.lower() == ".csv"
        self._provisional = provisional
        self._logits = logits
        self._rotate_bytes = None if rotate_mb is None else rotate_mb * 1e6
        self._keep = keep
        self._file: IO[bytes] | None = None
        self._outage = FailureReporter(str(path), tell)
        try:
            if self._is_regular:  # opening a pipe waits for its reader: that is left to the thread
                self._open()
        except OSError as error:
            self._close_file()
            raise AdaFocusError(f"{path}: cannot be written ({error.strerror})") from None
        super().__init__(str(path), waiting, tell)

    def enqueue(self, message: Message) -> None:
        """Take a message; see :meth:`Sink.enqueue`. Looks only if provisional results are asked for."""
        if self._provisional or not isinstance(message, ProvisionalResult):
            super().enqueue(message)

    def process(self, message: Message) -> None:
        """Write one line; waits and tries again where that fails, until the run ends."""
        line = self._line(message)
        while True:
            try:
                self._write(line)
            except OSError as error:
                self._outage.failed(f"cannot be written ({error.strerror}): tried again every {RETRY_S:g} s")
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
        # What no UTF-8 can hold (odd bytes of a file's name) becomes an escape that JSON reads back.
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
                self._outage.failed(f"cannot be renamed ({error.strerror}): it grows on")
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
            torn = before.read(1) not in (b"", b"\n")  # by a crash in the middle of a line
        if self._is_csv and first and first != CSV_HEADER:
            self._close_file()
            raise UsageError(f"{self._path}: is a CSV with other columns: give another name, or move it away")
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
    """Return a message's JSON object under the columns of the CSV."""
    if "notice" in entry:
        return {**entry, "event": entry["notice"]}
    if "event" in entry:
        return {**entry, "confidence": entry["peak"]}
    if "provisional" in entry:
        return {**entry, "event": "provisional", "start_s": entry["time_s"]}
    return entry


CSV_HEADER = csv_header(LIVE_CSV_COLUMNS).encode()


def _size_bytes(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size

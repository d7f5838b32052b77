"""The snapshot sink: saves a picture of each event."""

from __future__ import annotations

import itertools
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from adafocus_edge.errors import UsageError
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Event, Message
from adafocus_edge.system.files import atomic_write
from adafocus_edge.system.retention import FailureReporter, RetentionPolicy, SafeNames, check_folder, safe_name
from adafocus_edge.system.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adafocus_edge.model.spec import ModelSpec


class Snapshots(Sink):
    """Saves a picture when an event starts: ``SOURCE-YYYYmmdd-HHMMSS-LABEL.jpg``, UTC, whole or not at all.

    Args:
        folder: to write into; created if necessary.
        spec: of the model, for the place of the patch in the frame.
        report: is called with one line for each new error.
        keep: number of pictures that are kept in the folder, the newest; None for all.
        quality: of the JPEG, 1 to 95.
        waiting: maximum number of events in the queue.

    Raises:
        UsageError: a number is out of range, or ``folder`` is a file.
        AdaFocusError: ``folder`` cannot be written.
    """

    wants = (Event,)
    needs_pixels = True
    _OWN = re.compile(r".+-\d{8}-\d{6}-.+\.jpg")

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        report: Callable[[str], None],
        *,
        keep: int | None = 1000,
        quality: int = 90,
        waiting: int = 32,
    ) -> None:
        if keep is not None and keep < 1:
            raise UsageError(f"keep must be at least 1 snapshot, not {keep}")
        if not 1 <= quality <= 95:
            raise UsageError(f"quality of a JPEG must be 1 to 95, not {quality}")
        check_folder(folder, "snapshots")
        self._folder = folder
        self._spec = spec
        self._retention = None if keep is None else RetentionPolicy(keep)
        self._quality = quality
        self._names = SafeNames()
        self._outage = FailureReporter(str(folder), report)
        super().__init__(str(folder), waiting, report)

    def enqueue(self, message: Message) -> None:
        """Take the start of an event; see :meth:`Sink.enqueue`."""
        if isinstance(message, Event) and message.kind == "start":
            super().enqueue(message)

    def process(self, message: Message) -> None:
        """Save one picture; if that fails, it counts as dropped and failed."""
        if not isinstance(message, Event):
            return
        from adafocus_edge.live.overlay import event_picture

        picture = event_picture(message, self._spec)
        base = f"{self._names.of(message.source)}-{stamp(message.wall_s)}-{safe_name(message.label)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{base}.jpg"
            numbers = itertools.count(2)
            while path.exists():  # the same label twice within a second, or the system's clock was set back
                path = self._folder / f"{base}-{next(numbers)}.jpg"
            with atomic_write(path) as file:
                picture.save(file, "JPEG", quality=self._quality)
            if self._retention is not None:
                self._retention.wrote(path)
                self._retention.delete_older(self._saved())
        except OSError as error:
            self.failed += 1
            self.dropped += 1
            self._outage.failed(f"snapshots cannot be written ({error.strerror or error})")
        else:
            self._outage.worked()

    def _saved(self) -> list[Path]:
        """Return the snapshots in the folder, oldest first."""
        found = []
        for path in self._folder.iterdir():
            if self._OWN.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]
